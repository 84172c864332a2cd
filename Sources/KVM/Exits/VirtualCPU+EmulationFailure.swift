// SPDX-License-Identifier: Apache-2.0
//
// Instructions that cannot be emulated; and guests whose CPUID has a smaller MAXPHYADDR than the
// processor (KVM_CAP_SMALLER_MAXPHYADDR). For those, page-table bits beyond their MAXPHYADDR are
// reserved, but the processor takes them for address bits. No slot is there, so the access exits,
// and the handler here raises the page fault.

import CHost
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  /// KVM_INTERNAL_ERROR_EMULATION, with the instruction's bytes if they can be read.
  func emulationFailed() -> Disposition {
    let start = backend[.rip] &+ (cpu.is64Bit ? 0 : backend.segment(.cs).base)
    let bytes = code(at: start, count: 15)
    guard !bytes.isEmpty else { return internalError(KVM_INTERNAL_ERROR_EMULATION) }
    // Flags; then a byte with the count, and the bytes.
    var data: [UInt64] = [
      UInt64(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES), UInt64(bytes.count), 0,
    ]
    for (index, byte) in bytes.enumerated() {
      let place = index + 1
      data[1 + place / 8] |= UInt64(byte) << UInt64(place % 8 * 8)
    }
    return internalError(KVM_INTERNAL_ERROR_EMULATION, data: data)
  }

  /// Whether a physical address exceeds the guest's MAXPHYADDR.
  func isBeyondWidth(_ address: UInt64) -> Bool {
    guard let width = cpuid.physicalAddressBits, width < 64 else { return false }
    return address >> width != 0
  }

  /// Raises #PF with the reserved bit. Linux emulates the instruction to find this out, so a client
  /// of KVM_CAP_EXIT_ON_EMULATION_FAILURE gets an exit if it cannot be emulated.
  func accessBeyondWidth(linear: UInt64, isWrite: Bool, isFetch: Bool) -> Disposition {
    let start = backend[.rip] &+ (cpu.is64Bit ? 0 : backend.segment(.cs).base)
    if unsafe machine.options.withLock({ $0.tellsEmulationFailures }),
      Self.isX87(code(at: start, count: 15))
    {
      return emulationFailed()
    }
    var code: PageFaultCode = [.present, .reserved]
    if isWrite { code.insert(.write) }
    if isFetch { code.insert(.instructionFetch) }
    if cpu.cpl == 3 { code.insert(.user) }
    unsafe cpu.s.pointee.cr2 = linear
    raise(GuestException(.pageFault, code: code.rawValue))
    return .resume
  }

  /// Skips legacy prefixes and REX.
  private static func isX87(_ bytes: [UInt8]) -> Bool {
    let prefixes: [UInt8] = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3]
    let opcode = bytes.first { !prefixes.contains($0) && $0 & 0xF0 != 0x40 }
    return opcode.map { $0 & 0xF8 == 0xD8 } ?? false
  }
}
