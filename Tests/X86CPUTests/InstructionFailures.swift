// SPDX-License-Identifier: Apache-2.0
//
// Each way in which a verb of VT-x or SVM fails: what is done, and how it has to end.

import Support
import Testing
import X86
import X86CPU

/// One failure.
struct InstructionFailure<Machine, Failure: Error & Equatable & Sendable>: Sendable {
  var name: String
  var failure: Failure
  var body: @Sendable (Machine) throws -> Void
  var outcome: String { "\(failure)" }

  init(
    _ name: String, _ failure: Failure, _ body: @escaping @Sendable (Machine) throws -> Void
  ) {
    (self.name, self.failure, self.body) = (name, failure, body)
  }
}

enum InstructionFailures {
  static let vmx: [InstructionFailure<VMXMachine, VMXError>] = [
    .init("VMXON in VMX root operation", .failValid(.vmxonInRootOperation)) {
      try $0.processor.vmxon($0.makePage().address)
    },
    .init("VMXON of a misaligned region", .failInvalid) {
      try $0.processor.vmxoff()
      try $0.processor.vmxon($0.region.address + 8)
    },
    .init("VMXOFF outside VMX operation", .notInVMXOperation) {
      try $0.processor.vmxoff()
      try $0.processor.vmxoff()
    },
    .init("VMCLEAR of a misaligned address", .failValid(.vmclearInvalidAddress)) {
      try $0.processor.vmclear($0.vmcs.address + 1)
    },
    .init("VMCLEAR of the VMXON region", .failValid(.vmclearVMXONPointer)) {
      try $0.processor.vmclear($0.region.address)
    },
    .init("VMPTRLD of a misaligned address", .failValid(.vmptrldInvalidAddress)) {
      try $0.processor.vmptrld($0.vmcs.address + 1)
    },
    .init("VMPTRLD of the VMXON region", .failValid(.vmptrldVMXONPointer)) {
      try $0.processor.vmptrld($0.region.address)
    },
    .init("VMPTRLD of another revision", .failValid(.vmptrldIncorrectRevision)) {
      let page = $0.makePage()
      page.base.storeBytes(of: 1, as: UInt32.self)
      try $0.processor.vmptrld(page.address)
    },
    .init("VMREAD of a field that does not exist", .failValid(.unsupportedField)) {
      _ = try $0.processor.vmreadChecked(VMCSField(rawValue: 0x6FFE))
    },
    .init("VMWRITE of a field that does not exist", .failValid(.unsupportedField)) {
      try $0.processor.vmwriteChecked(VMCSField(rawValue: 0x6FFE), 0)
    },
    .init("VMREAD without a current VMCS", .failInvalid) {
      try $0.processor.vmclear($0.vmcs.address)
      _ = try $0.processor.vmreadChecked(.guestRIP)
    },
    .init("VMLAUNCH without a current VMCS", .failInvalid) {
      try $0.processor.vmclear($0.vmcs.address)
      try $0.processor.vmlaunch()
    },
    .init("VMLAUNCH of a launched VMCS", .failValid(.vmlaunchNonClear)) {
      $0.test.load([0xF4], at: 0x1000)
      try $0.processor.vmlaunch()
      try $0.processor.vmlaunch()
    },
    .init("VMRESUME of a VMCS that is not launched", .failValid(.vmresumeNonLaunched)) {
      try $0.processor.vmresume()
    },
    .init("VMLAUNCH with invalid controls", .failValid(.invalidControlFields)) {
      $0.processor.vmwrite(.pinBasedControls, 0)
      try $0.processor.vmlaunch()
    },
    .init("VMLAUNCH with invalid host state", .failValid(.invalidHostState)) {
      $0.processor.vmwrite(.hostCR0, 0)
      try $0.processor.vmlaunch()
    },
    .init("INVEPT of a type that does not exist", .failValid(.invalidOperandToInvalidate)) {
      try $0.processor.invept(9)
    },
    .init("INVVPID of a type that does not exist", .failValid(.invalidOperandToInvalidate)) {
      try $0.processor.invvpid(9, vpid: 1)
    },
  ]

  static let svm: [InstructionFailure<SVMMachine, SVMError>] = [
    .init("EFER.SVME while VM_CR.SVMDIS is 1", .disabled) {
      try $0.processor.disableSVM()
      try $0.cpu.writeMSR(MSR.vmcr.rawValue, VMCRBits.svmDisable)
      try $0.processor.enableSVM()
    },
    .init("VMRUN of a misaligned address", .invalidAddress) {
      try $0.processor.vmrun($0.address + 8)
    },
    .init("VMRUN beyond the physical-address width", .invalidAddress) {
      try $0.processor.vmrun(1 << 60)
    },
    .init("VMLOAD of a misaligned address", .invalidAddress) {
      try $0.processor.vmload($0.address + 8)
    },
    .init("VMSAVE of a misaligned address", .invalidAddress) {
      try $0.processor.vmsave($0.address + 8)
    },
    disabled("VMRUN") { try $0.processor.vmrun($0.address) },
    disabled("VMLOAD") { try $0.processor.vmload($0.address) },
    disabled("VMSAVE") { try $0.processor.vmsave($0.address) },
    disabled("STGI") { try $0.processor.stgi() },
    disabled("CLGI") { try $0.processor.clgi() },
    disabled("INVLPGA") { try $0.processor.invlpga(0, asid: 1) },
  ]

  private static func disabled(
    _ name: String, _ body: @escaping @Sendable (SVMMachine) throws -> Void
  ) -> InstructionFailure<SVMMachine, SVMError> {
    .init("\(name) while EFER.SVME is 0", .notEnabled) { m in
      try m.processor.disableSVM()
      try body(m)
    }
  }
}

@Suite struct InstructionFailureTests {
  @Test(arguments: InstructionFailures.vmx.indices) func vmxInstructionFails(_ n: Int) throws {
    let one = InstructionFailures.vmx[n]
    let m = try VMXMachine()
    #expect(throws: one.failure, "\(one.name)") { try one.body(m) }
  }

  @Test(arguments: InstructionFailures.svm.indices) func svmInstructionFails(_ n: Int) throws {
    let one = InstructionFailures.svm[n]
    let m = try SVMMachine()
    #expect(throws: one.failure, "\(one.name)") { try one.body(m) }
  }

  /// The numbers that this processor can give; the others are of dual-monitor treatment, of the
  /// blocking by MOV SS of a root operation that has no instructions, and of VMRESUME after VMXOFF,
  /// which clears the current VMCS.
  @Test func everyErrorNumberHasATest() {
    let tested = InstructionFailures.vmx.compactMap { one -> UInt32? in
      guard case .failValid(let number) = one.failure else { return nil }
      return number.rawValue
    }
    // 13: VMWRITE may write to all fields, as IA32_VMX_MISC says.
    let notHere: Set<UInt32> = [1, 6, 13, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26]
    let all = Set((UInt32(0)...40).filter { VMXInstructionError(rawValue: $0) != nil })
    #expect(all == notHere.union(tested))
    #expect(notHere.isDisjoint(with: tested))
  }
}
