// SPDX-License-Identifier: Apache-2.0
//
// State derived from control registers, EFER, RFLAGS and the segment registers.

import X86
import X86Decoder

/// Bits of `CPUState.modeKey`: what a decoded block depends on besides its bytes.
package enum ModeKey {
  /// CodeMode.rawValue.
  package static let codeMode: UInt16 = 3
  package static let protected: UInt16 = 1 << 2
  package static let virtual8086: UInt16 = 1 << 3
  package static let stackMode: UInt16 = 3 << 4
  package static let stackModeShift: UInt16 = 4
  /// LOCKed instructions detect bus locks (BusLock.swift).
  package static let busLock: UInt16 = 1 << 6
  /// 32-bit code with CS, SS, DS and ES from 0 to 4 GiB: an offset is a linear address and no
  /// access to them fails segment checks, except writes through CS.
  package static let flat: UInt16 = 1 << 7
  /// Some instructions exit that translated code would execute unchecked, so the code is not
  /// translated (`InterceptSet.untranslated`).
  package static let interpreted: UInt16 = 1 << 8
}

extension SegmentRegister {
  fileprivate static let data: InlineArray<5, SegmentRegister> = [.es, .ss, .ds, .fs, .gs]
}

extension CPU {
  /// Recomputes `codeMode`, `cpl`, `stackMode`, `modeKey`, `slow` and the TLB bank. Call it after
  /// any change of CR0, CR4, EFER, CS, SS, or of RFLAGS's TF, RF, VM, AC; for the other segment
  /// registers `updateFlatness` suffices. (Address-space changes, that is CR3, CR0.PG/WP, CR4
  /// paging bits, EFER.NXE, call `flushTLB` as well.)
  package func updateMode() {
    let cs = segment(.cs).pointee.rights
    let ss = segment(.ss).pointee.rights
    let mode: CodeMode =
      isLongMode && cs.isLong
      ? .bits64 : (cs.isBig && isProtected && !isVirtual8086 ? .bits32 : .bits16)
    let state = s
    state.pointee.codeMode = mode.rawValue
    state.pointee.cpl = !isProtected ? 0 : isVirtual8086 ? 3 : ss.dpl
    state.pointee.stackMode = mode == .bits64 ? 2 : ss.isBig ? 1 : 0
    var key = UInt16(mode.rawValue) | UInt16(state.pointee.stackMode) << ModeKey.stackModeShift
    if isProtected { key |= ModeKey.protected }
    if isVirtual8086 { key |= ModeKey.virtual8086 }
    if intercepts(.busLock) { key |= ModeKey.busLock }
    if intercepts(.untranslated) || state.pointee.intercepts.crReads & 1 << 2 != 0 {
      key |= ModeKey.interpreted
    }
    state.pointee.modeKey = key | findFlatness()
    updateSlow()
    selectTLBBank()
  }

  /// Updates `modeKey` and translated code's knowledge of the data segments. Call it after a load
  /// of DS, ES, FS or GS.
  package func updateFlatness() {
    let key = s.pointee.modeKey & ~ModeKey.flat | findFlatness()
    if key == s.pointee.modeKey { return }
    s.pointee.modeKey = key
    updateBlockContext()
  }

  /// Sets `wholeSegments`.
  ///
  /// - Returns: `ModeKey.flat` or 0.
  private func findFlatness() -> UInt16 {
    guard s.pointee.codeMode == CodeMode.bits32.rawValue, s.pointee.stackMode == 1 else {
      return 0
    }
    var whole: UInt8 = 0
    for n in SegmentRegister.data.indices where isWhole(SegmentRegister.data[n]) {
      whole |= 1 << SegmentRegister.data[n].rawValue
    }
    s.pointee.native.wholeSegments = whole
    let code = segment(.cs)
    let flat = 1 << SegmentRegister.ss.rawValue | 1 << SegmentRegister.ds.rawValue
    let all = UInt8(flat | 1 << SegmentRegister.es.rawValue)
    let bases =
      code.pointee.base | segment(.ss).pointee.base | segment(.ds).pointee.base
      | segment(.es).pointee.base
    let isFlat =
      whole & all == all && bases == 0 && code.pointee.limit == .max
      && code.pointee.rights.isReadableCodeOrWritableData
    return isFlat ? ModeKey.flat : 0
  }

  /// A writable data segment of 4 GiB.
  private func isWhole(_ register: SegmentRegister) -> Bool {
    let segment = segment(register)
    let rights = segment.pointee.rights
    return segment.pointee.limit == .max && rights.isPresent && !rights.isUnusable
      && rights.isCodeOrData && !rights.isCode && rights.isReadableCodeOrWritableData
      && !rights.isConformingOrExpandDown
  }

  /// Selects the TLB bank of the current CPL and SMAP state; STAC and CLAC call it too.
  package func selectTLBBank() {
    let bank: Int
    if s.pointee.cpl == 3 {
      bank = TLB.user
    } else if s.pointee.cr4 & CR4.smap.rawValue == 0
      || s.pointee.rflags & RFLAGS.ac.rawValue != 0
    {
      bank = TLB.supervisorWithoutSMAP
    } else {
      bank = TLB.supervisor
    }
    useBank(bank)
    updateBlockContext()
  }

  /// Recomputes the parts of `slow` that depend on RFLAGS and DR7.
  package func updateSlow() {
    var slow =
      s.pointee.slow
      & ~(SlowReason.trapFlag | SlowReason.resumeFlag | SlowReason.breakpoints)
    if s.pointee.rflags & RFLAGS.tf.rawValue != 0 { slow |= SlowReason.trapFlag }
    if s.pointee.rflags & RFLAGS.rf.rawValue != 0 { slow |= SlowReason.resumeFlag }
    if s.pointee.dr7 & DR7.anyEnabled.rawValue != 0 { slow |= SlowReason.breakpoints }
    s.pointee.slow = slow
  }
}
