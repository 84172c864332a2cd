// SPDX-License-Identifier: Apache-2.0
//
// Gathers and scatters, element by element. A finished element's mask is cleared, so that after a
// fault the instruction can continue when it is executed again (SDM volume 2, "VGATHERDPS",
// "VPSCATTERDD"): the only exception to the rule that a faulting instruction changes nothing.

import X86
import X86Decoder

/// A gather or scatter, packed into a micro-op's `immediate`; `dst` is the vector operand, `src`
/// VEX's mask register.
private struct IndexedAccess {
  var index: UInt8
  var dataSize: UInt8
  var indexSize: UInt8
  var count: UInt8
  var scale: UInt8
  /// EVEX's mask register.
  var opmask: UInt8

  init(_ i: Instruction) {
    let opcode = i.encoding.opcode
    let quadData = i.encoding.vexW
    let quadIndex = opcode & 1 != 0
    index = i.index
    dataSize = quadData ? 8 : 4
    indexSize = quadIndex ? 8 : 4
    count = i.encoding.vectorLength / max(dataSize, indexSize)
    scale = i.scale
    opmask = i.encoding.evexMask
  }

  var packed: UInt64 {
    let low = UInt64(index) | UInt64(dataSize) << 8 | UInt64(indexSize) << 16
    return low | UInt64(count) << 24 | UInt64(scale) << 32 | UInt64(opmask) << 40
  }

  init(packed: UInt64) {
    func byte(_ shift: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: packed >> shift) }
    index = byte(0)
    dataSize = byte(8)
    indexSize = byte(16)
    count = byte(24)
    scale = byte(32)
    opmask = byte(40)
  }
}

enum GatherScatter {
  static func register(_ t: inout LoweringTable) {
    let gathers: [Mnemonic] = [
      .vgatherdpd, .vgatherdps, .vgatherqpd, .vgatherqps, .vpgatherdd, .vpgatherdq, .vpgatherqd,
      .vpgatherqq,
    ]
    let scatters: [Mnemonic] = [
      .vscatterdpd, .vscatterdps, .vscatterqpd, .vscatterqps, .vpscatterdd, .vpscatterdq,
      .vpscatterqd, .vpscatterqq,
    ]
    for mnemonic in gathers {
      t[mnemonic] = .custom { i, op, c in
        guard lower(i, op, c) else { return nil }
        op.pointee.dst = c.vectorRegister(i.operands[0].number)
        if i.prefixes.contains(.evex) { return gatherEVEX }
        op.pointee.src = c.vectorRegister(i.encoding.vvvv)
        return gatherVEX
      }
    }
    for mnemonic in scatters {
      t[mnemonic] = .custom { i, op, c in
        guard lower(i, op, c) else { return nil }
        op.pointee.dst = c.vectorRegister(i.operands[1].number)
        return scatter
      }
    }
  }

  private static func lower(_ i: Instruction, _ op: MicroOpPointer, _ c: CPU) -> Bool {
    guard VectorInstructions.isAvailable(i, c) else { return false }
    op.pointee.immediate = IndexedAccess(i).packed
    return true
  }

  private static let gatherVEX: Handler = { c, i in
    let c = CPU(c)
    let i = Handlers.op(i)
    return attempt(c) { () throws(GuestException) in
      try AVXGate.check(c)
      let access = IndexedAccess(packed: i.pointee.immediate)
      let mask = i.pointee.src
      let size = Int(access.dataSize)
      for element in 0..<Int(access.count) {
        let signByte = mask + element * size + size - 1
        if signByte.load(as: UInt8.self) & 0x80 != 0 {
          try c.withoutAlignmentChecks { () throws(GuestException) in
            try c.gather(element, access, i)
          }
        }
        (mask + element * size).initializeMemory(as: UInt8.self, repeating: 0, count: size)
      }
      mask.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
      c.clearAbove(i.pointee.dst, Int(access.count) * size)
    }
  }

  private static let gatherEVEX: Handler = { c, i in
    let c = CPU(c)
    let i = Handlers.op(i)
    return attempt(c) { () throws(GuestException) in
      try AVX512Gate.check(c)
      let access = IndexedAccess(packed: i.pointee.immediate)
      let mask = c.opmask + Int(access.opmask & 7)
      let length = Int(access.count) * Int(max(access.dataSize, access.indexSize))
      for element in 0..<Int(access.count) where mask.pointee >> UInt64(element) & 1 != 0 {
        try c.withoutAlignmentChecks { () throws(GuestException) in
          try c.gather(element, access, i)
        }
        // Clear above the vector length now, in case a later element faults.
        c.clearAbove(i.pointee.dst, length)
        mask.pointee &= ~(1 << UInt64(element))
      }
      mask.pointee = 0
      c.clearAbove(i.pointee.dst, Int(access.count) * Int(access.dataSize))
    }
  }

  private static let scatter: Handler = { c, i in
    let c = CPU(c)
    let i = Handlers.op(i)
    return attempt(c) { () throws(GuestException) in
      try AVX512Gate.check(c)
      let access = IndexedAccess(packed: i.pointee.immediate)
      let mask = c.opmask + Int(access.opmask & 7)
      for element in 0..<Int(access.count) where mask.pointee >> UInt64(element) & 1 != 0 {
        let address = try c.elementAddress(element, access, i, .write)
        let source = i.pointee.dst + element * Int(access.dataSize)
        try c.withoutAlignmentChecks { () throws(GuestException) in
          if access.dataSize == 8 {
            try c.store(source.load(as: UInt64.self), at: address)
          } else {
            try c.store(source.load(as: UInt32.self), at: address)
          }
        }
        mask.pointee &= ~(1 << UInt64(element))
      }
      mask.pointee = 0
    }
  }
}

extension CPU {
  fileprivate func elementAddress(
    _ element: Int, _ access: IndexedAccess, _ i: MicroOpPointer, _ kind: AccessKind
  ) throws(GuestException) -> UInt64 {
    let indices = vectorRegister(access.index)
    let index =
      access.indexSize == 8
      ? indices.load(fromByteOffset: element * 8, as: UInt64.self)
      : UInt64(
        bitPattern: Int64(indices.load(fromByteOffset: element * 4, as: Int32.self)))
    var offset = effectiveAddress(i) &+ index &<< UInt64(access.scale & 3)
    let flags = i.pointee.addressFlags
    if flags & AddressFlags.mask32 != 0 { offset &= 0xFFFF_FFFF }
    if flags & AddressFlags.mask16 != 0 { offset &= 0xFFFF }
    let segment = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    return try linear(segment, offset, size: Int(access.dataSize), kind)
  }

  fileprivate func gather(
    _ element: Int, _ access: IndexedAccess, _ i: MicroOpPointer
  ) throws(GuestException) {
    let address = try elementAddress(element, access, i, .read)
    let target = i.pointee.dst + element * Int(access.dataSize)
    if access.dataSize == 8 {
      target.storeBytes(of: try load(address), as: UInt64.self)
    } else {
      target.storeBytes(of: try load(address), as: UInt32.self)
    }
  }

  /// Zeroes a vector register from byte `count` on.
  func clearAbove(_ register: UnsafeMutableRawPointer, _ count: Int) {
    (register + count).initializeMemory(as: UInt8.self, repeating: 0, count: 64 - count)
  }
}
