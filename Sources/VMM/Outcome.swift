// SPDX-License-Identifier: Apache-2.0
//
// How a run of a machine ends, with the exit statuses.

import CHost
import KVMClient

/// How a run ended.
package enum Outcome: Sendable {
  case poweredOff
  case quit
  case signal(Int32)
  case restart
  /// The guest wrote to the debug-exit port; the value is the exit status.
  case debugExit(UInt8)
  /// A triple fault.
  case crashed(CrashReport)
  /// All CPUs halted with interrupts off.
  case halted(CrashReport)
  /// The hypervisor failed on a CPU.
  case failed(String, CrashReport?)

  package var status: Int32 {
    switch self {
    case .poweredOff, .quit: ExitStatus.success
    case .signal(let number): ExitStatus.signalBase + number
    case .restart: ExitStatus.guestRestarted
    case .debugExit(let status): Int32(status)
    case .crashed: ExitStatus.guestCrashed
    case .halted: ExitStatus.guestHalted
    case .failed: ExitStatus.engineFailed
    }
  }

  /// The message for the user; nil if there is none.
  package var message: String? {
    switch self {
    case .poweredOff, .quit, .debugExit: nil
    case .signal(let number): "ended by signal \(number)"
    case .restart: "the guest asked for a restart, which --on-reboot exit takes for the end"
    case .crashed(let report): "the guest crashed: triple fault\n\(report)"
    case .halted(let report):
      "the guest halted with interrupts off, nothing can wake it\n\(report)"
    case .failed(let reason, let report):
      "the hypervisor stopped: \(reason)" + (report.map { "\n\($0)" } ?? "")
    }
  }
}

/// The state of a CPU where it stopped, as text.
package struct CrashReport: Sendable, Hashable, CustomStringConvertible {
  package let description: String

  /// Placeholder for the report that is made when the CPUs have stopped.
  static let pending = CrashReport(description: "")

  private init(description: String) { self.description = description }

  /// - Parameter lastExit: the CPU's previous exit reason.
  init(_ cpu: VirtualCPUHandle, number: Int, lastExit: String) {
    guard let general = try? cpu.registers(), let special = try? cpu.specialRegisters() else {
      description = "CPU \(number): registers cannot be read; last exit: \(lastExit)"
      return
    }
    let rows: [[(String, UInt64)]] = [
      [("RAX", general.rax), ("RBX", general.rbx), ("RCX", general.rcx), ("RDX", general.rdx)],
      [("RSI", general.rsi), ("RDI", general.rdi), ("RBP", general.rbp), ("RSP", general.rsp)],
      [("R8 ", general.r8), ("R9 ", general.r9), ("R10", general.r10), ("R11", general.r11)],
      [("R12", general.r12), ("R13", general.r13), ("R14", general.r14), ("R15", general.r15)],
      [("CR0", special.cr0), ("CR2", special.cr2), ("CR3", special.cr3), ("CR4", special.cr4)],
      [
        ("GDT", special.gdt.base), ("IDT", special.idt.base), ("TR ", special.tr.base),
        ("EFER", special.efer),
      ],
    ]
    func hex(_ value: UInt64) -> String {
      let digits = String(value, radix: 16)
      return String(repeating: "0", count: 16 - digits.count) + digits
    }
    var text = "CPU \(number): RIP \(hex(general.rip)) RFLAGS \(hex(general.rflags))"
    text += " CS \(String(special.cs.selector, radix: 16)) base \(hex(special.cs.base))\n"
    for row in rows {
      text += row.map { "\($0.0) \(hex($0.1))" }.joined(separator: " ") + "\n"
    }
    description = text + "last exit: \(lastExit)"
  }
}
