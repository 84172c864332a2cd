// SPDX-License-Identifier: Apache-2.0
//
// Writes to control registers: valid values, the resulting mode, and flushes (SDM volume 3,
// "Control Registers" and "Initializing IA-32e Mode"). Instructions handle guest/host masks and
// exits (ControlRegisterInstructions); these functions get the final value of the register.

import X86

extension CR0 {
  /// Writable bits; the others are kept or ignored.
  static let writable: CR0 = [.pe, .mp, .em, .ts, .ne, .wp, .am, .nw, .cd, .pg]
  /// Fixed to 1 in VMX operation; PE and PG are free for an unrestricted guest.
  static let fixedInVMX: CR0 = [.pe, .ne, .pg]
  /// Changes of these invalidate translations.
  static let paging: CR0 = [.pe, .wp, .cd, .nw, .pg]
}

extension CR4 {
  /// Changes of these invalidate translations.
  static let paging: CR4 = [.pse, .pae, .pge, .pcide, .smep, .smap, .pke, .la57]
  /// Bits that this processor has.
  package static let supported: CR4 = [
    .vme, .pvi, .tsd, .de, .pse, .pae, .mce, .pge, .pce, .osfxsr, .osxmmexcpt, .umip, .la57,
    .vmxe, .fsgsbase, .pcide, .osxsave, .smep, .smap, .pke,
  ]
}

extension CPU {
  // MARK: CR0

  /// MOV to CR0 after masks and exits.
  ///
  /// - Throws: #GP(0) for an invalid combination.
  package func writeCR0(_ value: UInt64) throws(GuestException) {
    try checkCR0(value)
    let old = s.pointee.cr0
    let new = value & CR0.writable.rawValue | CR0.et.rawValue
    let changed = CR0(rawValue: old ^ new)
    let usesPDPTEs =
      new & CR0.pg.rawValue != 0 && s.pointee.cr4 & CR4.pae.rawValue != 0
      && s.pointee.efer & EFER.lme.rawValue == 0
    if usesPDPTEs && !changed.isDisjoint(with: [.pg, .cd, .nw]) {
      try loadPDPTEs(root: s.pointee.cr3)
    }
    s.pointee.cr0 = new
    if changed.contains(.pg) { updateLMA() }
    updateMode()
    if !changed.isDisjoint(with: .paging) { flushTLB() }
  }

  /// The checks of a CR0 value that need no memory.
  func checkCR0(_ value: UInt64) throws(GuestException) {
    if value >> 32 != 0 { throw .generalProtection }
    let old = CR0(rawValue: s.pointee.cr0)
    let new = CR0(rawValue: value & CR0.writable.rawValue | CR0.et.rawValue)
    if new.contains(.pg) && !new.contains(.pe) { throw .generalProtection }
    if new.contains(.nw) && !new.contains(.cd) { throw .generalProtection }
    if ~new.rawValue & UInt64(s.pointee.intercepts.cr0Required) != 0 { throw .generalProtection }
    let cs = segment(.cs).pointee.rights
    if new.contains(.pg) && !old.contains(.pg) && s.pointee.efer & EFER.lme.rawValue != 0 {
      if s.pointee.cr4 & CR4.pae.rawValue == 0 || cs.isLong { throw .generalProtection }
      let tr = segment(.tr).pointee.rights
      let is16BitTSS = tr.type & ~2 == SystemDescriptorType.tss16Available
      if is16BitTSS && !tr.isUnusable && segment(.tr).pointee.selector != 0 {
        throw .generalProtection
      }
    }
    if old.contains(.pg) && !new.contains(.pg) {
      if s.pointee.cr4 & CR4.pcide.rawValue != 0 { throw .generalProtection }
      if isLongMode && cs.isLong { throw .generalProtection }
    }
  }

  /// EFER.LMA is LME and paging.
  private func updateLMA() {
    let active = s.pointee.efer & EFER.lme.rawValue != 0 && s.pointee.cr0 & CR0.pg.rawValue != 0
    if active {
      s.pointee.efer |= EFER.lma.rawValue
    } else {
      s.pointee.efer &= ~EFER.lma.rawValue
    }
  }

  // MARK: CR3

  /// MOV to CR3 after exits.
  ///
  /// - Throws: #GP(0) for reserved bits in it or in its PDPTEs.
  package func writeCR3(_ value: UInt64) throws(GuestException) {
    try checkCR3(value)
    let hasPCID = s.pointee.cr4 & CR4.pcide.rawValue != 0
    let keep = hasPCID && value >> 63 != 0
    let root = hasPCID ? value & ~(1 << 63) : value
    let cr0 = s.pointee.cr0
    let cr4 = s.pointee.cr4
    if cr0 & CR0.pg.rawValue != 0 && cr4 & CR4.pae.rawValue != 0 && !isLongMode {
      try loadPDPTEs(root: root)
    }
    s.pointee.cr3 = root
    if keep {
      switchAddressSpace(toPCID: root & 0xFFF)
    } else {
      flushAddressSpace(keepGlobal: true)
    }
  }

  /// The checks of a CR3 value that need no memory.
  func checkCR3(_ value: UInt64) throws(GuestException) {
    let hasPCID = s.pointee.cr4 & CR4.pcide.rawValue != 0
    let root = hasPCID ? value & ~(1 << 63) : value
    if isLongMode || is64Bit, root >> UInt64(CPUIDModel.physicalAddressBits) != 0 {
      throw .generalProtection
    }
  }

  /// Loads the four PDPTEs of PAE paging (SDM volume 3, "PDPTE Registers").
  package func loadPDPTEs(root: UInt64) throws(GuestException) {
    let table = root & 0xFFFF_FFE0
    let low = (UInt64(1) << UInt64(CPUIDModel.physicalAddressBits)) - 1
    let reserved = ~low | 0x1E6
    var entries = InlineArray<4, UInt64>(repeating: 0)
    for n in 0..<4 {
      let address = table + UInt64(n) * 8
      guard let page = physicalPage(address, .read) else {
        throw eptViolation(address, .read, .other)
      }
      try requireNotAPIC(page, address)
      let entry = UnsafePointer<UInt64>(
        bitPattern: UInt(page.host | address & Page.offsetMask)
      ).unsafelyUnwrapped.pointee
      let isPresent = entry & PageTableEntry.present != 0
      if isPresent && entry & reserved != 0 { throw .generalProtection }
      entries[n] = entry
    }
    s.pointee.pdptrs = entries
  }

  // MARK: CR4

  /// MOV to CR4 after masks and exits.
  ///
  /// - Throws: #GP(0) for a bit that the processor lacks or an invalid change.
  package func writeCR4(_ value: UInt64) throws(GuestException) {
    try checkCR4(value)
    let old = CR4(rawValue: s.pointee.cr4)
    let new = CR4(rawValue: value)
    let changed = old.symmetricDifference(new)
    let usesPDPTEs = new.contains(.pae) && s.pointee.cr0 & CR0.pg.rawValue != 0 && !isLongMode
    if usesPDPTEs && !changed.isDisjoint(with: [.pse, .pae, .pge, .smep]) {
      try loadPDPTEs(root: s.pointee.cr3)
    }
    s.pointee.cr4 = new.rawValue
    updateMode()
    if !changed.isDisjoint(with: .paging) { flushTLB() }
  }

  /// The checks of a CR4 value that need no memory.
  func checkCR4(_ value: UInt64) throws(GuestException) {
    let new = CR4(rawValue: value)
    if !new.isSubset(of: .supported) { throw .generalProtection }
    if s.pointee.intercepts.mode == .svm && new.contains(.vmxe) { throw .generalProtection }
    if ~value & UInt64(s.pointee.intercepts.cr4Required) != 0 { throw .generalProtection }
    let changed = CR4(rawValue: s.pointee.cr4).symmetricDifference(new)
    if isLongMode {
      if changed.contains(.la57) || !new.contains(.pae) { throw .generalProtection }
    } else if new.contains(.pcide) {
      throw .generalProtection
    }
    if changed.contains(.pcide) && new.contains(.pcide) && s.pointee.cr3 & 0xFFF != 0 {
      throw .generalProtection
    }
  }

  // MARK: CR8

  func checkCR8(_ value: UInt64) throws(GuestException) {
    if value >> 4 != 0 { throw .generalProtection }
  }

  // MARK: XCR0

  /// XSETBV of XCR0 after exits.
  ///
  /// - Throws: #GP(0) for components that the processor lacks or that need others.
  package func writeXCR0(_ value: UInt64) throws(GuestException) {
    try checkXCR0(value)
    s.pointee.xcr0 = value
  }

  func checkXCR0(_ value: UInt64) throws(GuestException) {
    let new = XCR0(rawValue: value)
    let offered = XCR0(rawValue: ExtendedStateLayout.supported)
    if !new.contains(.x87) || !new.isSubset(of: offered) { throw .generalProtection }
    if new.contains(.avx) && !new.contains(.sse) { throw .generalProtection }
    let wide = new.intersection(.avx512)
    if !wide.isEmpty && (wide != .avx512 || !new.contains(.avx)) { throw .generalProtection }
  }
}
