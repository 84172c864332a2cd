// SPDX-License-Identifier: Apache-2.0
//
// SVM's instructions except VMRUN, as methods. Addresses are host-physical, that is, addresses in
// this process; a VMCB is a page of 4 KiB.
//
//     try cpu.enableSVM()
//     try cpu.vmload(vmcb)
//     let code = try cpu.vmrun(vmcb)      // runs the guest until it exits
//     try cpu.vmsave(vmcb)
//
// The state that VMRUN and VMLOAD load stays in the CPU (see VMCBLayout), so that this program's
// hypervisor accesses registers without going through memory:
//
//     try cpu.vmrun(vmcb, keepsState: true)
//     cpu.vmcbRead(.rip)                  // from the CPU
//     cpu.vmcbWriteBack()                 // now the VMCB has it all

import X86

extension PhysicalCPU {
  /// EFER.SVME of the host.
  package var isSVMEnabled: Bool { svm.pointee.isEnabled }

  /// Sets EFER.SVME.
  ///
  /// - Throws: `notEnabled` if the processor has no SVM; `disabled` by VM_CR.SVMDIS.
  package func enableSVM() throws(SVMError) {
    guard silicon == .amd else { throw .notEnabled }
    if svm.pointee.vmcr & VMCRBits.svmDisable != 0 { throw .disabled }
    svm.pointee.isEnabled = true
  }

  /// Clears EFER.SVME and writes the held VMCB's state back.
  package func disableSVM() throws(SVMError) {
    try requireSVM()
    vmcbRelease()
    svm.pointee.isEnabled = false
    flushTranslations(ofGuest: nil)
  }

  @inline(__always) func requireSVM() throws(SVMError) {
    if !svm.pointee.isEnabled { throw .notEnabled }
  }

  /// STGI, CLGI.
  package func stgi() throws(SVMError) {
    try requireSVM()
    svm.pointee.gif = true
  }

  package func clgi() throws(SVMError) {
    try requireSVM()
    svm.pointee.gif = false
  }

  /// The global interrupt flag: 0 from an exit until STGI.
  package var gif: Bool { svm.pointee.gif }

  /// INVLPGA: the translations of one address in an address space.
  package func invlpga(_ linear: UInt64, asid: UInt32) throws(SVMError) {
    try requireSVM()
    flushPage(linear, ofGuest: asid)
  }

  /// INVLPGB: drops all translations of an address space, or of all with nil.
  package func invlpgb(asid: UInt32?) throws(SVMError) {
    try requireSVM()
    flushTranslations(ofGuest: asid)
  }

  /// The rule that the last VMRUN broke, if it exited with VMEXIT_INVALID.
  package var vmrunFailure: VMRunFailure? { svm.pointee.entryFailure }

  // MARK: VMLOAD, VMSAVE

  /// VMLOAD.
  package func vmload(_ address: UInt64) throws(SVMError) {
    try requireSVM()
    guard let vmcb = VMCB(address) else { throw .invalidAddress }
    for location in VMCBLayout.loadSaveLocations {
      cpu.writeLazy(location, vmcb.load(location))
    }
    cpu.s.pointee.sysenterCS &= 0xFFFF_FFFF
  }

  /// VMSAVE.
  package func vmsave(_ address: UInt64) throws(SVMError) {
    try requireSVM()
    guard let vmcb = VMCB(address) else { throw .invalidAddress }
    for location in VMCBLayout.loadSaveLocations { vmcb.store(location, cpu.readLazy(location)) }
  }

  // MARK: The held VMCB

  /// Makes a VMCB the held one: loads its guest's state into the CPU. VMRUN does it itself.
  package func vmcbHold(_ address: UInt64) throws(SVMError) {
    try requireSVM()
    guard let vmcb = VMCB(address) else { throw .invalidAddress }
    if svm.pointee.held != vmcb.base { hold(vmcb) }
    svm.pointee.isWriteBackDue = true
  }

  /// Loads everything that VMLOAD does not load.
  func hold(_ vmcb: VMCB) {
    leaveTranslations()
    vmcbWriteBack()
    svm.pointee.held = vmcb.base
    for location in VMCBLayout.runLocations { cpu.writeLazy(location, vmcb.load(location)) }
    cpu.s.pointee.pendingDebug = 0
    // It is written back to this VMCB even if no VMRUN comes before the next is held.
    let word = VirtualInterrupt(rawValue: vmcb[.virtualInterrupt])
    cpu.s.pointee.virtualInterrupt = word
    cpu.s.pointee.cr8 = UInt64(word.tpr)
    cpu.adoptNMIMask(word)
    adoptPrivilege()
    vmcb[.cleanBits] = 0
    cpu.updateMode()
  }

  /// The held guest's translations wait for it, unless its state has changed since it ran.
  private func leaveTranslations() {
    if svm.pointee.mustFlush { forgetTranslations() } else { parkTranslations() }
    svm.pointee.mustFlush = false
  }

  /// Puts the held VMCB's state into its memory, from which the next VMRUN takes what is not clean.
  package func vmcbWriteBack() {
    guard svm.pointee.isWriteBackDue, let held = svm.pointee.held else { return }
    svm.pointee.isWriteBackDue = false
    let vmcb = VMCB(base: held)
    for location in VMCBLayout.runLocations { vmcb.store(location, cpu.readLazy(location)) }
    saveVirtualInterrupt(vmcb)
  }

  /// Writes the held VMCB back and releases it.
  package func vmcbRelease() {
    leaveTranslations()
    vmcbWriteBack()
    svm.pointee.held = nil
  }

  /// A field's value in the held VMCB; 0 if none is held.
  package func vmcbRead(_ field: VMCBField) -> UInt64 {
    guard let held = svm.pointee.held else { return 0 }
    let location = svm.pointee.locations[VMCBLayout.slot(field)]
    return location.kind == .memory ? VMCB(base: held)[field] : cpu.readLazy(location)
  }

  /// Writes a field of the held VMCB and clears its clean bit; no effect if none is held.
  package func vmcbWrite(_ field: VMCBField, _ value: UInt64) {
    guard let held = svm.pointee.held else { return }
    let vmcb = VMCB(base: held)
    let location = svm.pointee.locations[VMCBLayout.slot(field)]
    let old = location.kind == .memory ? vmcb[field] : cpu.readLazy(location)
    if old == value { return }
    if location.kind == .memory { vmcb[field] = value } else { cpu.writeLazy(location, value) }
    if !field.clean.isEmpty { vmcb[.cleanBits] &= ~UInt64(field.clean.rawValue) }
    noteChange(field, old ^ value)
  }

  /// Notes changes that affect translations and modes.
  private func noteChange(_ field: VMCBField, _ changed: UInt64) {
    switch field {
    case .cr0 where changed & CR0.paging.rawValue != 0, .cr3,
      .cr4 where changed & CR4.paging.rawValue != 0, .efer, .dr7:
      svm.pointee.mustFlush = true
    case .rflags: svm.pointee.mustUpdateMode = true
    default: break
    }
  }

  /// The privilege level is the VMCB's CPL, not SS's.
  func adoptPrivilege() {
    let cpl = UInt32(cpu.s.pointee.cpl & 3)
    let stack = cpu.segment(.ss)
    stack.pointee.accessRights = stack.pointee.accessRights & ~(3 << 5) | cpl << 5
  }

  // MARK: MSRs

  /// The value of one of SVM's MSRs; nil for others.
  func readSVMMSR(_ number: UInt32) -> UInt64? {
    guard silicon == .amd else { return nil }
    switch MSR(rawValue: number) {
    case .vmcr: return svm.pointee.vmcr
    case .hostSaveArea: return svm.pointee.hostSaveArea
    case .tscRatio: return svm.pointee.tscRatio
    default: return nil
    }
  }

  /// Writes one of SVM's MSRs.
  ///
  /// - Returns: nil for other MSRs; false if the value is invalid.
  package func writeSVMMSR(_ number: UInt32, _ value: UInt64) -> Bool? {
    guard silicon == .amd else { return nil }
    switch MSR(rawValue: number) {
    case .vmcr:
      let locked = svm.pointee.vmcr & VMCRBits.lock != 0
      let fixed = locked ? VMCRBits.lock | VMCRBits.svmDisable : 0
      svm.pointee.vmcr = svm.pointee.vmcr & fixed | value & 0x1F & ~fixed
    case .hostSaveArea:
      guard value & Page.offsetMask == 0 else { return false }
      svm.pointee.hostSaveArea = value
    case .tscRatio:
      guard value & ~SVMCapabilities.tscRatioMask == 0 else { return false }
      svm.pointee.tscRatio = value
      if let held = svm.pointee.held {
        VMCB(base: held)[.cleanBits] &= ~UInt64(VMCBClean.intercepts.rawValue)
      }
    default: return nil
    }
    return true
  }
}

extension VMCB {
  func load(_ location: VMCBLocation) -> UInt64 {
    self[VMCBField(location.offset, location.size)]
  }

  func store(_ location: VMCBLocation, _ value: UInt64) {
    self[VMCBField(location.offset, location.size)] = value
  }
}

extension CPU {
  /// A lazy field's value in this CPU.
  @inline(__always) func readLazy(_ location: VMCBLocation) -> UInt64 {
    let offset = Int(location.state)
    switch location.kind {
    case .memory: return 0
    case .state2: return UInt64(raw.load(fromByteOffset: offset, as: UInt16.self))
    case .state4: return UInt64(raw.load(fromByteOffset: offset, as: UInt32.self))
    case .state8: return raw.load(fromByteOffset: offset, as: UInt64.self)
    case .rflags: return flags
    case .attributes:
      let rights = raw.load(fromByteOffset: offset, as: UInt32.self)
      return UInt64(SegmentAccessRights(rawValue: rights).vmcbAttributes)
    case .cpl: return UInt64(s.pointee.cpl)
    case .shadow: return s.pointee.interruptibility & Self.shadows != 0 ? InterruptShadow.active : 0
    }
  }

  @inline(__always) func writeLazy(_ location: VMCBLocation, _ value: UInt64) {
    let offset = Int(location.state)
    switch location.kind {
    case .memory: break
    case .state2:
      raw.storeBytes(of: UInt16(truncatingIfNeeded: value), toByteOffset: offset, as: UInt16.self)
    case .state4:
      raw.storeBytes(of: UInt32(truncatingIfNeeded: value), toByteOffset: offset, as: UInt32.self)
    case .state8: raw.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    case .rflags:
      s.pointee.rflags =
        value & RFLAGS.all.rawValue & ~RFLAGS.arithmetic.rawValue | RFLAGS.fixed.rawValue
      arithmeticFlags = value
    case .attributes:
      let rights = SegmentAccessRights(vmcb: UInt16(truncatingIfNeeded: value))
      raw.storeBytes(of: rights.rawValue, toByteOffset: offset, as: UInt32.self)
    case .cpl: s.pointee.cpl = UInt8(value & 3)
    case .shadow:
      // The VMCB does not say which of the two instructions it was.
      if value & InterruptShadow.active == 0 {
        s.pointee.interruptibility &= ~Self.shadows
      } else if s.pointee.interruptibility & Self.shadows == 0 {
        s.pointee.interruptibility |= Interruptibility.blockingBySTI
      }
    }
  }

  private static let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS

  /// V_NMI_MASK is NMI blocking if NMIs are virtual.
  func adoptNMIMask(_ word: VirtualInterrupt) {
    guard word.isNMIEnabled else { return }
    let isMasked = word.rawValue & VirtualInterrupt.nmiMaskedBit != 0
    let bit = Interruptibility.blockingByNMI
    s.pointee.interruptibility = s.pointee.interruptibility & ~bit | (isMasked ? bit : 0)
  }
}
