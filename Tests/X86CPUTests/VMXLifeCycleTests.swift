// SPDX-License-Identifier: Apache-2.0
//
// VMX operation from VMXON to VMXOFF: errors have the numbers of the SDM ("VM Instruction Error
// Numbers"), and every field of a VMCS keeps its value, on another CPU too.

import Foundation
import Support
import Testing
import X86
import X86CPU

@Suite struct VMXLifeCycleTests {
  @Test func verbsOutsideVMXOperationAreUndefined() {
    let p = TestMachine().processor
    #expect(throws: VMXError.notInVMXOperation) { try p.vmxoff() }
    #expect(throws: VMXError.notInVMXOperation) { try p.vmclear(0x1000) }
    #expect(throws: VMXError.notInVMXOperation) { try p.vmptrld(0x1000) }
    #expect(throws: VMXError.notInVMXOperation) { _ = try p.vmptrst() }
    #expect(throws: VMXError.notInVMXOperation) { try p.vmlaunch() }
    #expect(throws: VMXError.notInVMXOperation) { try p.vmresume() }
    #expect(throws: VMXError.notInVMXOperation) { try p.invept(2) }
    #expect(throws: VMXError.notInVMXOperation) { try p.invvpid(2) }
    #expect(throws: VMXError.notInVMXOperation) { _ = try p.vmreadChecked(.guestRIP) }
    #expect(p.vmread(.guestRIP) == 0)
  }

  @Test func vmxonChecksItsRegion() throws {
    let machine = TestMachine()
    let p = machine.processor
    let page = HostPage()
    #expect(throws: VMXError.failInvalid) { try p.vmxon(page.address + 8) }
    #expect(throws: VMXError.failInvalid) { try p.vmxon(0) }
    #expect(throws: VMXError.failInvalid) { try p.vmxon(1 << 47) }
    page.base.storeBytes(of: 1, as: UInt32.self)
    #expect(throws: VMXError.failInvalid) { try p.vmxon(page.address) }
    page.base.storeBytes(of: VMXCapabilities.revision, as: UInt32.self)
    try p.vmxon(page.address)
    #expect(p.isInVMXOperation)
    // Without a current VMCS there is nowhere to put error 15.
    #expect(throws: VMXError.failInvalid) { try p.vmxon(page.address) }
    #expect(try p.vmptrst() == .max)
    #expect(throws: VMXError.failInvalid) { try p.vmlaunch() }
    #expect(throws: VMXError.failInvalid) { try p.vmwriteChecked(.guestRIP, 1) }
    try p.vmxoff()
    #expect(!p.isInVMXOperation)
  }

  @Test func errorsHaveTheirNumbers() throws {
    let m = try VMXMachine()
    let p = m.processor
    func expect(
      _ error: VMXInstructionError, _ body: () throws -> Void,
      sourceLocation: SourceLocation = #_sourceLocation
    ) {
      #expect(throws: VMXError.failValid(error), sourceLocation: sourceLocation) { try body() }
      #expect(
        p.vmread(.vmInstructionError) == UInt64(error.rawValue), sourceLocation: sourceLocation)
    }
    let other = m.makePage()
    expect(.vmxonInRootOperation) { try p.vmxon(other.address) }
    expect(.vmclearInvalidAddress) { try p.vmclear(other.address + 1) }
    expect(.vmclearVMXONPointer) { try p.vmclear(m.region.address) }
    expect(.vmptrldInvalidAddress) { try p.vmptrld(other.address + 0x10) }
    expect(.vmptrldVMXONPointer) { try p.vmptrld(m.region.address) }
    other.base.storeBytes(of: 7, as: UInt32.self)
    expect(.vmptrldIncorrectRevision) { try p.vmptrld(other.address) }
    expect(.vmresumeNonLaunched) { try p.vmresume() }
    expect(.unsupportedField) { _ = try p.vmreadChecked(.enclsExitingBitmap) }
    expect(.unsupportedField) { _ = try p.vmreadChecked(VMCSField(rawValue: 0xFFFF_FFFF)) }
    expect(.unsupportedField) { _ = try p.vmreadChecked(VMCSField.guestRIP.high) }
    expect(.unsupportedField) { try p.vmwriteChecked(VMCSField(rawValue: 0x7000), 0) }
    expect(.invalidOperandToInvalidate) { try p.invept(3) }
    expect(.invalidOperandToInvalidate) { try p.invept(1, eptPointer: 0x1005) }
    expect(.invalidOperandToInvalidate) { try p.invvpid(4, vpid: 1) }
    expect(.invalidOperandToInvalidate) { try p.invvpid(1, vpid: 0) }
    expect(.invalidOperandToInvalidate) { try p.invvpid(0, vpid: 1, linear: 1 << 60) }
    p.kick()
    try p.vmlaunch()
    expect(.vmlaunchNonClear) { try p.vmlaunch() }
    p.kick()
    #expect(try p.vmresume() == .externalInterrupt)
  }

  @Test func everyFieldKeepsItsValue() throws {
    let m = try VMXMachine()
    let p = m.processor
    let fields = VMCSLayout.fields.filter { $0.area != .readOnlyData }
    #expect(Set(VMCSLayout.fields).count == VMCSLayout.fields.count)
    #expect(Set(VMCSLayout.fields.map(VMCSLayout.slot)).count == VMCSLayout.fields.count)
    func pattern(_ field: VMCSField) -> UInt64 {
      let value = 0x9E37_79B9_7F4A_7C15 &* UInt64(field.rawValue + 1)
      switch field.width {
      case .bits16: return value & 0xFFFF
      case .bits32: return value & 0xFFFF_FFFF
      default: return value
      }
    }
    for field in fields { p.vmwrite(field, pattern(field)) }
    for field in fields { #expect(p.vmread(field) == pattern(field), "\(field)") }
    try p.vmclear(m.vmcs.address)
    #expect(try p.vmptrst() == .max)
    try p.vmptrld(m.vmcs.address)
    for field in fields { #expect(p.vmread(field) == pattern(field), "\(field) after VMPTRLD") }
  }

  @Test func widthsAndHighHalves() throws {
    let m = try VMXMachine()
    let p = m.processor
    p.vmwrite(.guestCSSelector, 0x12345)
    #expect(p.vmread(.guestCSSelector) == 0x2345)
    p.vmwrite(.exceptionBitmap, 0x1_0000_0001)
    #expect(p.vmread(.exceptionBitmap) == 1)
    p.vmwrite(.tscOffset, 0x1122_3344_5566_7788)
    #expect(try p.vmreadChecked(VMCSField.tscOffset.high) == 0x1122_3344)
    try p.vmwriteChecked(VMCSField.tscOffset.high, 0xAABB_CCDD)
    #expect(p.vmread(.tscOffset) == 0xAABB_CCDD_5566_7788)
    // IA32_VMX_MISC: exit information can be written.
    p.vmwrite(.exitReason, 5)
    #expect(p.vmread(.exitReason) == 5)
  }

  @Test func stateMovesToAnotherCPU() throws {
    let m = try VMXMachine()
    let p = m.processor
    // mov rsp, 0x5678; L: jmp L
    m.test.load([0x48, 0xC7, 0xC4, 0x78, 0x56, 0, 0, 0xEB, 0xFE], at: 0x1000)
    p.kick()
    #expect(try p.vmlaunch() == .externalInterrupt)
    p.vmwrite(.guestRFLAGS, 0x246)
    cpuLoop(p)
    #expect(try p.vmresume() == .externalInterrupt)
    #expect(p.vmread(.guestRSP) == 0x5678)
    #expect(p.vmread(.guestRIP) == 0x1007)

    let second = TestMachine().processor
    let region = HostPage()
    try second.vmxon(region.address)
    #expect(throws: VMXError.activeElsewhere(p.number)) { try second.vmptrld(m.vmcs.address) }
    try p.vmclear(m.vmcs.address)
    try second.vmptrld(m.vmcs.address)
    #expect(throws: VMXError.activeElsewhere(second.number)) { try p.vmptrld(m.vmcs.address) }
    #expect(second.vmread(.guestRSP) == 0x5678)
    #expect(second.vmread(.guestRIP) == 0x1007)
    #expect(second.vmread(.guestRFLAGS) == 0x246)
    #expect(second.vmread(.exitReason) == UInt64(ExitReason.externalInterrupt.rawValue))
    #expect(throws: VMXError.failValid(.vmresumeNonLaunched)) { try second.vmresume() }
    second.kick()
    #expect(try second.vmlaunch() == .externalInterrupt)
    try second.vmxoff()
  }

  /// Two VMCSs on one CPU: switching flushes one and loads the other, launch states are kept.
  @Test func twoVMCSsOnOneCPU() throws {
    let m = try VMXMachine()
    let p = m.processor
    let other = m.makePage()
    p.kick()
    try p.vmlaunch()
    try p.vmclear(other.address)
    try p.vmptrld(other.address)
    #expect(p.vmread(.guestRIP) == 0)
    p.vmwrite(.guestRIP, 0x7777)
    #expect(throws: VMXError.failValid(.invalidControlFields)) { try p.vmlaunch() }
    try p.vmptrld(m.vmcs.address)
    #expect(p.vmread(.guestRIP) == 0x1000)
    p.kick()
    #expect(try p.vmresume() == .externalInterrupt)
    try p.vmptrld(other.address)
    #expect(p.vmread(.guestRIP) == 0x7777)
    try p.vmclear(m.vmcs.address)
    #expect(try p.vmptrst() == other.address)
  }

  /// Kicks the CPU from another thread, so that guest code runs before the exit.
  private func cpuLoop(_ p: PhysicalCPU) {
    // A thread of its own: the test blocks one of the few that tasks run on, on one core the only
    // one.
    Thread.detachNewThread {
      usleep(20_000)
      p.kick()
    }
  }

  @Test func capabilitiesAgreeWithThemselves() throws {
    for msr in UInt32(0x480)...0x490 { #expect(VMXCapabilities.value(ofMSR: msr) != nil) }
    #expect(VMXCapabilities.value(ofMSR: 0x491) == 1)
    #expect(VMXCapabilities.value(ofMSR: 0x492) == nil)
    for (control, reason) in VMXCapabilities.absent {
      #expect(VMXCapabilities.secondary.allowed & control == 0, "\(reason)")
    }
    for msr in [UInt32(0x481), 0x482, 0x483, 0x484, 0x48B, 0x48D, 0x48E, 0x48F, 0x490] {
      let value = try #require(VMXCapabilities.value(ofMSR: msr))
      let required = value & 0xFFFF_FFFF
      #expect(required & ~(value >> 32) == 0, "allowed-0 is not in allowed-1 of \(msr)")
    }
    let basic = try #require(VMXCapabilities.value(ofMSR: 0x480))
    #expect(basic & 1 << 31 == 0 && basic & 1 << 55 != 0)
  }
}
