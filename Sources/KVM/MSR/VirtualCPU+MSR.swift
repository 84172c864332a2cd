// SPDX-License-Identifier: Apache-2.0
//
// Model-specific registers for the guest's RDMSR and WRMSR (if they exit) and for the client's
// KVM_GET_MSRS and KVM_SET_MSRS.
//
// There are four kinds: those with a function here (clocks, local APIC, kvmclock); those in the
// control block or the physical CPU, checked by the processor's rules; those in `MSRStore`, which
// only store, by the processor's table; and unknown ones: nil, false, #GP.

import CHost
import InterruptChips
import Synchronization
import X86
import X86CPU

/// The MSRs of a vCPU that only store a value. Only the thread in an ioctl of the vCPU uses it.
struct MSRStore {
  /// By `MSRRule.slot`.
  var slots: InlineArray<112, UInt64> = MSRModel.initialSlots
  var isBootCPU = false
  /// IA32_APIC_BASE if the client has the local APIC.
  var apicBaseWithoutChip: UInt64 = APICBase.defaultAddress | APICBase.en.rawValue
  var tscAdjust: UInt64 = 0
  var systemTime: UInt64 = 0
  var pollControl: UInt64 = 1
  var platformInfo: UInt64 = 0
  var microcodeRevision: UInt64 = MSRModel.microcodeRevision
  /// IA32_ARCH_CAPABILITIES: the processor's bits that the client kept.
  var architecturalCapabilities = MSRModel.architecturalCapabilities
  var smiCount: UInt64 = 0
  /// IA32_POWER_CTL: stored without effect.
  var powerControl: UInt64 = 0
  var hardwareConfiguration: UInt64 = 0
  /// IA32_SPEC_CTRL if the guest's CPUID has it: stored without effect.
  var speculationControl: UInt64 = 0
}

/// The numbers of KVM's own MSRs (Linux, "KVM-specific MSRs").
enum ParavirtualMSR {
  static let oldWallClock: UInt32 = 0x11
  static let oldSystemTime: UInt32 = 0x12
  static let wallClock: UInt32 = 0x4B56_4D00
  static let systemTime: UInt32 = 0x4B56_4D01
  static let asyncFault: UInt32 = 0x4B56_4D02
  static let stealTime: UInt32 = 0x4B56_4D03
  static let endOfInterrupt: UInt32 = 0x4B56_4D04
  static let pollControl: UInt32 = 0x4B56_4D05
  static let asyncFaultVector: UInt32 = 0x4B56_4D06
  static let asyncFaultAcknowledge: UInt32 = 0x4B56_4D07
  /// Whether the machine may be migrated, for confidential guests only: reads as 0.
  static let migrationControl: UInt32 = 0x4B56_4D08
}

extension VirtualCPU {
  /// MSRs that are accessed in the control block.
  private static func controlBlockRegister(_ number: UInt32) -> ControlBlockRegister? {
    switch MSR(rawValue: number) {
    case .efer: .efer
    case .pat: .pat
    case .debugctl: .debugctl
    default: nil
    }
  }

  /// The value of an MSR; nil if it does not exist. The vCPU is loaded.
  ///
  /// - Parameter byHost: read by the client, not the guest.
  func readMSR(_ number: UInt32, byHost: Bool) -> UInt64? {
    if let register = Self.controlBlockRegister(number) { return backend[register] }
    guard isOfferedMSR(number, byHost: byHost) else {
      // The client may still save what the guest does not have.
      return byHost ? 0 : nil
    }
    if let nested, mayNest || byHost, let value = nested.readMSR(number) {
      return value
    }
    switch number {
    case APICRegister.x2APICBase...MSR.x2APICLast.rawValue:
      let time = apicTime
      return apic?.state.withLock { $0.readMSR(number, at: time) }
    case MSR.apicBase.rawValue:
      return apic?.state.withLock { $0.base } ?? msrs.apicBaseWithoutChip
    case MSR.timeStampCounter.rawValue: return guestTSC
    case MSR.tscAdjust.rawValue: return msrs.tscAdjust
    case MSR.tscDeadline.rawValue: return apic?.state.withLock { $0.readTSCDeadline() } ?? 0
    case MSR.featureControl.rawValue: return 1
    case ParavirtualMSR.wallClock, ParavirtualMSR.oldWallClock:
      return unsafe machine.options.withLock { $0.wallClock }
    case ParavirtualMSR.systemTime, ParavirtualMSR.oldSystemTime: return msrs.systemTime
    case ParavirtualMSR.pollControl: return msrs.pollControl
    case ParavirtualMSR.stealTime: return clock.steal.msr
    case ParavirtualMSR.endOfInterrupt: return paravirtual.eoi.msr
    case ParavirtualMSR.asyncFault: return paravirtual.faults.enable
    case ParavirtualMSR.asyncFaultVector: return paravirtual.faults.interrupt
    case ParavirtualMSR.asyncFaultAcknowledge, ParavirtualMSR.migrationControl: return 0
    case MSR.platformInfo.rawValue:
      return unsafe byHost || machine.options.withLock({ $0.canReadPlatformInfo })
        ? msrs.platformInfo : nil
    case MSR.biosSignatureID.rawValue: return msrs.microcodeRevision
    case MSR.archCapabilities.rawValue: return msrs.architecturalCapabilities
    case MSR.specCtrl.rawValue: return msrs.speculationControl
    case MSR.smiCount.rawValue: return msrs.smiCount
    case MSR.smBase.rawValue: return byHost ? smm.base : nil
    case MSR.powerControl.rawValue: return msrs.powerControl
    case VendorMSR.hardwareConfiguration: return msrs.hardwareConfiguration
    case MSR.performanceCapabilities.rawValue: return performance.capabilities
    case MSR.miscEnable.rawValue:
      let value = readModelMSR(number) ?? 0
      return performance.hasMiscEnableBit ? value | MSRModel.miscEnablePerformance : value
    default:
      if let register = PerformanceRegister(number) {
        return readPerformance(register, number, byHost: byHost)
      }
      if MachineCheckBanks.owns(number) { return machineCheck.read(number) }
      if VendorMSR.isReadable(number) { return 0 }
      return readModelMSR(number)
    }
  }

  /// The guest's CPUID says that it may be a hypervisor.
  private var mayNest: Bool { !cpuid.features.isDisjoint(with: .virtualization) }

  /// What the client, too, finds only where the guest has it.
  private static let ofTheGuestAlone: [UInt32] = [
    MSR.archCapabilities.rawValue, MSR.performanceCapabilities.rawValue,
  ]

  /// Whether the guest's CPUID offers an MSR. This limits KVM's own MSRs if the client wants it
  /// (KVM_CAP_ENFORCE_PV_FEATURE_CPUID).
  private func isOfferedMSR(_ number: UInt32, byHost: Bool) -> Bool {
    if byHost, !Self.ofTheGuestAlone.contains(number) { return true }
    if let needed = GuestFeatures.needed(forMSR: number) {
      return !cpuid.features.isDisjoint(with: needed)
    }
    if number == ParavirtualMSR.migrationControl {
      return cpuid.paravirtualFeatures & ParavirtualFeature.migrationControl != 0
    }
    guard paravirtual.enforcesCPUID, let bit = ParavirtualFeature.ofMSR[number] else {
      return true
    }
    return hasParavirtual(bit)
  }

  /// Whether the MSR exists, accessible or not.
  static func isKnownMSR(_ number: UInt32) -> Bool {
    MSRModel.rule(number) != nil || MachineCheckBanks.owns(number)
      || ParavirtualFeature.ofMSR[number] != nil || number == MSR.smiCount.rawValue
      || number == MSR.smBase.rawValue || number == MSR.powerControl.rawValue
      || VendorMSR.isReadable(number) || PerformanceRegister(number) != nil
      || number == VendorMSR.hardwareConfiguration
      || GuestFeatures.needed(forMSR: number) != nil
      || number == MSR.tscDeadline.rawValue
      || (APICRegister.x2APICBase...MSR.x2APICLast.rawValue).contains(number)
  }

  private func readModelMSR(_ number: UInt32) -> UInt64? {
    guard let rule = MSRModel.rule(number) else { return nil }
    if case .slot = rule.storage { return msrs.slots[rule.slot] }
    return try? cpu.readMSR(number, hostInitiated: true)
  }

  /// Writes an MSR; false if it does not exist or the value is invalid. The vCPU is loaded.
  func writeMSR(_ number: UInt32, _ value: UInt64, byHost: Bool) -> Bool {
    guard isOfferedMSR(number, byHost: byHost) else { return byHost && value == 0 }
    if let nested, mayNest || byHost,
      let isDone = nested.writeMSR(number, value, byHost: byHost)
    {
      return isDone
    }
    switch number {
    case MSR.efer.rawValue: return writeEFER(value, byHost: byHost)
    case MSR.pat.rawValue, MSR.debugctl.rawValue: return writeControlBlock(number, value)
    case APICRegister.x2APICBase...MSR.x2APICLast.rawValue: return writeX2APIC(number, value)
    case MSR.apicBase.rawValue: return writeAPICBase(value, byHost: byHost)
    case MSR.timeStampCounter.rawValue: return writeTSC(value, byHost: byHost)
    case MSR.tscAdjust.rawValue: return writeTSCAdjust(value, byHost: byHost)
    case MSR.tscDeadline.rawValue: return writeTSCDeadline(value, byHost: byHost)
    case MSR.featureControl.rawValue: return byHost
    case ParavirtualMSR.wallClock, ParavirtualMSR.oldWallClock:
      unsafe machine.options.withLock { $0.wallClock = value }
      writeWallClock(value)
    case ParavirtualMSR.systemTime, ParavirtualMSR.oldSystemTime:
      msrs.systemTime = value
      writeClock()
    case ParavirtualMSR.pollControl:
      guard value & ~1 == 0 else { return false }
      msrs.pollControl = value
    case ParavirtualMSR.stealTime: return writeStealMSR(value)
    case ParavirtualMSR.endOfInterrupt: return writeEOIMSR(value)
    case ParavirtualMSR.asyncFault: return writeAsyncFaultMSR(value)
    case ParavirtualMSR.asyncFaultVector: return writeAsyncFaultVector(value)
    case ParavirtualMSR.asyncFaultAcknowledge: if value & 1 != 0 { takeArrivals() }
    case ParavirtualMSR.migrationControl: return value & ~1 == 0
    case MSR.platformInfo.rawValue where byHost: msrs.platformInfo = value
    case MSR.biosSignatureID.rawValue where byHost: msrs.microcodeRevision = value
    case MSR.powerControl.rawValue: msrs.powerControl = value
    case VendorMSR.hardwareConfiguration:
      let wanted = value & ~VendorMSR.ignoredHardwareConfiguration
      guard wanted & ~VendorMSR.storedHardwareConfiguration == 0 else { return false }
      msrs.hardwareConfiguration = wanted
    case MSR.performanceCapabilities.rawValue:
      return writePerformanceCapabilities(value, byHost: byHost)
    case MSR.miscEnable.rawValue:
      return writeModelMSR(number, value & ~MSRModel.miscEnablePerformance, byHost: byHost)
    case MSR.archCapabilities.rawValue:
      guard byHost else { return false }
      msrs.architecturalCapabilities = value
    case MSR.specCtrl.rawValue:
      guard value & ~Self.knownSpeculationControl == 0 else { return false }
      msrs.speculationControl = value
    case MSR.predCmd.rawValue: return value & ~Self.predictionBarrier == 0
    case MSR.tscAux.rawValue: return writeTSCAux(value)
    case MSR.sysenterCS.rawValue where byHost:
      return writeModelMSR(number, value & 0xFFFF_FFFF, byHost: true)
    case MSR.sysenterESP.rawValue where byHost, MSR.sysenterEIP.rawValue where byHost:
      return writeModelMSR(number, canonical(value), byHost: true)
    case MSR.smiCount.rawValue:
      guard byHost else { return false }
      msrs.smiCount = value
    case MSR.smBase.rawValue:
      guard byHost else { return false }
      smm.base = value & 0xFFFF_FFFF
    default:
      if let register = PerformanceRegister(number) {
        return writePerformance(register, number, value, byHost: byHost)
      }
      if MachineCheckBanks.owns(number) {
        return machineCheck.write(number, value, byHost: byHost)
      }
      if VendorMSR.isReadable(number) { return VendorMSR.isWritable(number) }
      if Self.variableRanges.contains(number), value & cpuid.reservedAddressBits != 0 {
        return false
      }
      return writeModelMSR(number, value, byHost: byHost)
    }
    return true
  }

  /// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn.
  private static let variableRanges: Range<UInt32> = {
    let first = MSR.mtrrPhysBase0.rawValue
    return first..<(first + 2 * UInt32(MSRModel.variableRanges))
  }()
  /// IA32_SPEC_CTRL: IBRS, STIBP, SSBD, BHI_DIS_S.
  private static let knownSpeculationControl: UInt64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 10
  /// IA32_PRED_CMD: IBPB.
  private static let predictionBarrier: UInt64 = 1 << 0

  private func writeModelMSR(_ number: UInt32, _ value: UInt64, byHost: Bool) -> Bool {
    guard let rule = MSRModel.rule(number) else { return false }
    if case .slot = rule.storage {
      guard byHost || rule.check.allows(value, cpu) else { return false }
      msrs.slots[rule.slot] = value
      return true
    }
    if byHost, case .constant(let constant) = rule.storage {
      return value == constant || value == 0
    }
    do throws(GuestException) {
      try cpu.writeMSR(number, value, hostInitiated: byHost)
      return true
    } catch {
      return false
    }
  }

  private func writeControlBlock(_ number: UInt32, _ value: UInt64) -> Bool {
    guard let register = Self.controlBlockRegister(number),
      let rule = MSRModel.rule(number), rule.check.allows(value, cpu)
    else { return false }
    backend[register] = value
    return true
  }

  /// Only KVM_SET_SREGS lets the client set LMA. The guest may set what its CPUID offers.
  private func writeEFER(_ value: UInt64, byHost: Bool) -> Bool {
    let new = EFER(rawValue: value)
    guard new.isSubset(of: allowedEFER) else { return false }
    if !byHost {
      let changed = new.symmetricDifference(EFER(rawValue: backend[.efer]))
      guard !new.contains(.nxe) || cpuid.features.contains(.executeDisable),
        new.isDisjoint(with: [.lme, .lma]) || cpuid.features.contains(.longMode),
        !changed.contains(.lme) || backend[.cr0] & CR0.pg.rawValue == 0
      else { return false }
    }
    backend[.efer] = value & ~EFER.lma.rawValue | backend[.efer] & EFER.lma.rawValue
    return true
  }

  /// EFER bits that there are by the guest's CPUID; before it is set, as in Linux, all.
  var allowedEFER: EFER {
    let common: EFER = [.sce, .lme, .lma, .nxe]
    let hasSVM = nested != nil && hypervisor.silicon == .amd && cpuid.features.contains(.svm)
    return hasSVM ? common.union(.svme) : common
  }

  /// Intel's processors have bits 63:32 reserved, AMD's drop them.
  private func writeTSCAux(_ value: UInt64) -> Bool {
    if cpuid.isIntel, value >> 32 != 0 { return false }
    return writeModelMSR(MSR.tscAux.rawValue, value & 0xFFFF_FFFF, byHost: true)
  }

  /// The address in canonical form.
  private func canonical(_ value: UInt64) -> UInt64 {
    let width: Int64 = backend[.cr4] & CR4.la57.rawValue != 0 ? 57 : 48
    return UInt64(bitPattern: (Int64(bitPattern: value) &<< (64 - width)) &>> (64 - width))
  }

  // MARK: Local APIC

  private func writeX2APIC(_ number: UInt32, _ value: UInt64) -> Bool {
    guard let apic else { return false }
    let time = apicTime
    guard let effect = apic.state.withLock({ $0.writeMSR(number, value, at: time) }) else {
      return false
    }
    perform(effect)
    return true
  }

  /// Bits 7:0 and 9 of IA32_APIC_BASE.
  private static let reservedAPICBase: UInt64 = 0x2FF

  private func writeAPICBase(_ value: UInt64, byHost: Bool) -> Bool {
    let new = APICBase(rawValue: value)
    guard value & (Self.reservedAPICBase | cpuid.reservedAddressBits) == 0,
      !new.contains(.extd) || new.contains(.en) && cpuid.features.contains(.x2APIC)
    else { return false }
    guard let apic else {
      msrs.apicBaseWithoutChip = value
      return true
    }
    let done = apic.state.withLock {
      byHost
        ? $0.restoreBase(value)
        : $0.writeBase(value, physicalAddressWidth: Int(CPUIDModel.physicalAddressBits))
    }
    if done {
      apicIdentityChanged()
      armTimer()
      events.mustCheck = true
    }
    return done
  }

  private func writeTSCDeadline(_ value: UInt64, byHost: Bool) -> Bool {
    guard let apic else { return byHost }
    if byHost {
      apic.state.withLock { $0.restoreTSCDeadline(value) }
      armTimer()
    } else {
      perform(apic.state.withLock { $0.writeTSCDeadline(value) })
      // An expired deadline raises its interrupt now, before the next instruction.
      takeExpiredDeadline()
    }
    return true
  }
}

/// The MSRs that the client may save and restore.
enum MSRLists {
  /// KVM_GET_MSR_INDEX_LIST.
  static func saved(_ silicon: SiliconVendor) -> [UInt32] {
    silicon == .intel
      ? common + [MSR.featureControl.rawValue] + NestedVMX.savedMSRs
      : common + [MSR.hostSaveArea.rawValue]
  }

  private static let common: [UInt32] = {
    let own: [UInt32] = [
      ParavirtualMSR.wallClock, ParavirtualMSR.systemTime, ParavirtualMSR.oldWallClock,
      ParavirtualMSR.oldSystemTime, ParavirtualMSR.pollControl, ParavirtualMSR.stealTime,
      ParavirtualMSR.endOfInterrupt, ParavirtualMSR.asyncFault, ParavirtualMSR.asyncFaultVector,
      ParavirtualMSR.asyncFaultAcknowledge,
      MSR.tscDeadline.rawValue, MSR.platformInfo.rawValue, MSR.smiCount.rawValue,
      MSR.archCapabilities.rawValue, MSR.biosSignatureID.rawValue, MSR.mcgControl.rawValue,
      MSR.powerControl.rawValue, MSR.smBase.rawValue, MSR.performanceCapabilities.rawValue,
    ]
    let rules = MSRModel.rules.filter {
      if case .constant = $0.storage { return false }
      return $0.number != MSR.apicBase.rawValue
    }
    return rules.map(\.number) + own + PerformanceRegister.saved
  }()

  /// KVM_GET_MSR_FEATURE_INDEX_LIST: what the processor says of itself.
  static func features(_ silicon: SiliconVendor) -> [UInt32] {
    silicon == .intel ? generalFeatures + NestedVMX.featureMSRs : generalFeatures
  }

  private static let generalFeatures: [UInt32] = [
    MSR.archCapabilities.rawValue, MSR.biosSignatureID.rawValue,
    MSR.performanceCapabilities.rawValue,
  ]

  static func feature(_ number: UInt32, _ silicon: SiliconVendor) -> UInt64? {
    if silicon == .intel, let value = NestedVMX.offeredMSR(number) { return value }
    if number == MSR.performanceCapabilities.rawValue {
      return PerformanceCapabilities.fullWidthWrites
    }
    guard generalFeatures.contains(number), let rule = MSRModel.rule(number),
      case .constant(let value) = rule.storage
    else { return nil }
    return value
  }
}
