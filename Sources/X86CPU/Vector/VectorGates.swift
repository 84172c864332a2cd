// SPDX-License-Identifier: Apache-2.0
//
// Whether the control registers allow a vector or x87 instruction (SDM volume 2, "Instruction
// Exception Specification"; volume 3, "Processor Control of x87 FPU, MMX, and SSE"). #UD precedes
// #NM, #NM precedes #MF, and all precede the memory operand's faults.

import X86

/// One class of instructions.
protocol VectorGate {
  static func check(_ c: CPU) throws(GuestException)
}

private let emOrTS = CR0.em.rawValue | CR0.ts.rawValue

/// Legacy SSE.
enum SSEGate: VectorGate {
  @inline(__always) static func check(_ c: CPU) throws(GuestException) {
    let cr0 = c.s.pointee.cr0
    let blocked = cr0 & emOrTS | ~c.s.pointee.cr4 & CR4.osfxsr.rawValue
    if blocked == 0 { return }
    throw blocked == CR0.ts.rawValue ? .deviceNotAvailable : .invalidOpcode
  }
}

/// VEX. In real and virtual-8086 mode lowering has already selected #UD.
enum AVXGate: VectorGate {
  @inline(__always) static func check(_ c: CPU) throws(GuestException) {
    try checkExtended(c, [.sse, .avx])
  }
}

/// EVEX, and VEX instructions on mask registers.
enum AVX512Gate: VectorGate {
  @inline(__always) static func check(_ c: CPU) throws(GuestException) {
    try checkExtended(c, [.sse, .avx, .opmask, .zmmHi256, .hi16ZMM])
  }
}

@inline(__always) private func checkExtended(_ c: CPU, _ need: XCR0) throws(GuestException) {
  let missing = ~c.s.pointee.xcr0 & need.rawValue
  if missing != 0 || c.s.pointee.cr4 & CR4.osxsave.rawValue == 0 { throw .invalidOpcode }
  if c.s.pointee.cr0 & CR0.ts.rawValue != 0 { throw .deviceNotAvailable }
}

/// MMX registers only.
enum MMXGate: VectorGate {
  @inline(__always) static func check(_ c: CPU) throws(GuestException) {
    let cr0 = c.s.pointee.cr0
    if cr0 & CR0.em.rawValue != 0 { throw .invalidOpcode }
    if cr0 & CR0.ts.rawValue != 0 { throw .deviceNotAvailable }
    try c.checkPendingX87()
  }
}

/// Conversions and moves between XMM and MMX registers.
enum SSEAndMMXGate: VectorGate {
  @inline(__always) static func check(_ c: CPU) throws(GuestException) {
    try SSEGate.check(c)
    try c.checkPendingX87()
  }
}

/// x87 instructions that do not wait.
enum X87ControlGate: VectorGate {
  @inline(__always) static func check(_ c: CPU) throws(GuestException) {
    if c.s.pointee.cr0 & emOrTS != 0 { throw .deviceNotAvailable }
  }
}

/// x87 instructions that wait.
enum X87Gate: VectorGate {
  @inline(__always) static func check(_ c: CPU) throws(GuestException) {
    try X87ControlGate.check(c)
    try c.checkPendingX87()
  }
}

extension CPU {
  /// #MF if an unmasked x87 exception is pending. With CR0.NE clear it would be an external
  /// interrupt, which is not modelled.
  @inline(__always) func checkPendingX87() throws(GuestException) {
    if fsw & X87Status.es != 0 { throw GuestException(.x87FloatingPoint) }
  }
}

/// Bits of the x87 status word (SDM volume 1, "x87 FPU Status Register").
enum X87Status {
  static let exceptions: UInt16 = 0x3F
  static let es: UInt16 = 1 << 7
  static let busy: UInt16 = 1 << 15
  static let topShift: UInt16 = 11
  static let top: UInt16 = 7 << 11
}
