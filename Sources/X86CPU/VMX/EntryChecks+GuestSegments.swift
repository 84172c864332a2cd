// SPDX-License-Identifier: Apache-2.0
//
// Checks on guest segment registers and descriptor-table registers.

import X86

extension EntryChecks {
  private func segment(_ register: SegmentRegister) -> SegmentState {
    cpu.segment(register).pointee
  }

  private var isVirtual8086: Bool { cpu.s.pointee.rflags & RFLAGS.vm.rawValue != 0 }

  func checkSegments() throws(EntryFailure) {
    try checkSelectors()
    if isVirtual8086 {
      for register in Self.codeAndData { try checkVirtual8086(register) }
    } else {
      try checkBases()
      try checkCS(segment(.cs))
      try checkSS(segment(.ss))
      for register in [SegmentRegister.ds, .es, .fs, .gs] { try checkData(register) }
    }
    try checkTR(segment(.tr))
    try checkLDTR(segment(.ldtr))
    let (gdtr, idtr) = (cpu.s.pointee.gdtr, cpu.s.pointee.idtr)
    try require(
      Self.isCanonical(gdtr.base), .guestDescriptorTableBase, at: .field(.guestGDTRBase))
    try require(
      Self.isCanonical(idtr.base), .guestDescriptorTableBase, at: .field(.guestIDTRBase))
    try require(gdtr.limit >> 16 == 0, .guestDescriptorTableLimit, at: .field(.guestGDTRLimit))
    try require(idtr.limit >> 16 == 0, .guestDescriptorTableLimit, at: .field(.guestIDTRLimit))
  }

  private static let codeAndData: [SegmentRegister] = [.cs, .ss, .ds, .es, .fs, .gs]

  private func checkSelectors() throws(EntryFailure) {
    try require(segment(.tr).selector & 4 == 0, .guestSelectorTI, at: .register(.tr))
    let ldtr = segment(.ldtr)
    try require(
      ldtr.rights.isUnusable || ldtr.selector & 4 == 0, .guestSelectorTI, at: .register(.ldtr))
    if !isVirtual8086 && !isUnrestricted {
      try require(segment(.ss).selector & 3 == segment(.cs).selector & 3, .guestSSRPL)
    }
  }

  private func checkVirtual8086(_ register: SegmentRegister) throws(EntryFailure) {
    let segment = segment(register)
    try require(
      segment.base == UInt64(segment.selector) << 4, .guestSegmentBase, at: .register(register))
    try require(segment.limit == 0xFFFF, .guestVirtual8086Limit, at: .register(register))
    try require(segment.accessRights == 0xF3, .guestVirtual8086Rights, at: .register(register))
  }

  private func checkBases() throws(EntryFailure) {
    for register in [SegmentRegister.fs, .gs] {
      try require(
        Self.isCanonical(segment(register).base), .guestSegmentBase, at: .register(register))
    }
    try require(segment(.cs).base >> 32 == 0, .guestSegmentBase, at: .register(.cs))
    for register in [SegmentRegister.ss, .ds, .es] {
      let segment = segment(register)
      try require(
        segment.rights.isUnusable || segment.base >> 32 == 0, .guestSegmentBase,
        at: .register(register))
    }
  }

  // MARK: Access rights

  private func checkCS(_ cs: SegmentState) throws(EntryFailure) {
    let rights = cs.rights
    let type = rights.type
    let isData = type == 3 && isUnrestricted
    try require(isData || [9, 11, 13, 15].contains(type), .guestSegmentType, at: .register(.cs))
    try require(rights.isCodeOrData, .guestSegmentS, at: .register(.cs))
    let ssDPL = segment(.ss).rights.dpl
    switch type {
    case 3: try require(rights.dpl == 0, .guestSegmentDPL, at: .register(.cs))
    case 9, 11: try require(rights.dpl == ssDPL, .guestSegmentDPL, at: .register(.cs))
    default: try require(rights.dpl <= ssDPL, .guestSegmentDPL, at: .register(.cs))
    }
    try checkCommon(cs, .cs)
    try require(!(isLongModeGuest && rights.isLong && rights.isBig), .guestCSLongAndBig)
  }

  private func checkSS(_ ss: SegmentState) throws(EntryFailure) {
    let rights = ss.rights
    if !rights.isUnusable {
      try require(rights.type == 3 || rights.type == 7, .guestSegmentType, at: .register(.ss))
      try require(rights.isCodeOrData, .guestSegmentS, at: .register(.ss))
    }
    if !isUnrestricted {
      try require(rights.dpl == UInt8(ss.selector & 3), .guestSegmentDPL, at: .register(.ss))
    }
    let isReal = cpu.s.pointee.cr0 & CR0.pe.rawValue == 0
    if isReal || segment(.cs).rights.type == 3 {
      try require(rights.dpl == 0, .guestSegmentDPL, at: .register(.ss))
    }
    if !rights.isUnusable { try checkCommon(ss, .ss) }
  }

  private func checkData(_ register: SegmentRegister) throws(EntryFailure) {
    let data = segment(register)
    let rights = data.rights
    if rights.isUnusable { return }
    let type = rights.type
    try require(
      type & 1 != 0 && (type & 8 == 0 || type & 2 != 0), .guestSegmentType, at: .register(register))
    try require(rights.isCodeOrData, .guestSegmentS, at: .register(register))
    if !isUnrestricted && type <= 11 {
      try require(rights.dpl >= UInt8(data.selector & 3), .guestSegmentDPL, at: .register(register))
    }
    try checkCommon(data, register)
  }

  private func checkTR(_ tr: SegmentState) throws(EntryFailure) {
    let rights = tr.rights
    try require(Self.isCanonical(tr.base), .guestSegmentBase, at: .register(.tr))
    try require(
      rights.type == SystemDescriptorType.tssBusy
        || rights.type == SystemDescriptorType.tss16Busy && !isLongModeGuest, .guestSegmentType,
      at: .register(.tr))
    try require(!rights.isCodeOrData, .guestSegmentS, at: .register(.tr))
    try require(!rights.isUnusable, .guestTRUnusable)
    try checkCommon(tr, .tr)
  }

  private func checkLDTR(_ ldtr: SegmentState) throws(EntryFailure) {
    let rights = ldtr.rights
    if rights.isUnusable { return }
    try require(Self.isCanonical(ldtr.base), .guestSegmentBase, at: .register(.ldtr))
    try require(rights.type == SystemDescriptorType.ldt, .guestSegmentType, at: .register(.ldtr))
    try require(!rights.isCodeOrData, .guestSegmentS, at: .register(.ldtr))
    try checkCommon(ldtr, .ldtr)
  }

  /// Present, reserved bits, granularity.
  private func checkCommon(
    _ segment: SegmentState, _ register: SegmentRegister
  ) throws(EntryFailure) {
    let rights = segment.rights
    try require(rights.isPresent, .guestSegmentNotPresent, at: .register(register))
    try require(rights.rawValue & 0xFFFE_0F00 == 0, .guestSegmentReserved, at: .register(register))
    let mustBeBytes = segment.limit & 0xFFF != 0xFFF
    let mustBePages = segment.limit >> 20 != 0
    try require(
      rights.isPageGranular ? !mustBeBytes : !mustBePages, .guestSegmentGranularity,
      at: .register(register))
  }
}
