// SPDX-License-Identifier: Apache-2.0
//
// Views of the vector state: fields of the FXSAVE image, registers as raw memory.
//
// Invariants of the image that host execution relies on: MXCSR has no reserved bit (FXRSTOR would
// fault in this program), ES and B of FSW agree with the exception flags and FCW's masks.

import X86

extension CPU {
  @inline(__always) var vectorRaw: UnsafeMutableRawPointer { raw + CPU.vectorOffset }

  @inline(__always) var bounce: UnsafeMutableRawPointer { vectorRaw + VectorLayout.scratch }

  @inline(__always) func vectorRegister(_ number: UInt8) -> UnsafeMutableRawPointer {
    vectorRaw + Int(number & 31) * 64
  }

  @inline(__always) private func field<T>(_ offset: Int, _: T.Type) -> UnsafeMutablePointer<T> {
    (vectorRaw + offset).assumingMemoryBound(to: T.self)
  }

  @inline(__always) var fcw: UInt16 {
    get { field(VectorLayout.fcw, UInt16.self).pointee }
    nonmutating set { field(VectorLayout.fcw, UInt16.self).pointee = newValue }
  }
  @inline(__always) var fsw: UInt16 {
    get { field(VectorLayout.fsw, UInt16.self).pointee }
    nonmutating set { field(VectorLayout.fsw, UInt16.self).pointee = newValue }
  }
  /// One bit for each physical register that is not empty.
  @inline(__always) var ftw: UInt8 {
    get { field(VectorLayout.ftw, UInt8.self).pointee }
    nonmutating set { field(VectorLayout.ftw, UInt16.self).pointee = UInt16(newValue) }
  }
  @inline(__always) var fop: UInt16 {
    get { field(VectorLayout.fop, UInt16.self).pointee }
    nonmutating set { field(VectorLayout.fop, UInt16.self).pointee = newValue }
  }
  @inline(__always) var fip: UInt64 {
    get { field(VectorLayout.fip, UInt64.self).pointee }
    nonmutating set { field(VectorLayout.fip, UInt64.self).pointee = newValue }
  }
  @inline(__always) var fdp: UInt64 {
    get { field(VectorLayout.fdp, UInt64.self).pointee }
    nonmutating set { field(VectorLayout.fdp, UInt64.self).pointee = newValue }
  }
  @inline(__always) package var mxcsr: UInt32 {
    get { field(VectorLayout.mxcsr, UInt32.self).pointee }
    nonmutating set { field(VectorLayout.mxcsr, UInt32.self).pointee = newValue & MXCSR.mask }
  }
  /// ST(i) in the image: 16 bytes each, 10 used.
  @inline(__always) func st(_ index: Int) -> UnsafeMutableRawPointer {
    vectorRaw + VectorLayout.st + index * 16
  }
  @inline(__always) var opmask: UnsafeMutablePointer<UInt64> {
    field(VectorLayout.opmask, UInt64.self)
  }

  /// FNINIT: registers keep their contents but are empty.
  package func initializeX87() {
    setTopZero()
    fcw = 0x37F
    fsw = 0
    ftw = 0
    fop = 0
    fip = 0
    fdp = 0
  }

  /// The state after INIT or power-up: all 0 except the control words.
  package func resetVectorState() {
    vector.initialize(to: VectorState())
  }

  /// Makes state from outside (FXRSTOR, XRSTOR, KVM_SET_FPU, KVM_SET_XSAVE) satisfy the invariants.
  package func normalizeX87() {
    mxcsr &= MXCSR.mask
    field(VectorLayout.mxcsrMask, UInt32.self).pointee = MXCSR.mask
    fcw = fcw & 0x1F3F | 0x40
    ftw = ftw
    fop &= 0x7FF
    updateExceptionSummary()
  }

  func updateExceptionSummary() {
    let pending = fsw & ~fcw & X87Status.exceptions != 0
    let summary = X87Status.es | X87Status.busy
    fsw = pending ? fsw | summary : fsw & ~summary
  }

  /// MMX instructions set TOP to 0 and mark all registers valid. ST(i) is stored relative to TOP,
  /// so a nonzero TOP moves them.
  @inline(__always) func enterMMX() {
    setTopZero()
    ftw = 0xFF
  }

  @inline(__always) func setTopZero() {
    if fsw & X87Status.top != 0 { rotateToTopZero() }
  }

  @inline(never) private func rotateToTopZero() {
    let top = Int(fsw >> X87Status.topShift & 7)
    withUnsafeTemporaryAllocation(byteCount: 128, alignment: 16) { copy in
      copy.baseAddress.unsafelyUnwrapped.copyMemory(from: st(0), byteCount: 128)
      for physical in 0..<8 {
        let slot = (physical &- top) & 7
        st(physical).copyMemory(
          from: copy.baseAddress.unsafelyUnwrapped + slot * 16, byteCount: 16)
      }
    }
    fsw &= ~X87Status.top
  }
}

/// MXCSR (SDM volume 1, "MXCSR Control and Status Register").
package enum MXCSR {
  package static let initial: UInt32 = 0x1F80
  /// Valid bits; DAZ is one, AMD's misaligned-access bit is not.
  package static let mask: UInt32 = 0xFFFF
  /// PM to IM: a set bit masks its exception.
  package static let masks: UInt32 = 0x1F80
}
