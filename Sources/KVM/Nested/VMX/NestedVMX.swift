// SPDX-License-Identifier: Apache-2.0
//
// Nested VT-x: the instructions of a guest (L1) that is a hypervisor, and what it has of VT-x (SDM
// volume 3, "VMX Instruction Reference"). See NestedVirtualization for the whole.
//
//     vmcs01   `VMX.own`: L1's own, as of any guest. While L2 runs it keeps L1's state
//     vmcs12   `block`: the VMCS that is current for L1. VMPTRLD reads it from L1's memory, VMCLEAR
//              and the VMPTRLD of another write it back. In the processor's own layout, so that
//              it is the shadow VMCS on which L1's VMREAD and VMWRITE work without an exit
//     vmcs02   `merged`: what runs L2. State of vmcs12, controls of both (NestedVMX+Entry)
//
// L2's TLB entries have a VPID of their own, and its EPT is L1's and ours in one
// (NestedVMX+Memory), or ours where L1 uses none.

import SystemPackage
import X86
import X86CPU

final class NestedVMX: NestedVirtualization {
  let vmx: VMX
  var isGuest = false
  /// L1's address of the VMXON region; nil: L1 is not in VMX operation.
  private(set) var vmxonPointer: UInt64?
  /// L1's address of vmcs12; nil: none is current.
  var currentPointer: UInt64?
  /// The launch state of vmcs12 is "launched", and was before the last entry.
  var isLaunched = false
  var wasLaunched = false
  /// L2 has run since the last VM entry of L1's.
  var hasEntered = false
  var capabilities = NestedVMXCapabilities()
  private var featureControl: UInt64 = 0

  lazy var block = VMXRegion(isShadow: true)
  lazy var merged = VMXRegion()
  lazy var msrBitmap = VMXRegion()
  /// The virtual-APIC page of L2, of which L1's is a copy while L1 runs.
  lazy var virtualAPIC = VMXRegion()
  let vpid = VMX.makeVPID()
  /// When L2's preemption timer is over, in the host's TSC.
  var timerDeadline: UInt64 = .max
  var shadows = ShadowSet()

  init(_ vmx: VMX) { self.vmx = vmx }

  /// There is nothing that holds all events of L1 up.
  var holdsEvents: Bool { false }

  // MARK: MSRs

  /// KVM_GET_MSR_FEATURE_INDEX_LIST.
  static let featureMSRs: [UInt32] = Array(MSR.vmxBasic.rawValue...MSR.vmxVMFunc.rawValue)
  /// Those of them that a client can restore.
  static let savedMSRs: [UInt32] = {
    let given: [MSR] = [
      .vmxPinControls, .vmxPrimaryControls, .vmxExitControls, .vmxEntryControls, .vmxCR0Fixed1,
      .vmxCR4Fixed1,
    ]
    return featureMSRs.filter { number in !given.contains { $0.rawValue == number } }
  }()

  /// What a guest with all of KVM_GET_SUPPORTED_CPUID has.
  static func offeredMSR(_ number: UInt32) -> UInt64? {
    NestedVMXCapabilities().value(
      MSR(rawValue: number), GuestFeatures(rawValue: .max), allowedCR4: CR4.supported.rawValue)
  }

  func readMSR(_ number: UInt32) -> UInt64? {
    if number == MSR.featureControl.rawValue { return featureControl }
    return capabilities.value(
      MSR(rawValue: number), vmx.features, allowedCR4: vmx.allowedCR4)
  }

  func writeMSR(_ number: UInt32, _ value: UInt64, byHost: Bool) -> Bool? {
    if number == MSR.featureControl.rawValue { return writeFeatureControl(value, byHost: byHost) }
    guard byHost else { return Self.featureMSRs.contains(number) ? false : nil }
    return capabilities.set(MSR(rawValue: number), value)
  }

  private func writeFeatureControl(_ value: UInt64, byHost: Bool) -> Bool {
    guard value & ~(FeatureControl.lock | FeatureControl.vmxOutsideSMX) == 0,
      byHost || featureControl & FeatureControl.lock == 0
    else { return false }
    featureControl = value
    return true
  }

  /// IA32_FEATURE_CONTROL lets VMXON be executed.
  var isEnabledByFirmware: Bool {
    let needed = FeatureControl.lock | FeatureControl.vmxOutsideSMX
    return featureControl & needed == needed
  }

  // MARK: VMX operation

  func beginOperation(_ pointer: UInt64) {
    vmxonPointer = pointer
    currentPointer = nil
    vmx.setGuestVMXOperation(true, VMXRegion.shadowBitmap.address)
  }

  func endOperation() {
    vmxonPointer = nil
    currentPointer = nil
    vmx.setGuestVMXOperation(false, VMXRegion.shadowBitmap.address)
    shadows.removeAll()
  }

  func reset(_ vcpu: VirtualCPU) {
    if isGuest {
      isGuest = false
      vmx.run(vmx.own)
    }
    if vmxonPointer != nil { endOperation() }
  }
}

extension VMXRegion {
  convenience init(isShadow: Bool) {
    self.init()
    if isShadow {
      unsafe bytes.storeBytes(of: VMXCapabilities.revision | VMXRegion.shadowBit, as: UInt32.self)
    }
  }

  /// In a VMCS's first word (SDM volume 3, "VMCS Types: Ordinary and Shadow").
  static let shadowBit: UInt32 = 1 << 31

  func copy(_ range: Range<Int>, from other: VMXRegion) {
    unsafe (bytes + range.lowerBound).copyMemory(
      from: other.bytes + range.lowerBound, byteCount: range.count)
  }

  func clear(_ range: Range<Int>) {
    unsafe (bytes + range.lowerBound).initializeMemory(
      as: UInt8.self, repeating: 0, count: range.count)
  }

  /// VMREAD and VMWRITE of which fields exit: of those that L1 does not have.
  static let shadowBitmap: VMXRegion = {
    let region = VMXRegion()
    for encoding: UInt32 in 0..<0x8000 {
      let byte = Int(truncatingIfNeeded: encoding >> 3)
      let old = unsafe region.bytes.load(fromByteOffset: byte, as: UInt8.self)
      let bit: UInt8 = 1 << UInt8(encoding & 7)
      let exists = NestedVMX.hasField(VMCSField(rawValue: encoding))
      unsafe region.bytes.storeBytes(
        of: exists ? old & ~bit : old | bit, toByteOffset: byte, as: UInt8.self)
    }
    return region
  }()
}

extension NestedVMX {
  /// Fields of features that L1 does not have.
  private static let absentFields: Set<VMCSField> = [
    .postedInterruptVector, .postedInterruptDescriptor, .eptpIndex, .guestInterruptStatus,
    .pmlIndex, .pmlAddress, .vmFunctionControls, .eptpListAddress, .vmreadBitmap, .vmwriteBitmap,
    .virtualizationExceptionInfo, .notifyWindow, .eoiExitBitmap0, .eoiExitBitmap1,
    .eoiExitBitmap2, .eoiExitBitmap3,
  ]

  /// Whether L1's VMCSs have a field, or the 64-bit field whose high half it is.
  static func hasField(_ field: VMCSField) -> Bool {
    guard VMCSPage.exists(field) else { return false }
    let whole = field.isHigh ? VMCSField(rawValue: field.rawValue & ~1) : field
    return !absentFields.contains(whole)
  }
}

/// There is no nested state of KVM's yet, and KVM_CHECK_EXTENSION says so. An SMI waits until L1
/// runs.
extension NestedVMX {
  func savedState(_ vcpu: VirtualCPU) -> NestedState { NestedState() }
  func restore(_ state: NestedState, _ vcpu: VirtualCPU) throws(Errno) { throw .invalidArgument }
  var takesManagementInterrupts: Bool { false }
  func suspend(_ vcpu: VirtualCPU) -> SuspendedGuest? { nil }
  func resume(_ guest: SuspendedGuest, _ vcpu: VirtualCPU) -> Bool { false }
}
