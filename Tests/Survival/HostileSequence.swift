// SPDX-License-Identifier: Apache-2.0
//
// What random instructions seldom hit upon: registers of the machine by number with values at the
// edges, devices, the guest's own code, hypercalls.

import Support
import TestRandom
import X86
import X86Decoder

enum HostileSequence {
  /// Ranges of numbers in which processors and hypervisors have MSRs.
  private static let msrs: [ClosedRange<UInt32>] = [
    0...0x200, 0x200...0x480, 0x480...0x700, 0x800...0x8FF, 0xDA0...0xDA2,
    0x4000_0000...0x4000_0120, 0x4B56_4D00...0x4B56_4D08, 0xC000_0080...0xC000_0104,
    0xC001_0000...0xC001_0210, 0xC001_1020...0xC001_1040, 0xFFFF_FFF0...0xFFFF_FFFF,
  ]
  /// First ports of the chips and devices of a PC.
  private static let ports: [UInt16] = [
    0x20, 0xA0, 0x40, 0x61, 0x70, 0x60, 0x64, 0x3F8, 0x4D0, 0xCF8, 0xCF9, 0x600, 0xB2, 0xF4, 0x80,
    0xFFFF,
  ]

  static func append(_ code: inout HostileCode, _ address: UInt64, _ bytes: inout [UInt8]) {
    switch code.random.below(10) {
    case 0, 1: appendMSR(&code, &bytes)
    case 2, 3: appendPort(&code, &bytes)
    case 4: appendControl(&code, &bytes)
    case 5: appendChip(&code, &bytes)
    case 6: appendString(&code, address, &bytes)
    case 7: appendCall(&code, &bytes)
    case 8: appendCodeWrite(&code, &bytes)
    default:
      move(code.random.below(8), address, &code, &bytes)
    }
  }

  /// mov register, value: as wide as the mode allows.
  private static func move(
    _ register: Int, _ value: UInt64, _ code: inout HostileCode, _ bytes: inout [UInt8]
  ) {
    if code.mode == .bits64 { bytes.append(0x48) }
    if code.mode == .bits16 { bytes.append(0x66) }
    bytes.append(0xB8 | UInt8(register & 7))
    code.append(value, code.mode == .bits64 ? 8 : 4, &bytes)
  }

  private static func appendMSR(_ code: inout HostileCode, _ bytes: inout [UInt8]) {
    let range = msrs[code.random.below(msrs.count)]
    let number = range.lowerBound &+ UInt32(code.random.below(range.count))
    move(1, UInt64(number), &code, &bytes)
    move(0, code.number(), &code, &bytes)
    move(2, code.random.oneIn(2) ? 0 : code.number(), &code, &bytes)
    bytes += [0x0F, code.random.oneIn(3) ? 0x32 : 0x30]
    if code.random.oneIn(8) { bytes += [0x0F, [0x01, 0x33][code.random.below(2)], 0xD1] }
  }

  private static func appendPort(_ code: inout HostileCode, _ bytes: inout [UInt8]) {
    let port = ports[code.random.below(ports.count)] &+ UInt16(code.random.below(8))
    move(2, UInt64(port), &code, &bytes)
    for _ in 0..<(1 + code.random.below(4)) {
      move(0, code.random.oneIn(2) ? UInt64(code.random.byte()) : code.number(), &code, &bytes)
      if code.random.oneIn(6) { bytes.append(0x66) }
      if code.random.oneIn(8) {
        move(1, UInt64(code.random.below(40)), &code, &bytes)
        bytes += [0xF3, 0x6C | code.random.byte() & 3]
      } else {
        bytes.append(0xEC | code.random.byte() & 3)
      }
    }
  }

  /// Control and debug registers, descriptor-table registers, XCR0.
  private static func appendControl(_ code: inout HostileCode, _ bytes: inout [UInt8]) {
    if code.random.oneIn(2) {
      // One bit of a control register changes.
      let register = [0, 3, 4, 4, 8][code.random.below(5)]
      let rex: [UInt8] = register == 8 && code.mode == .bits64 ? [0x44] : []
      let modRM = 0xC0 | UInt8(register & 7) << 3
      bytes += rex + [0x0F, 0x20, modRM]
      bytes += [0x0F, 0xBA, 0xF8, UInt8(code.random.below(32))]
      bytes += rex + [0x0F, 0x22, modRM]
      return
    }
    move(0, code.number(), &code, &bytes)
    move(2, 0, &code, &bytes)
    move(1, UInt64(code.random.below(2)), &code, &bytes)
    switch code.random.below(4) {
    case 0: bytes += [0x0F, 0x01, 0xD1]
    case 1: bytes += [0x0F, 0x23, 0xC0 | code.random.byte() & 0x38]
    case 2: bytes += [0x0F, 0x22, 0xC0 | [0, 2, 3, 4][code.random.below(4)] << 3]
    default: bytes += [0x0F, 0x00, 0xD0 | code.random.byte() & 0xF]
    }
  }

  /// Registers of the local APIC and the I/O APIC.
  private static func appendChip(_ code: inout HostileCode, _ bytes: inout [UInt8]) {
    let isLocal = !code.random.oneIn(3)
    let offset = UInt64(code.random.below(isLocal ? 0x41 : 0x5)) << 4
    let start: UInt64 = isLocal ? 0xFEE0_0000 : 0xFEC0_0000
    move(3, start | offset, &code, &bytes)
    let prefix: [UInt8] = code.mode == .bits16 ? [0x66, 0x67] : []
    let stores = [0x89, 0x8B, 0x01, 0x87, 0x88, 0xFF, 0x31] as [UInt8]
    for _ in 0..<2 {
      move(0, code.random.oneIn(2) ? UInt64(code.random.byte()) : code.number(), &code, &bytes)
      bytes += prefix + [stores[code.random.below(stores.count)], 0x03]
    }
  }

  /// Strings with counts and pointers that overlap, wrap and never end.
  private static func appendString(
    _ code: inout HostileCode, _ address: UInt64, _ bytes: inout [UInt8]
  ) {
    move(6, address, &code, &bytes)
    move(7, address &+ UInt64(code.random.below(32)) &- 16, &code, &bytes)
    move(1, code.random.oneIn(4) ? code.number() : UInt64(code.random.below(300)), &code, &bytes)
    if code.random.oneIn(3) { bytes.append(0xFD) }
    if code.mode == .bits64 && code.random.oneIn(2) {
      bytes += [0xF2 | code.random.byte() & 1, 0x48]
    } else {
      bytes.append(0xF2 | code.random.byte() & 1)
    }
    bytes.append(
      [0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF][code.random.below(10)])
    bytes.append(0xFC)
  }

  private static func appendCall(_ code: inout HostileCode, _ bytes: inout [UInt8]) {
    move(0, UInt64(code.random.below(14)), &code, &bytes)
    for register in [1, 2, 3, 6] { move(register, code.number(), &code, &bytes) }
    let calls: [[UInt8]] = [
      [0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9], [0x0F, 0xA2], [0x0F, 0x01, 0xF9], [0x0F, 0x34],
      [0x0F, 0x05], [0x0F, 0x35], [0x0F, 0x07], [0x48, 0xCF], [0xCF], [0xCB], [0x0F, 0xAA],
    ]
    bytes += calls[code.random.below(calls.count)]
  }

  /// mov [rip + a little], anything.
  private static func appendCodeWrite(_ code: inout HostileCode, _ bytes: inout [UInt8]) {
    guard code.mode == .bits64 else {
      move(3, UInt64(HostileMemory.Place.code + code.random.below(0x8000)), &code, &bytes)
      bytes += [0x89, 0x03]
      return
    }
    bytes += [0xC6, 0x05]
    code.append(UInt64(bitPattern: Int64(code.random.below(128)) - 64), 4, &bytes)
    bytes.append(code.random.byte())
  }
}
