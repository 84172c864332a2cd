// SPDX-License-Identifier: Apache-2.0
//
// Loads of segment registers in every mode, with the checks of SDM volume 3, "Segment Loading
// Instructions in IA-32e Mode", "Privilege Level Checking When Accessing Data Segments" and "...
// When Transferring Program Control".
//
// Loads have two steps so that instructions stay atomic: `data...`, `stack...` and `code...` check
// and return the new hidden part (they change only memory: the accessed bit), and the caller stores
// it when nothing can fail any more.
//
//     let segment = try c.dataSegment(selector)
//     c.segment(.ds).pointee = segment

import X86

/// A code segment and the target offset of a transfer.
package struct CodeTarget {
  package var segment: SegmentState
  package var rip: UInt64
  /// CPL after the transfer.
  package var cpl: UInt8
}

extension CPU {
  /// Loads ES, SS, DS, FS or GS, for MOV, POP and the LDS family.
  package func loadSegment(
    _ register: SegmentRegister, _ selector: UInt16
  ) throws(GuestException) {
    segment(register).pointee = try segmentValue(register, selector)
    if register == .ss { updateMode() } else { updateFlatness() }
  }

  /// The new value of ES, SS, DS, FS or GS for `selector`.
  package func segmentValue(
    _ register: SegmentRegister, _ selector: UInt16
  ) throws(GuestException) -> SegmentState {
    if hasRealModeSegments { return realModeSegment(register, selector) }
    if register == .ss { return try stackSegment(selector, cpl: cpl, .generalProtection) }
    return try dataSegment(register, selector)
  }

  /// Real mode changes only selector and base, so limits set in protected mode stay; virtual-8086
  /// mode fixes everything.
  package func realModeSegment(_ register: SegmentRegister, _ selector: UInt16) -> SegmentState {
    var state = segment(register).pointee
    state.selector = selector
    state.base = UInt64(selector) << 4
    if isVirtual8086 && isProtected {
      state.limit = 0xFFFF
      state.accessRights = SegmentAccessRights.virtual8086
    } else if state.rights.isUnusable {
      state.limit = 0xFFFF
      state.accessRights = SegmentAccessRights.realMode
    } else if register != .cs {
      let kept = SegmentAccessRights.bigBit | SegmentAccessRights.granularityBit
      state.accessRights = SegmentAccessRights.realMode | state.accessRights & kept
    }
    return state
  }

  /// DS, ES, FS or GS after a load of a null selector (MOV, POP, LDS and its variants, a task
  /// switch): the vendor decides whether base and limit stay.
  private func nullLoaded(_ register: SegmentRegister, _ selector: UInt16) -> SegmentState {
    follows(.nullKeepsBase) ? nullKept(register, selector) : nullSegment(selector)
  }

  /// The register after a change of privilege or mode has nulled it: all processors keep its base,
  /// because 64-bit mode uses those of FS and GS.
  func nullKept(_ register: SegmentRegister, _ selector: UInt16 = 0) -> SegmentState {
    var state = segment(register).pointee
    state.selector = selector
    state.accessRights = SegmentAccessRights.unusableBit
    return state
  }

  /// A null selector without an earlier base: no access is possible through it.
  package func nullSegment(_ selector: UInt16) -> SegmentState {
    SegmentState(
      base: 0, limit: 0xFFFF, accessRights: SegmentAccessRights.unusableBit, selector: selector)
  }

  /// ES, DS, FS or GS in protected mode. `vector` is the exception for bad selectors: #GP for
  /// instructions, #TS for task switches.
  package func dataSegment(
    _ register: SegmentRegister, _ selector: UInt16, _ vector: ExceptionVector = .generalProtection
  ) throws(GuestException) -> SegmentState {
    if Selector.isNull(selector) { return nullLoaded(register, selector) }
    var found = try readDescriptor(selector, else: vector)
    let rights = found.rights
    guard rights.isCodeOrData, !rights.isCode || rights.isReadableCodeOrWritableData else {
      throw .selector(vector, selector)
    }
    if !rights.isCode || !rights.isConformingOrExpandDown {
      if max(cpl, Selector.rpl(selector)) > rights.dpl { throw .selector(vector, selector) }
    }
    guard rights.isPresent else { throw .selector(.segmentNotPresent, selector) }
    try markAccessed(&found)
    return found.segment(selector: selector)
  }

  /// SS for privilege level `cpl`. `vector` is the exception for bad selectors: #GP for
  /// instructions, #TS for stack switches. `long`: the code that will use it is 64-bit code, which
  /// may have no SS.
  package func stackSegment(
    _ selector: UInt16, cpl: UInt8, _ vector: ExceptionVector, external: Bool = false,
    long: Bool? = nil
  ) throws(GuestException) -> SegmentState {
    if Selector.isNull(selector) {
      let allowed = long ?? is64Bit
      guard allowed, cpl < 3, Selector.rpl(selector) == cpl else {
        throw GuestException(vector, code: external ? 1 : 0)
      }
      return nullStack(cpl: cpl, selector: selector)
    }
    var found = try readDescriptor(selector, else: vector, external: external)
    let rights = found.rights
    guard rights.isCodeOrData, !rights.isCode, rights.isReadableCodeOrWritableData,
      Selector.rpl(selector) == cpl, rights.dpl == cpl
    else { throw .selector(vector, selector, external: external) }
    guard rights.isPresent else { throw .selector(.stackFault, selector, external: external) }
    try markAccessed(&found)
    return found.segment(selector: selector)
  }

  /// SS of 64-bit code without a stack segment. Its DPL is still the CPL.
  package func nullStack(cpl: UInt8, selector: UInt16? = nil) -> SegmentState {
    SegmentState(
      base: 0, limit: 0xFFFF_FFFF,
      accessRights: SegmentAccessRights.unusableBit | UInt32(cpl) << 5,
      selector: selector ?? UInt16(cpl))
  }

  // MARK: Code

  /// The descriptor of a code segment that is reached without a gate, checked for JMP and CALL.
  package func directCode(
    _ found: FoundDescriptor, offset: UInt64
  ) throws(GuestException) -> CodeTarget {
    let rights = found.rights
    let allowed =
      rights.isConformingOrExpandDown
      ? rights.dpl <= cpl : rights.dpl == cpl && Selector.rpl(found.selector) <= cpl
    guard rights.isCode, allowed else { throw .selector(.generalProtection, found.selector) }
    return try codeTarget(found, offset: offset, cpl: cpl)
  }

  /// The last checks of every transfer to a code segment: long-mode bits, presence, and the offset.
  /// The caller checks privilege.
  package func codeTarget(
    _ found: FoundDescriptor, offset: UInt64, cpl: UInt8, external: Bool = false
  ) throws(GuestException) -> CodeTarget {
    let rights = found.rights
    if isLongMode && rights.isLong && rights.isBig {
      throw .selector(.generalProtection, found.selector, external: external)
    }
    guard rights.isPresent else {
      throw .selector(.segmentNotPresent, found.selector, external: external)
    }
    let inside =
      isLongMode && rights.isLong ? isCanonical(offset) : offset <= found.descriptor.limit
    if !inside { throw GuestException(.generalProtection, code: external ? 1 : 0) }
    var found = found
    try markAccessed(&found)
    let selector = found.selector & ~Selector.rplMask | UInt16(cpl)
    return CodeTarget(segment: found.segment(selector: selector), rip: offset, cpl: cpl)
  }

  /// CS:IP of real and virtual-8086 mode.
  package func realModeTarget(
    _ selector: UInt16, offset: UInt64
  ) throws(GuestException) -> CodeTarget {
    let segment = realModeSegment(.cs, selector)
    if offset > segment.limit { throw .generalProtection }
    return CodeTarget(segment: segment, rip: offset, cpl: cpl)
  }

  /// Takes a checked transfer. If SS changes, it is already loaded.
  package func enter(_ target: CodeTarget) {
    segment(.cs).pointee = target.segment
    s.pointee.rip = target.rip
    updateMode()
  }

  /// After a return to less privilege: nulls data segments that it may not use (SDM volume 2,
  /// "RET", "IRET").
  package func dropPrivilegedSegments(cpl: UInt8) {
    for number in SegmentRegister.es.rawValue...SegmentRegister.gs.rawValue {
      guard let register = SegmentRegister(rawValue: number), register != .cs, register != .ss
      else { continue }
      let state = segment(register)
      let rights = state.pointee.rights
      if rights.isUnusable { continue }
      if rights.dpl < cpl && !(rights.isCode && rights.isConformingOrExpandDown) {
        state.pointee = nullKept(register)
      }
    }
    updateFlatness()
  }
}

extension SegmentAccessRights {
  /// Present, DPL 0, writable data, accessed.
  package static let realMode: UInt32 = 0x93
  /// The same with DPL 3.
  package static let virtual8086: UInt32 = 0xF3
}
