// SPDX-License-Identifier: Apache-2.0
//
// The checks of VMRUN: each is one `require` with its rule (APM volume 2, "Canonicalization and
// Consistency Checks"). Checks of clean parts of the VMCB are skipped: the processor itself keeps
// the guest's state valid. Controls are read from the VMCB, the guest's state from the CPU.
//
//     try require(asid != 0, .asid)
//
// The first broken rule ends the checks; with `found` they continue and collect all.

import X86

package struct VMRunChecks {
  let cpu: CPU
  let vmcb: VMCB
  /// Collects the broken rules, instead of a throw.
  var found: BrokenRules<VMRunFailure>?
  /// Of physical addresses in the VMCB.
  private let addressWidth: UInt64
  /// Where the first page is that a VMCB may name.
  private let firstPage: UInt64

  init(cpu: CPU, vmcb: VMCB, found: BrokenRules<VMRunFailure>? = nil) {
    (self.cpu, self.vmcb, self.found) = (cpu, vmcb, found)
    addressWidth = SVMCapabilities.hostAddressWidth
    firstPage = Page.size
  }

  /// For a VMCB whose addresses are a guest's.
  ///
  /// - Parameter addressWidth: bits of the guest's physical addresses, at most 52.
  package init(cpu: CPU, guestVMCB: VMCB, addressWidth: UInt64) {
    (self.cpu, vmcb) = (cpu, guestVMCB)
    self.addressWidth = addressWidth
    firstPage = 0
  }

  /// The control area alone: the guest's state is in no CPU yet, whose VMRUN will check it.
  package func checkControlArea() throws(VMRunFailure) {
    try checkControls()
    if vmcb[.nestedControl] & NestedControl.paging != 0 { try checkNestedRoot() }
    let event = SVMEvent(rawValue: vmcb[.eventInjection])
    if event.isValid { try checkInjection(event) }
  }

  @inline(__always) private func require(
    _ holds: Bool, _ rule: VMRunFailure
  ) throws(VMRunFailure) {
    if !holds { try broken(rule) }
  }

  @inline(never) private func broken(_ rule: VMRunFailure) throws(VMRunFailure) {
    guard let found else { throw rule }
    found.add(rule, .rule)
  }

  /// - Parameter changed: parts without a clean bit.
  func check(_ changed: VMCBClean) throws(VMRunFailure) {
    if !changed.isDisjoint(with: [.controlRegisters, .segments]) { try checkRegisters() }
    if changed.contains(.debugRegisters) { try checkDebugRegisters() }
    if !changed.isDisjoint(with: [.intercepts, .permissionMaps, .asid]) { try checkControls() }
    if changed.contains(.nestedPaging) { try checkNestedPaging() }
    let event = SVMEvent(rawValue: vmcb[.eventInjection])
    if event.isValid { try checkInjection(event) }
  }

  private func checkRegisters() throws(VMRunFailure) {
    let s = cpu.s
    let efer = EFER(rawValue: s.pointee.efer)
    let cr0 = CR0(rawValue: s.pointee.cr0)
    let cr4 = CR4(rawValue: s.pointee.cr4)
    try require(efer.contains(.svme), .eferSVME)
    try require(cr0.contains(.cd) || !cr0.contains(.nw), .cr0NotWriteThrough)
    try require(cr0.rawValue >> 32 == 0, .cr0Upper)
    // Outside long mode the upper half is ignored.
    let cr3 = s.pointee.cr3
    try require(!efer.contains(.lma) || cr3 >> CPU.physicalAddressBits == 0, .cr3)
    try require(cr4.isSubset(of: .supported.subtracting(.vmxe)), .cr4)
    try require(efer.isSubset(of: SVMCapabilities.efer), .eferReserved)
    guard efer.contains(.lme), cr0.contains(.pg) else { return }
    try require(cr4.contains(.pae), .longModeWithoutPAE)
    try require(cr0.contains(.pe), .longModeWithoutProtection)
    let code = cpu.segment(.cs).pointee.rights
    try require(!code.isLong || !code.isBig, .longAndBigCode)
  }

  private func checkDebugRegisters() throws(VMRunFailure) {
    try require(cpu.s.pointee.dr6 >> 32 == 0, .dr6)
    try require(cpu.s.pointee.dr7 >> 32 == 0, .dr7)
  }

  private func checkControls() throws(VMRunFailure) {
    let intercepts = SVMIntercepts(vmcb)
    try require(intercepts.contains(.vmrun), .vmrunNotIntercepted)
    if intercepts.contains(.ports) {
      try checkMap(vmcb[.ioPermissionMap], PermissionMap.portBytes)
    }
    if intercepts.contains(.msrs) { try checkMap(vmcb[.msrPermissionMap], PermissionMap.msrBytes) }
    let asid = vmcb[.asid]
    try require(asid != 0 && asid < UInt64(SVMCapabilities.asidCount), .asid)
  }

  /// Bits 11:0 of a map's address are ignored.
  private func checkMap(_ address: UInt64, _ bytes: UInt64) throws(VMRunFailure) {
    let start = address & Page.mask
    let (last, overflow) = start.addingReportingOverflow(bytes &- 1)
    try require(
      !overflow && start >= firstPage && last &>> addressWidth == 0, .permissionMaps)
  }

  private func checkNestedPaging() throws(VMRunFailure) {
    guard vmcb[.nestedControl] & NestedControl.paging != 0 else { return }
    try checkNestedRoot()
    try require(MSRRule.Check.memoryTypesPAT.allows(cpu.s.pointee.pat, cpu), .guestPAT)
  }

  private func checkNestedRoot() throws(VMRunFailure) {
    let root = vmcb[.nestedCR3]
    try require(root & Page.mask >= firstPage && root &>> addressWidth == 0, .nestedCR3)
  }

  private func checkInjection(_ event: SVMEvent) throws(VMRunFailure) {
    try require(event.type != nil, .injectionType)
    if event.type == .exception {
      try require(
        event.vector < 32 && event.vector != ExceptionVector.nmi.rawValue, .injectionVector)
    }
  }
}

/// Sizes of the permission maps (APM volume 2, "IOIO Intercepts", "MSR Intercepts").
package enum PermissionMap {
  /// One bit for each port, and three for accesses that run past the last.
  package static let portBytes: UInt64 = 3 * 4096
  /// Two bits for each MSR of the three ranges: read, write.
  package static let msrBytes: UInt64 = 2 * 4096

  /// The bit position of an MSR's two bits; nil for MSRs that always exit.
  package static func msrBit(_ number: UInt32) -> Int? {
    let index = Int(number & 0x1FFF)
    switch number & ~0x1FFF {
    case 0: return index * 2
    case 0xC000_0000: return 0x800 * 8 + index * 2
    case 0xC001_0000: return 0x1000 * 8 + index * 2
    default: return nil
    }
  }
}

extension SVMIntercepts {
  /// Of a VMCB.
  init(_ vmcb: VMCB) {
    self.init(rawValue: vmcb[.intercepts3] | vmcb[.intercepts4] << 32)
  }
}
