// SPDX-License-Identifier: Apache-2.0
//
// Measures how fast a KVM is. The device file says nothing about it: a KVM may interpret a guest's
// supervisor code at hundreds of nanoseconds an instruction. The probe is a guest with a loop of
// two instructions, run in user mode and in supervisor mode.

import CHost
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import SystemPackage
import X86

/// Nanoseconds per guest instruction.
package struct EngineSpeed: Sendable {
  package let supervisor: Double
  package let user: Double

  /// Above this a KVM is assumed to interpret supervisor code.
  package static let slowest = 50.0
  package var isUsable: Bool { supervisor < Self.slowest }
}

/// The probe guest.
struct EngineProbe {
  // 1000: dec ecx; jnz 1000; out 0x10, al
  private static let code: [UInt8] = [0x49, 0x75, 0xFD, 0xE6, 0x10]
  private static let codeAddress: UInt64 = 0x1000
  private static let instructionsPerRound = 2.0
  /// First enough rounds to tell slow from fast in a millisecond or two, then more for an exact
  /// figure.
  private static let firstRounds: UInt64 = 1000
  private static let exactRounds: UInt64 = 400_000

  private let memory: GuestMemory
  private let machine: MachineHandle
  private let cpu: VirtualCPUHandle

  /// Measures a KVM in a few milliseconds.
  static func measure(_ transport: any KVMTransport) throws(Errno) -> EngineSpeed {
    let probe = try EngineProbe(transport)
    return EngineSpeed(
      supervisor: try probe.nanosecondsPerInstruction(privilege: 0),
      user: try probe.nanosecondsPerInstruction(privilege: 3))
  }

  private init(_ transport: any KVMTransport) throws(Errno) {
    memory = try unsafe GuestMemory(size: 0x1_0000)
    machine = try System(transport: transport).createMachine()
    _ = memory.write(Self.code, at: Self.codeAddress)
    for region in memory.regions {
      try unsafe machine.setMemory(
        slot: 0, guestAddress: region.guestAddress, size: region.size,
        hostAddress: region.hostAddress)
    }
    cpu = try machine.createVirtualCPU(0)
  }

  private func nanosecondsPerInstruction(privilege: UInt8) throws(Errno) -> Double {
    var special = try cpu.specialRegisters()
    special.cr0 = CR0([.pe, .et]).rawValue
    special.cs = Self.segment(type: 11, privilege)
    special.ss = Self.segment(type: 3, privilege)
    (special.ds, special.es) = (special.ss, special.ss)
    try cpu.setSpecialRegisters(special)
    _ = try run(rounds: 10)
    let first = try run(rounds: Self.firstRounds)
    guard first < EngineSpeed.slowest else { return first }
    return try run(rounds: Self.exactRounds)
  }

  private func run(rounds: UInt64) throws(Errno) -> Double {
    var registers = kvm_regs()
    registers.rip = Self.codeAddress
    registers.rcx = rounds
    registers.rflags = RFLAGS([.fixed, .iopl]).rawValue
    try cpu.setRegisters(registers)
    let start = HostClock.monotonic()
    while true {
      switch try cpu.run() {
      case .interrupted: continue
      case .io:
        let time = HostClock.monotonic() - start
        return Double(time) / (Double(rounds) * Self.instructionsPerRound)
      default: throw .ioError
      }
    }
  }

  private static func segment(type: UInt8, _ privilege: UInt8) -> kvm_segment {
    var segment = kvm_segment()
    segment.limit = 0xFFFF_FFFF
    segment.selector = (type == 11 ? 8 : 16) | UInt16(privilege)
    segment.type = type
    segment.present = 1
    segment.dpl = privilege
    segment.db = 1
    segment.s = 1
    segment.g = 1
    return segment
  }
}
