// SPDX-License-Identifier: Apache-2.0
//
// Checks on guest control registers, debug registers and MSRs. A failure of any check on guest
// state is an entry-failure exit with reason 33.

import X86

extension EntryChecks {
  /// - Parameter dirty: the changed groups.
  func checkGuestState(_ dirty: VMCSGroups) throws(EntryFailure) {
    if dirty.contains(.registers) {
      try checkControlRegisters()
      try checkDebugRegistersAndMSRs()
    }
    if !dirty.isDisjoint(with: [.segments, .registers]) { try checkSegments() }
    let small: VMCSGroups = [.registers, .segments, .rflags, .rest, .injection]
    if !dirty.isDisjoint(with: small) {
      try checkRIPAndRFLAGS()
      try checkActivity()
      try checkInterruptibility()
      try checkPendingDebugExceptions()
      try checkLinkPointer()
    }
    if dirty.contains(.registers) { try checkPDPTEs() }
  }

  private func checkControlRegisters() throws(EntryFailure) {
    let cr0 = CR0(rawValue: cpu.s.pointee.cr0)
    var fixed = VMXCapabilities.cr0Fixed0
    if isUnrestricted { fixed &= ~CR0([.pe, .pg]).rawValue }
    // ET reads as 1 whatever the field's value; CD and NW are not checked.
    try require(
      cr0.rawValue & fixed == fixed && cr0.rawValue & ~VMXCapabilities.cr0Fixed1 == 0, .guestCR0)
    try require(!cr0.contains(.pg) || cr0.contains(.pe), .guestPagingWithoutProtection)
    let cr4 = CR4(rawValue: cpu.s.pointee.cr4)
    try require(
      cr4.contains(CR4(rawValue: VMXCapabilities.cr4Fixed0))
        && cr4.rawValue & ~VMXCapabilities.cr4Fixed1 == 0, .guestCR4)
    if entry & EntryControls.loadDebugControls != 0 {
      try require(page(.guestDebugControl) & ~Self.debugControlBits == 0, .guestDebugControl)
    }
    if isLongModeGuest {
      try require(cr0.contains(.pg) && cr4.contains(.pae), .guestLongModeWithoutPaging)
    } else {
      try require(!cr4.contains(.pcide), .guestPCIDEOutsideLongMode)
    }
    try require(Self.isPhysical(cpu.s.pointee.cr3), .guestCR3)
  }

  /// LBR, BTF, TR, BTS, BTINT, BTS_OFF_OS, BTS_OFF_USR, FREEZE_LBRS, FREEZE_PERFMON, RTM.
  static let debugControlBits: UInt64 = 0x9FC3
  static let branchTrapFlag: UInt64 = 1 << 1

  private func checkDebugRegistersAndMSRs() throws(EntryFailure) {
    if entry & EntryControls.loadDebugControls != 0 {
      try require(page(.guestDR7) >> 32 == 0, .guestDR7)
    }
    try require(
      Self.isCanonical(cpu.s.pointee.sysenterESP), .guestSysenter, at: .field(.guestSysenterESP))
    try require(
      Self.isCanonical(cpu.s.pointee.sysenterEIP), .guestSysenter, at: .field(.guestSysenterEIP))
    if entry & EntryControls.loadPAT != 0 { try require(Self.isPAT(page(.guestPAT)), .guestPAT) }
    if entry & EntryControls.loadEFER != 0 {
      let efer = EFER(rawValue: page(.guestEFER))
      try require(efer.rawValue & ~Self.eferBits == 0, .guestEFERReserved)
      try require(efer.contains(.lma) == isLongModeGuest, .guestEFERMode)
      if cpu.s.pointee.cr0 & CR0.pg.rawValue != 0 {
        try require(efer.contains(.lma) == efer.contains(.lme), .guestEFERMode)
      }
    }
  }

  /// PDPTEs of PAE paging; without EPT they are loaded from memory at CR3.
  private func checkPDPTEs() throws(EntryFailure) {
    let s = cpu.s
    let paging = s.pointee.cr0 & CR0.pg.rawValue != 0
    let pae = s.pointee.cr4 & CR4.pae.rawValue != 0
    if !paging || !pae || isLongModeGuest { return }
    if secondary & SecondaryControls.enableEPT == 0 {
      guard readsMemory else { return }
      loadPDPTEsFromMemory()
    }
    let fields: InlineArray<4, VMCSField> = [
      .guestPDPTE0, .guestPDPTE1, .guestPDPTE2, .guestPDPTE3,
    ]
    for n in fields.indices {
      let entry = s.pointee.pdptrs[n]
      let reserved: UInt64 = 0x1E6 | ~((1 << CPU.physicalAddressBits) - 1)
      try require(
        entry & PageTableEntry.present == 0 || entry & reserved == 0, .guestPDPTE,
        at: .field(fields[n]))
    }
  }

  private func loadPDPTEsFromMemory() {
    guard let table = UnsafeRawPointer(bitPattern: UInt(cpu.s.pointee.cr3 & 0xFFFF_FFE0)) else {
      return
    }
    for n in 0..<4 {
      cpu.s.pointee.pdptrs[n] = table.load(fromByteOffset: n * 8, as: UInt64.self)
    }
  }
}
