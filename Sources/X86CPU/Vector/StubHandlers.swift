// SPDX-License-Identifier: Apache-2.0
//
// Handlers that run an instruction's stub. The micro-op's `immediate` points at the VectorStub and
// its `dst` at the general register (or anywhere if the stub does not use it).
//
// There is one handler for each combination of gate, memory operand (none, read, write), and
// whether the stub reports flags or exceptions.

import X86
import X86Decoder

extension MicroOp {
  @inline(__always) var stub: StubPointer {
    StubPointer(bitPattern: UInt(immediate)).unsafelyUnwrapped
  }
}

extension CPU {
  @inline(__always) func run(
    _ stub: StubPointer, _ i: MicroOpPointer, _ memory: UnsafeMutableRawPointer
  ) -> UInt64 {
    stub.pointee.code(vectorRaw, memory, i.pointee.dst, 0)
  }

  @inline(__always) func runReporting(
    _ stub: StubPointer, _ i: MicroOpPointer, _ memory: UnsafeMutableRawPointer
  ) throws(GuestException) {
    let result = stub.pointee.code(vectorRaw, memory, i.pointee.dst, arithmeticFlags | 2)
    if result & StubResult.exception != 0 { throw simdException(result) }
    if stub.pointee.writesFlags { arithmeticFlags = result }
  }

  /// Records the flags of an unmasked SIMD exception and returns what to throw. An exception
  /// detected before the operation hides those that only its result would raise.
  @inline(never) func simdException(_ result: UInt64) -> GuestException {
    var raised = UInt32(truncatingIfNeeded: result & 0x3F)
    let unmasked = ~(mxcsr >> 7) & 0x3F
    let preComputation: UInt32 = 7
    if raised & unmasked & preComputation != 0 { raised &= preComputation }
    mxcsr |= raised
    let isEnabled = s.pointee.cr4 & CR4.osxmmexcpt.rawValue != 0
    return isEnabled ? GuestException(.simdFloatingPoint) : .invalidOpcode
  }

  /// The address of a stub's memory operand, with its alignment checked.
  @inline(__always) func stubAddress(
    _ stub: StubPointer, _ i: MicroOpPointer, _ access: AccessKind
  ) throws(GuestException) -> UInt64 {
    let address = try linearAddress(i, size: stub.pointee.memorySize, access)
    if address & stub.pointee.alignmentMask != 0 { throw .generalProtection }
    return address
  }

  @inline(__always) func stubSource(
    _ stub: StubPointer, _ i: MicroOpPointer
  ) throws(GuestException) -> UnsafeMutableRawPointer {
    let address = try stubAddress(stub, i, .read)
    do {
      let source = try pointerForRead(address, size: stub.pointee.memorySize)
      return UnsafeMutableRawPointer(mutating: source)
    } catch {
      guard stub.pointee.mask.kind != .none else { throw error }
      return UnsafeMutableRawPointer(mutating: try maskedRead(address, stub))
    }
  }
}

@inline(__always) private func runRegister<G: VectorGate>(
  _ gate: G.Type, reports: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    if reports {
      try c.runReporting(i.pointee.stub, i, c.bounce)
    } else {
      _ = c.run(i.pointee.stub, i, c.bounce)
    }
  }
}

@inline(__always) private func runLoad<G: VectorGate>(
  _ gate: G.Type, reports: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let stub = i.pointee.stub
    let source = try c.stubSource(stub, i)
    if reports {
      try c.runReporting(stub, i, source)
    } else {
      _ = c.run(stub, i, source)
    }
  }
}

@inline(__always) private func runStore<G: VectorGate>(
  _ gate: G.Type, reports: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let stub = i.pointee.stub
    let address = try c.stubAddress(stub, i, .write)
    if !reports, stub.pointee.mask.kind == .none,
      let target = try c.pointerForModify(address, size: stub.pointee.memorySize)
    {
      _ = c.run(stub, i, target)
      return
    }
    try c.storeThroughBounce(i, address)
  }
}

extension CPU {
  /// A store that is masked, crosses pages, has no host pointer or may be discarded.
  @inline(never) func storeThroughBounce(
    _ i: MicroOpPointer, _ address: UInt64
  ) throws(GuestException) {
    let stub = i.pointee.stub
    let mask = stub.pointee.mask
    guard mask.kind != .none else {
      let reservation = try reserveWrite(address, size: stub.pointee.memorySize)
      // A masked store that may touch all of its operand must still change only active elements.
      prefill(bounce, from: reservation)
      try runReporting(stub, i, bounce)
      try commit(reservation, from: bounce)
      return
    }
    let active = activeElements(mask)
    let size = Int(mask.elementSize)
    try reserveElements(address, active, size: size)
    try runReporting(stub, i, bounce)
    try commitElements(address, active, size: size, from: bounce)
  }
}

/// The handlers of one gate.
struct StubHandlers {
  var register: Handler
  var load: Handler
  var store: Handler
  var registerReporting: Handler
  var loadReporting: Handler
  var storeReporting: Handler

  func handler(memory: Operand?, reports: Bool) -> Handler {
    guard let memory else { return reports ? registerReporting : register }
    if memory.access.contains(.write) { return reports ? storeReporting : store }
    return reports ? loadReporting : load
  }

  static let sse = StubHandlers(
    register: { runRegister(SSEGate.self, reports: false, $0, $1) },
    load: { runLoad(SSEGate.self, reports: false, $0, $1) },
    store: { runStore(SSEGate.self, reports: false, $0, $1) },
    registerReporting: { runRegister(SSEGate.self, reports: true, $0, $1) },
    loadReporting: { runLoad(SSEGate.self, reports: true, $0, $1) },
    storeReporting: { runStore(SSEGate.self, reports: true, $0, $1) })

  static let avx = StubHandlers(
    register: { runRegister(AVXGate.self, reports: false, $0, $1) },
    load: { runLoad(AVXGate.self, reports: false, $0, $1) },
    store: { runStore(AVXGate.self, reports: false, $0, $1) },
    registerReporting: { runRegister(AVXGate.self, reports: true, $0, $1) },
    loadReporting: { runLoad(AVXGate.self, reports: true, $0, $1) },
    storeReporting: { runStore(AVXGate.self, reports: true, $0, $1) })

  static let avx512 = StubHandlers(
    register: { runRegister(AVX512Gate.self, reports: false, $0, $1) },
    load: { runLoad(AVX512Gate.self, reports: false, $0, $1) },
    store: { runStore(AVX512Gate.self, reports: false, $0, $1) },
    registerReporting: { runRegister(AVX512Gate.self, reports: true, $0, $1) },
    loadReporting: { runLoad(AVX512Gate.self, reports: true, $0, $1) },
    storeReporting: { runStore(AVX512Gate.self, reports: true, $0, $1) })
}
