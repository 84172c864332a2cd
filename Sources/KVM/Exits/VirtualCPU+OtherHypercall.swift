// SPDX-License-Identifier: Apache-2.0
//
// #UD exits that the guest must not get: RSM, and the other vendor's hypercall. A guest uses
// VMMCALL if its CPUID says AMD, VMCALL if it says Intel. The hypercall is executed, and the
// instruction patched to the processor's own, which is faster next time
// (KVM_X86_QUIRK_FIX_HYPERCALL_INSN).

import CHost
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  /// Handles a #UD exit.
  func exitForUndefined() -> Disposition {
    let start = backend[.rip] &+ (cpu.is64Bit ? 0 : backend.segment(.cs).base)
    if smm.isActive, isResume(at: start) { return leaveSystemManagement() }
    guard isQuirkOn(Quirks.fixHypercall), code(at: start) == backend.hypercall.other else {
      raise(.invalidOpcode)
      return .resume
    }
    for (offset, byte) in backend.hypercall.own.enumerated() {
      guard let place = translate(start &+ UInt64(offset)) else { continue }
      _ = writeMemory(place, count: 1) { $0.storeBytes(of: byte, as: UInt8.self) }
    }
    // The guest resumes and executes the hypercall.
    return .resume
  }

  func isQuirkOn(_ quirk: UInt64) -> Bool {
    unsafe machine.options.withLock { $0.disabledQuirks } & quirk == 0
  }

  func code(at start: UInt64, count: Int = 3) -> [UInt8] {
    (0..<count).compactMap { offset in
      translate(start &+ UInt64(offset)).flatMap { memory.load($0, as: UInt8.self) }
    }
  }

  /// MONITOR and MWAIT: no-ops, and #UD only if the client disabled the quirk and the guest's CPUID
  /// lacks them.
  func emulateMonitorWait() -> Disposition {
    if !isQuirkOn(Quirks.mwaitNeverUndefined), !hasMonitorWait {
      raise(.invalidOpcode)
    } else {
      advance()
    }
    return .resume
  }

  private var hasMonitorWait: Bool {
    cpuid.lookUp(1, 0, cpuidState).ecx & 1 << 3 != 0
  }

  /// The state that CPUID reflects.
  var cpuidState: GuestCPUID.Dynamic {
    let miscEnable = readMSR(MSR.miscEnable.rawValue, byHost: true) ?? 0
    return unsafe GuestCPUID.Dynamic(
      cr4: backend[.cr4], xcr0: cpu.s.pointee.xcr0, xss: cpu.s.pointee.xss,
      isAPICEnabled: isAPICEnabled,
      monitorWait: isQuirkOn(Quirks.miscEnableNoMwait) ? nil : miscEnable & 1 << 18 != 0)
  }
}
