// SPDX-License-Identifier: Apache-2.0
//
// Each rule of VMRUN by a VMCB that breaks only it, and what becomes of the guest then: nothing.

import Support
import Testing
import X86
import X86CPU

/// Field writes that turn the valid VMCB into one that breaks `rule`.
struct BrokenVMCB: Sendable, CustomTestStringConvertible {
  var rule: VMRunFailure
  var writes: [(VMCBField, UInt64)] = []
  var set: [(VMCBField, UInt64)] = []
  var clear: [(VMCBField, UInt64)] = []
  var testDescription: String { "\(rule.rawValue) \(writes.count) \(set.count) \(clear.count)" }

  func apply(_ vmcb: VMCB) {
    for (field, bits) in clear { vmcb[field] &= ~bits }
    for (field, bits) in set { vmcb[field] |= bits }
    for (field, value) in writes { vmcb[field] = value }
  }
}

@Suite struct VMRunCheckTests {
  @Test func theUnbrokenVMCBEnters() throws {
    let m = try SVMMachine()
    m.processor.kick()
    #expect(try m.run() == .interrupt)
    #expect(m.processor.vmrunFailure == nil)
  }

  static let ports = SVMIntercepts.ports.rawValue
  static let msrs = SVMIntercepts.msrs.rawValue

  static let broken: [BrokenVMCB] = [
    .init(rule: .eferSVME, clear: [(.efer, EFER.svme.rawValue)]),
    .init(rule: .cr0NotWriteThrough, set: [(.cr0, CR0.nw.rawValue)]),
    .init(rule: .cr0Upper, set: [(.cr0, 1 << 32)]),
    .init(rule: .cr3, set: [(.cr3, 1 << 50)]),
    .init(rule: .cr4, set: [(.cr4, 1 << 30)]),
    .init(rule: .cr4, set: [(.cr4, CR4.vmxe.rawValue)]),
    .init(rule: .dr6, set: [(.dr6, 1 << 32)]),
    .init(rule: .dr7, set: [(.dr7, 1 << 63)]),
    .init(rule: .eferReserved, set: [(.efer, 1 << 40)]),
    .init(rule: .longModeWithoutPAE, clear: [(.cr4, CR4.pae.rawValue)]),
    .init(rule: .longModeWithoutProtection, clear: [(.cr0, CR0.pe.rawValue)]),
    .init(rule: .longAndBigCode, set: [(.attributes(of: .cs), 1 << 10)]),
    .init(rule: .vmrunNotIntercepted, clear: [(.intercepts4, 1)]),
    .init(
      rule: .permissionMaps, writes: [(.ioPermissionMap, 1 << 60)], set: [(.intercepts3, ports)]),
    .init(
      rule: .permissionMaps, writes: [(.msrPermissionMap, .max)], set: [(.intercepts3, msrs)]),
    .init(rule: .injectionType, writes: [(.eventInjection, 0x8000_0100)]),
    .init(rule: .injectionType, writes: [(.eventInjection, 0x8000_0700)]),
    .init(rule: .injectionVector, writes: [(.eventInjection, 0x8000_0302)]),
    .init(rule: .injectionVector, writes: [(.eventInjection, 0x8000_0320)]),
    .init(rule: .asid, writes: [(.asid, 0)]),
    .init(rule: .asid, writes: [(.asid, UInt64(SVMCapabilities.asidCount))]),
    .init(rule: .nestedCR3, set: [(.nestedCR3, 1 << 60)]),
    .init(rule: .guestPAT, writes: [(.guestPAT, 2)]),
  ]

  @Test(arguments: broken) func brokenRule(_ broken: BrokenVMCB) throws {
    let m = try SVMMachine()
    m.test.load([0x90, 0xF4], at: 0x1000)
    broken.apply(m.vmcb)
    #expect(try m.run() == .invalid)
    #expect(m.processor.vmrunFailure == broken.rule)
    #expect(m.vmcb[.exitCode] == .max && m.vmcb[.rip] == 0x1000)
    #expect(!m.processor.gif)
  }

  /// What is clean is not looked at again.
  @Test func aCleanPartIsNotChecked() throws {
    let m = try SVMMachine()
    m.test.load([0xF4], at: 0x1000)
    #expect(try m.run() == .hlt)
    m.vmcb[.cr4] |= 1 << 30
    m.vmcb[.cleanBits] = UInt64(VMCBClean.all.rawValue)
    #expect(try m.processor.vmrun(m.address) == .hlt)
    // The save that follows an exit has the CPU's own value.
    #expect(m.vmcb[.cr4] & 1 << 30 == 0)
    m.vmcb[.cr4] |= 1 << 30
    m.vmcb[.cleanBits] = UInt64(VMCBClean.all.subtracting(.controlRegisters).rawValue)
    #expect(try m.processor.vmrun(m.address) == .invalid)
  }

  /// What a VMRUN refused it has not taken over, whatever the clean bits say then.
  @Test(arguments: [false, true]) func nothingIsCleanAfterAFailure(_ keepsState: Bool) throws {
    let m = try SVMMachine()
    m.test.load([0xF4], at: 0x1000)
    m.vmcb[.asid] = 0
    #expect(try m.processor.vmrun(m.address, keepsState: keepsState) == .invalid)
    m.vmcb[.asid] = 1
    m.vmcb[.cleanBits] = UInt64(VMCBClean.all.rawValue)
    #expect(try m.processor.vmrun(m.address, keepsState: keepsState) == .hlt)
  }

  @Test func addressesAndEnabling() throws {
    let m = try SVMMachine()
    #expect(throws: SVMError.invalidAddress) { try m.processor.vmrun(m.address + 8) }
    #expect(throws: SVMError.invalidAddress) { try m.processor.vmload(1 << 60) }
    try m.processor.disableSVM()
    #expect(throws: SVMError.notEnabled) { try m.processor.vmrun(m.address) }
    try m.cpu.writeMSR(MSR.vmcr.rawValue, VMCRBits.svmDisable | VMCRBits.lock)
    #expect(throws: SVMError.disabled) { try m.processor.enableSVM() }
    // Locked: it stays.
    try m.cpu.writeMSR(MSR.vmcr.rawValue, 0)
    #expect(try m.cpu.readMSR(MSR.vmcr.rawValue) & VMCRBits.svmDisable != 0)
    let intel = TestMachine()
    #expect(throws: SVMError.notEnabled) { try intel.processor.enableSVM() }
    #expect(throws: (any Error).self) { try intel.cpu.readMSR(MSR.vmcr.rawValue) }
  }
}
