// SPDX-License-Identifier: Apache-2.0

/// Writes the native executor's stubs. Memory is addressed by absolute addresses below 2 GiB.
struct CodeWriter {
  let start: UnsafeMutableRawPointer
  /// Where `start` will be executed.
  let linear: UInt64
  private(set) var count = 0

  init(_ start: UnsafeMutableRawPointer, linear: UInt64) {
    self.start = start
    self.linear = linear
  }

  var here: UInt64 { linear + UInt64(count) }

  mutating func bytes(_ values: UInt8...) {
    for value in values {
      start.storeBytes(of: value, toByteOffset: count, as: UInt8.self)
      count += 1
    }
  }

  mutating func dword(_ value: UInt32) {
    start.storeBytes(of: value, toByteOffset: count, as: UInt32.self)
    count += 4
  }

  /// ModRM, SIB and displacement of `[address]` with a reg field.
  mutating func absolute(_ reg: UInt8, _ address: UInt64) {
    bytes((reg & 7) << 3 | 4, 0x25)
    dword(UInt32(truncatingIfNeeded: address))
  }

  mutating func load(_ register: UInt8, _ address: UInt64) {
    bytes(register >= 8 ? 0x4C : 0x48, 0x8B)
    absolute(register, address)
  }

  mutating func store(_ register: UInt8, _ address: UInt64) {
    bytes(register >= 8 ? 0x4C : 0x48, 0x89)
    absolute(register, address)
  }

  mutating func jump(to target: UInt64) {
    bytes(0xE9)
    dword(UInt32(truncatingIfNeeded: target &- (here + 4)))
  }

  mutating func jump(through address: UInt64) {
    bytes(0xFF)
    absolute(4, address)
  }

  mutating func push(_ register: UInt8) {
    if register >= 8 { bytes(0x41) }
    bytes(0x50 | register & 7)
  }

  mutating func pop(_ register: UInt8) {
    if register >= 8 { bytes(0x41) }
    bytes(0x58 | register & 7)
  }

  /// mov dword [address], value
  mutating func setDword(_ address: UInt64, _ value: UInt32) {
    bytes(0xC7)
    absolute(0, address)
    dword(value)
  }

  /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE (0 to 3) with RAX.
  mutating func baseOfSegment(_ which: UInt8) { bytes(0xF3, 0x48, 0x0F, 0xAE, 0xC0 | which << 3) }

  /// Moves a vector register of 16, 32 or 64 bytes.
  mutating func moveVector(_ register: UInt8, _ address: UInt64, size: Int, store: Bool) {
    let r: UInt8 = register & 8 != 0 ? 0 : 0x80
    let opcode: UInt8 = store ? 0x7F : 0x6F
    switch size {
    case 64: bytes(0x62, r | 0x61 | (register & 16 != 0 ? 0 : 0x10), 0xFE, 0x48, opcode)
    case 32: bytes(0xC5, r | 0x7E, opcode)
    default:
      bytes(0xF3)
      if r == 0 { bytes(0x44) }
      bytes(0x0F, opcode)
    }
    absolute(register, address)
  }

  /// KMOVQ k, [address] or back.
  mutating func moveMask(_ register: UInt8, _ address: UInt64, store: Bool) {
    bytes(0xC4, 0xE1, 0xF8, store ? 0x91 : 0x90)
    absolute(register, address)
  }
}
