// SPDX-License-Identifier: Apache-2.0
//
// `CPU` is one pointer to a CPUState with the operations on it. Handlers, MMU and event delivery
// take it; it owns nothing (PhysicalCPU does) and costs nothing to pass.
//
//     func push(_ c: CPU, _ value: UInt64) throws(GuestException) {
//       try c.store(value, at: c.gpr[4] &- 8)
//       c.gpr[4] &-= 8
//     }

import X86
import X86Decoder

package struct CPU {
  package let raw: UnsafeMutableRawPointer

  @inline(__always) package init(_ raw: UnsafeMutableRawPointer) { self.raw = raw }

  @inline(__always) package var s: UnsafeMutablePointer<CPUState> {
    raw.assumingMemoryBound(to: CPUState.self)
  }

  /// The general registers: `gpr` is the first field of the state.
  @inline(__always) package var gpr: UnsafeMutablePointer<UInt64> {
    raw.assumingMemoryBound(to: UInt64.self)
  }

  /// Offset of the `VectorState`.
  @inline(__always) package static var vectorOffset: Int {
    (MemoryLayout<CPUState>.size + 63) & ~63
  }

  @inline(__always) package var vector: UnsafeMutablePointer<VectorState> {
    (raw + CPU.vectorOffset).assumingMemoryBound(to: VectorState.self)
  }

  @inline(__always) package func segment(
    _ register: SegmentRegister
  ) -> UnsafeMutablePointer<SegmentState> {
    // By the field's own address: a key path's offset is looked up at run time.
    withUnsafeMutablePointer(to: &s.pointee.segments) {
      UnsafeMutableRawPointer($0).assumingMemoryBound(to: SegmentState.self)
        + Int(register.rawValue)
    }
  }

  package static let segmentsOffset = MemoryLayout<CPUState>.offset(of: \.segments)!
  package static let zeroOffset = MemoryLayout<CPUState>.offset(of: \.zero)!
  package static let blockRIPOffset = MemoryLayout<CPUState>.offset(of: \.blockRIP)!

  // MARK: Modes

  @inline(__always) package var is64Bit: Bool { s.pointee.codeMode == CodeMode.bits64.rawValue }
  package var isProtected: Bool { s.pointee.cr0 & CR0.pe.rawValue != 0 }
  package var isVirtual8086: Bool { s.pointee.rflags & RFLAGS.vm.rawValue != 0 }
  package var isLongMode: Bool { s.pointee.efer & EFER.lma.rawValue != 0 }
  @inline(__always) package var cpl: UInt8 { s.pointee.cpl }

  // MARK: RIP

  /// RIP of the running micro-op's instruction.
  @inline(__always) package func currentRIP(_ i: MicroOpPointer) -> UInt64 {
    s.pointee.blockRIP &+ UInt64(i.pointee.offset)
  }

  /// RIP of the instruction after it, wrapped to the code segment's size.
  @inline(__always) package func nextRIP(_ i: MicroOpPointer) -> UInt64 {
    let next = s.pointee.blockRIP &+ UInt64(i.pointee.offset) &+ UInt64(i.pointee.length)
    return is64Bit ? next : next & 0xFFFF_FFFF
  }

  /// Ends a completed instruction with `reload`: modes, mappings or events changed.
  @inline(__always) package func reload(_ i: MicroOpPointer) -> Int32 {
    s.pointee.rip = nextRIP(i)
    return Step.reload
  }

  /// Ends an instruction without effect, by an exception.
  @inline(__always) package func raise(_ exception: GuestException) -> Int32 {
    s.pointee.pendingException = exception.rawValue
    return Step.fault
  }

  /// #GP(0) unless CPL is 0.
  @inline(__always) package func requirePrivilege() throws(GuestException) {
    if s.pointee.cpl != 0 { throw .generalProtection }
  }
}

/// Runs the body of a handler, turning a throw into `Step.fault`.
@inline(__always) package func attempt(
  _ c: CPU, _ body: () throws(GuestException) -> Void
) -> Int32 {
  do throws(GuestException) {
    try body()
    return Step.next
  } catch {
    return c.raise(error)
  }
}
