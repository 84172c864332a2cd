// SPDX-License-Identifier: Apache-2.0
//
// One word, `NativeState.vectorReady`, that translated code tests once before a run of vector and
// x87 instructions.
//
// The low bits say which instructions the guest may execute without an exception of their class:
// the control registers allow them, and every floating-point exception is masked. They are
// recomputed on every entry into translated code, and on returns to it after something that may
// have changed them. The high bits say which guest state is in host registers: MXCSR, the x87 unit.
// Only translated code sets and clears those; they are 0 in every handler.

import X86

package struct VectorReadiness: OptionSet, Sendable {
  package var rawValue: UInt32
  package init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Legacy SSE; then AVX as well; then AVX-512 as well.
  package static let sse = Self(rawValue: 1 << 0)
  package static let avx = Self(rawValue: 1 << 1)
  package static let avx512 = Self(rawValue: 1 << 2)
  /// x87 and MMX: no exception is pending.
  package static let x87 = Self(rawValue: 1 << 3)
  /// The same with the guest's MXCSR loaded.
  package static let sseArithmetic = Self(rawValue: 1 << 4)
  package static let avxArithmetic = Self(rawValue: 1 << 5)
  package static let avx512Arithmetic = Self(rawValue: 1 << 6)
  /// The guest's x87 state is in the host's unit, and its MXCSR is loaded.
  package static let x87Loaded = Self(rawValue: 1 << 7)

  package static let levels: Self = [.sse, .avx, .avx512]
  package static let usable: Self = [.levels, .x87]
  package static let loaded: Self = [
    .sseArithmetic, .avxArithmetic, .avx512Arithmetic, .x87Loaded,
  ]
  /// Shift from a level to the same with MXCSR loaded.
  package static let arithmeticShift: UInt8 = 4
}

extension CPU {
  /// Computes `vectorReady` without loaded state.
  @inline(__always) package func updateVectorReadiness() {
    s.pointee.native.vectorReady = vectorReadiness.rawValue
  }

  @inline(__always) private var vectorReadiness: VectorReadiness {
    if s.pointee.cr0 & (CR0.em.rawValue | CR0.ts.rawValue) != 0 { return [] }
    var ready: VectorReadiness = []
    if fsw & X87Status.es == 0 && ~fcw & X87Status.exceptions == 0 { ready.insert(.x87) }
    let cr4 = s.pointee.cr4
    guard cr4 & CR4.osfxsr.rawValue != 0, ~mxcsr & MXCSR.masks == 0 else { return ready }
    ready.insert(.sse)
    let xcr0 = XCR0(rawValue: s.pointee.xcr0)
    guard cr4 & CR4.osxsave.rawValue != 0, xcr0.isSuperset(of: [.sse, .avx]) else { return ready }
    ready.insert(.avx)
    if xcr0.isSuperset(of: .avx512) { ready.insert(.avx512) }
    return ready
  }
}
