// SPDX-License-Identifier: Apache-2.0
//
// Execution of x87 and MMX instructions by their stubs.
//
// An x87 stub loads the guest's whole x87 state and saves it again. Exceptions that the guest has
// unmasked become pending there, and the guest's next waiting instruction raises them, as on
// hardware. The host would record its own instruction and data pointers, so software sets the
// guest's.

import X86
import X86Decoder

enum X87Handlers {
  static let execute: Handler = { c, i in
    let c = CPU(c)
    let i = Handlers.op(i)
    return attempt(c) { () throws(GuestException) in
      let stub = i.pointee.stub
      if stub.pointee.waits { try X87Gate.check(c) } else { try X87ControlGate.check(c) }
      if stub.pointee.memorySize == 0 {
        try c.runX87(stub, i, c.bounce)
      } else if stub.pointee.writesMemory {
        try c.storeX87(stub, i)
      } else {
        try c.runX87(stub, i, try c.stubSource(stub, i))
      }
    }
  }

  /// FWAIT: only the check. #NM if both CR0.MP and TS are set.
  static let wait: Handler = { c, _ in
    let c = CPU(c)
    let both = CR0.mp.rawValue | CR0.ts.rawValue
    if c.s.pointee.cr0 & both == both { return c.raise(.deviceNotAvailable) }
    return attempt(c) { () throws(GuestException) in try c.checkPendingX87() }
  }

  static let initialize: Handler = { c, _ in
    let c = CPU(c)
    return attempt(c) { () throws(GuestException) in
      try X87ControlGate.check(c)
      c.initializeX87()
    }
  }

  static let clearExceptions: Handler = { c, _ in
    let c = CPU(c)
    return attempt(c) { () throws(GuestException) in
      try X87ControlGate.check(c)
      c.fsw &= 0x7F00
    }
  }
}

extension CPU {
  fileprivate func runX87(
    _ stub: StubPointer, _ i: MicroOpPointer, _ memory: UnsafeMutableRawPointer
  ) throws(GuestException) {
    let pointers = (fip, fdp, fop)
    mxcsr &= MXCSR.mask
    try runReporting(stub, i, memory)
    if stub.pointee.setsPointers {
      fip = currentRIP(i)
      fop = stub.pointee.opcode
      fdp = stub.pointee.memorySize != 0 ? effectiveAddress(i) : pointers.1
    } else {
      (fip, fdp, fop) = pointers
    }
  }

  /// A store pops only if it succeeds, and is discarded if the result has an unmasked exception
  /// (SDM volume 1, "x87 FPU Floating-Point Exception Handling").
  fileprivate func storeX87(_ stub: StubPointer, _ i: MicroOpPointer) throws(GuestException) {
    let address = try stubAddress(stub, i, .write)
    let reservation = try reserveWrite(address, size: stub.pointee.memorySize)
    let wasPending = fsw & X87Status.es != 0
    try withSavedX87 { () throws(GuestException) in
      try runX87(stub, i, bounce)
      let precision: UInt16 = 0x20
      let unmasked = fsw & ~fcw & X87Status.exceptions & ~precision
      if unmasked != 0 && !wasPending { return }
      try commit(reservation, from: bounce)
    }
  }

  /// Restores the x87 state if `body` throws or is aborted.
  private func withSavedX87(
    _ body: () throws(GuestException) -> Void
  ) throws(GuestException) {
    Self.copyX87(from: vectorRaw + VectorLayout.fx, to: vectorRaw + VectorLayout.kept)
    s.pointee.keepsX87 = true
    defer { s.pointee.keepsX87 = false }
    do {
      try body()
    } catch {
      restoreX87()
      throw error
    }
  }

  private static func copyX87(
    from source: UnsafeRawPointer, to destination: UnsafeMutableRawPointer
  ) {
    let control = source.loadUnaligned(as: SIMD32<UInt8>.self)
    let low = source.loadUnaligned(fromByteOffset: 32, as: SIMD64<UInt8>.self)
    let high = source.loadUnaligned(fromByteOffset: 96, as: SIMD64<UInt8>.self)
    destination.storeBytes(of: control, as: SIMD32<UInt8>.self)
    destination.storeBytes(of: low, toByteOffset: 32, as: SIMD64<UInt8>.self)
    destination.storeBytes(of: high, toByteOffset: 96, as: SIMD64<UInt8>.self)
  }

  /// Restores the state saved by `withSavedX87`.
  func restoreX87() {
    Self.copyX87(from: vectorRaw + VectorLayout.kept, to: vectorRaw + VectorLayout.fx)
  }
}

enum MMXHandlers {
  static let mmx: Handler = { executeMMX(MMXGate.self, $0, $1) }
  static let sseAndMMX: Handler = { executeMMX(SSEAndMMXGate.self, $0, $1) }

  static let empty: Handler = { c, _ in
    let c = CPU(c)
    return attempt(c) { () throws(GuestException) in
      try MMXGate.check(c)
      c.setTopZero()
      c.ftw = 0
    }
  }
}

@inline(__always) private func executeMMX<G: VectorGate>(
  _ gate: G.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let stub = i.pointee.stub
    if stub.pointee.memorySize == 0 {
      c.enterMMX()
      try c.runReporting(stub, i, c.bounce)
    } else if stub.pointee.writesMemory {
      let address = try c.stubAddress(stub, i, .write)
      let reservation = try c.reserveWrite(address, size: stub.pointee.memorySize)
      c.enterMMX()
      try c.runReporting(stub, i, c.bounce)
      try c.commit(reservation, from: c.bounce)
    } else {
      let source = try c.stubSource(stub, i)
      c.enterMMX()
      try c.runReporting(stub, i, source)
    }
  }
}
