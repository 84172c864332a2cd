// SPDX-License-Identifier: Apache-2.0
//
// LDMXCSR, STMXCSR, VZEROUPPER, VZEROALL, MASKMOVQ and MASKMOVDQU.

import X86
import X86Decoder

enum VectorControl {
  static func register(_ t: inout LoweringTable) {
    add(.ldmxcsr, { loadMXCSR(SSEGate.self, $0, $1) }, &t)
    add(.vldmxcsr, { loadMXCSR(AVXGate.self, $0, $1) }, &t)
    add(.stmxcsr, { storeMXCSR(SSEGate.self, $0, $1) }, &t)
    add(.vstmxcsr, { storeMXCSR(AVXGate.self, $0, $1) }, &t)
    add(.vzeroupper, { c, _ in zero(from: 16, c) }, &t)
    add(.vzeroall, { c, _ in zero(from: 0, c) }, &t)
    add(.maskmovdqu, { maskedMove(SSEGate.self, $0, $1) }, &t)
    add(.vmaskmovdqu, { maskedMove(AVXGate.self, $0, $1) }, &t)
    add(.maskmovq, maskedMoveMMX, &t)
  }

  private static func add(
    _ mnemonic: Mnemonic, _ handler: @escaping Handler, _ t: inout LoweringTable
  ) {
    t[mnemonic] = .custom { i, _, c in VectorInstructions.isAvailable(i, c) ? handler : nil }
  }

  private static let maskedMoveMMX: Handler = { c, i in
    let c = CPU(c)
    let i = Handlers.op(i)
    return attempt(c) { () throws(GuestException) in
      try MMXGate.check(c)
      c.enterMMX()
      try c.maskedMove(
        c.st(Int(i.pointee.register0 & 7)), c.st(Int(i.pointee.register1 & 7)), size: 8, i)
    }
  }
}

@inline(__always) private func loadMXCSR<G: VectorGate>(
  _ gate: G.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let value = try c.load(try c.linearAddress(Handlers.op(i), size: 4), as: UInt32.self)
    if value & ~MXCSR.mask != 0 { throw .generalProtection }
    c.mxcsr = value
  }
}

@inline(__always) private func storeMXCSR<G: VectorGate>(
  _ gate: G.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    try c.store(c.mxcsr, at: try c.linearAddress(Handlers.op(i), size: 4, .write))
  }
}

/// VZEROUPPER and VZEROALL: registers 0 to 15, or 0 to 7 outside 64-bit mode.
@inline(__always) private func zero(from first: Int, _ c: RawPointer) -> Int32 {
  let c = CPU(c)
  return attempt(c) { () throws(GuestException) in
    try AVXGate.check(c)
    let count: UInt8 = c.is64Bit ? 16 : 8
    for number in 0..<count { c.clearAbove(c.vectorRegister(number), first) }
  }
}

@inline(__always) private func maskedMove<G: VectorGate>(
  _ gate: G.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    try c.maskedMove(i.pointee.dst, i.pointee.src, size: 16, i)
  }
}

extension CPU {
  /// Stores the bytes of `source` whose mask bytes have their top bit set to [rDI].
  @inline(never) fileprivate func maskedMove(
    _ source: UnsafeMutableRawPointer, _ mask: UnsafeMutableRawPointer, size: Int,
    _ i: MicroOpPointer
  ) throws(GuestException) {
    var active: UInt64 = 0
    for n in 0..<size where mask.load(fromByteOffset: n, as: UInt8.self) & 0x80 != 0 {
      active |= 1 << UInt64(n)
    }
    var offset = gpr[7]
    if i.pointee.addressSize == 4 { offset &= 0xFFFF_FFFF }
    if i.pointee.addressSize == 2 { offset &= 0xFFFF }
    let segment = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    let address = try linear(segment, offset, size: size, .write)
    try reserveElements(address, active, size: 1)
    try commitElements(address, active, size: 1, from: source)
  }
}
