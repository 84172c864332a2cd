// SPDX-License-Identifier: Apache-2.0
//
// Model-specific registers as the guest's RDMSR and WRMSR (where they exit) and the client's
// KVM_GET_MSRS and KVM_SET_MSRS see them.
//
// Four kinds: those with a function here (clocks, local APIC, kvmclock); those in the control block
// or in the physical CPU, which the processor's own rules check; those that only store, in
// `MSRStore`, by the processor's table; and those that do not exist: nil, false, #GP.

import CHost
import InterruptChips
import Synchronization
import X86
import X86CPU

/// The MSRs of a vCPU that only store a value.
struct MSRStore {
  /// By `MSRRule.slot`.
  var slots: InlineArray<112, UInt64> = MSRModel.initialSlots
  var isBootCPU = false
  /// IA32_APIC_BASE where the client has the local APIC.
  var apicBaseWithoutChip: UInt64 = APICBase.defaultAddress | APICBase.en.rawValue
  var tscAdjust: UInt64 = 0
  var wallClock: UInt64 = 0
  var systemTime: UInt64 = 0
  var pollControl: UInt64 = 1
  var platformInfo: UInt64 = 0
  var microcodeRevision: UInt64 = MSRModel.microcodeRevision
  /// IA32_ARCH_CAPABILITIES: what the client leaves of the processor's.
  var architecturalCapabilities = MSRModel.architecturalCapabilities
  var smiCount: UInt64 = 0
  /// IA32_POWER_CTL: stored, nothing follows.
  var powerControl: UInt64 = 0
  var hardwareConfiguration: UInt64 = 0
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
}

extension VirtualCPU {
  /// MSRs in the control block's memory: read and written there.
  private static func controlBlockRegister(_ number: UInt32) -> ControlBlockRegister? {
    switch MSR(rawValue: number) {
    case .efer: .efer
    case .pat: .pat
    case .debugctl: .debugctl
    default: nil
    }
  }

  /// The value of an MSR; nil where it does not exist. The vCPU is loaded.
  ///
  /// - Parameter byHost: the client asks, not the guest.
  func readMSR(_ number: UInt32, byHost: Bool) -> UInt64? {
    if let register = Self.controlBlockRegister(number) { return backend[register] }
    guard byHost || isOfferedMSR(number) else { return nil }
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
    case ParavirtualMSR.wallClock, ParavirtualMSR.oldWallClock: return msrs.wallClock
    case ParavirtualMSR.systemTime, ParavirtualMSR.oldSystemTime: return msrs.systemTime
    case ParavirtualMSR.pollControl: return msrs.pollControl
    case ParavirtualMSR.stealTime: return steal.msr
    case ParavirtualMSR.endOfInterrupt: return eoi.msr
    case ParavirtualMSR.asyncFault: return asyncFaults.enable
    case ParavirtualMSR.asyncFaultVector: return asyncFaults.interrupt
    case ParavirtualMSR.asyncFaultAcknowledge: return 0
    case MSR.platformInfo.rawValue:
      return byHost || machine.options.withLock({ $0.canReadPlatformInfo })
        ? msrs.platformInfo : nil
    case MSR.biosSignatureID.rawValue: return msrs.microcodeRevision
    case MSR.archCapabilities.rawValue: return msrs.architecturalCapabilities
    case MSR.smiCount.rawValue: return msrs.smiCount
    case MSR.smBase.rawValue: return byHost ? smm.base : nil
    case MSR.powerControl.rawValue: return msrs.powerControl
    case VendorMSR.hardwareConfiguration: return msrs.hardwareConfiguration
    case MSR.performanceCapabilities.rawValue:
      return byHost || cpuid.hasPerformanceCapabilities ? performance.capabilities : nil
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

  /// Whether the guest may know KVM's own MSRs (KVM_CAP_ENFORCE_PV_FEATURE_CPUID).
  private func isOfferedMSR(_ number: UInt32) -> Bool {
    guard enforcesParavirtualCPUID, let bit = ParavirtualFeature.ofMSR[number] else { return true }
    return hasParavirtual(bit)
  }

  /// Whether there is such an MSR at all, whatever may be done with it.
  static func isKnownMSR(_ number: UInt32) -> Bool {
    MSRModel.rule(number) != nil || MachineCheckBanks.owns(number)
      || ParavirtualFeature.ofMSR[number] != nil || number == MSR.smiCount.rawValue
      || number == MSR.smBase.rawValue || number == MSR.powerControl.rawValue
      || VendorMSR.isReadable(number) || PerformanceRegister(number) != nil
      || number == VendorMSR.hardwareConfiguration
      || number == MSR.tscDeadline.rawValue
      || (APICRegister.x2APICBase...MSR.x2APICLast.rawValue).contains(number)
  }

  private func readModelMSR(_ number: UInt32) -> UInt64? {
    guard let rule = MSRModel.rule(number) else { return nil }
    if case .slot = rule.storage { return msrs.slots[rule.slot] }
    return try? cpu.readMSR(number, hostInitiated: true)
  }

  /// Writes an MSR; false where it does not exist or may not have the value. The vCPU is loaded.
  func writeMSR(_ number: UInt32, _ value: UInt64, byHost: Bool) -> Bool {
    guard byHost || isOfferedMSR(number) else { return false }
    switch number {
    case MSR.efer.rawValue: return writeEFER(value)
    case MSR.pat.rawValue, MSR.debugctl.rawValue: return writeControlBlock(number, value)
    case APICRegister.x2APICBase...MSR.x2APICLast.rawValue: return writeX2APIC(number, value)
    case MSR.apicBase.rawValue: return writeAPICBase(value, byHost: byHost)
    case MSR.timeStampCounter.rawValue: return writeTSC(value, byHost: byHost)
    case MSR.tscAdjust.rawValue: return writeTSCAdjust(value, byHost: byHost)
    case MSR.tscDeadline.rawValue: return writeTSCDeadline(value, byHost: byHost)
    case MSR.featureControl.rawValue: return byHost
    case ParavirtualMSR.wallClock, ParavirtualMSR.oldWallClock:
      msrs.wallClock = value
      writeWallClock()
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
      guard byHost, value & ~MSRModel.architecturalCapabilities == 0 else { return false }
      msrs.architecturalCapabilities = value
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
      return writeModelMSR(number, value, byHost: byHost)
    }
    return true
  }

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

  /// The client's write: LMA is as it says only through KVM_SET_SREGS.
  private func writeEFER(_ value: UInt64) -> Bool {
    let allowed: EFER = [.sce, .lme, .lma, .nxe]
    guard EFER(rawValue: value).isSubset(of: allowed) else { return false }
    backend[.efer] = value & ~EFER.lma.rawValue | backend[.efer] & EFER.lma.rawValue
    return true
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

  private func writeAPICBase(_ value: UInt64, byHost: Bool) -> Bool {
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
      mustCheckEvents = true
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
    }
    return true
  }

  // MARK: Clocks

  private func writeTSC(_ value: UInt64, byHost: Bool) -> Bool {
    if byHost {
      setTSCOffset(machine.clock.offset(forWriting: value, rate: tscRate))
    } else {
      let offset = value &- tscRate.counts(ofHost: HostTSC.read())
      msrs.tscAdjust &+= offset &- tscOffset
      setTSCOffset(offset)
    }
    return true
  }

  private func writeTSCAdjust(_ value: UInt64, byHost: Bool) -> Bool {
    if !byHost { setTSCOffset(tscOffset &+ value &- msrs.tscAdjust) }
    msrs.tscAdjust = value
    return true
  }

  /// The guest's counter now.
  var guestTSC: UInt64 { tscRate.counts(ofHost: HostTSC.read()) &+ tscOffset }

  /// KVM_SET_TSC_KHZ. A counter that nobody has written goes on as if it had always had this rate,
  /// so that all vCPUs agree; one that was written goes on from where it is.
  func setTSCRate(_ rate: TSCRate) {
    if rate == tscRate { return }
    let isWritten = tscOffset != machine.clock.offset(rate: tscRate)
    let value = guestTSC
    tscRate = rate
    backend.setTSCMultiplier(rate.multiplier)
    setTSCOffset(
      isWritten
        ? value &- rate.counts(ofHost: HostTSC.read()) : machine.clock.offset(rate: rate))
  }

  func setTSCOffset(_ offset: UInt64) {
    tscOffset = offset
    backend.setTSCOffset(offset)
    armTimer()
    writeClock()
  }

  /// Writes the vCPU's kvmclock structure, if the guest has named one.
  func writeClock() {
    let address = msrs.systemTime & ~1
    guard msrs.systemTime & 1 != 0, address & 3 == 0 else { return }
    let done = writeMemory(address, count: ParavirtualClock.size, in: machine.memory) {
      ParavirtualClock.write(
        &$0, machine.clock, rate: tscRate, tscOffset: tscOffset, flags: clockFlags)
    }
    if done { clockFlags &= ~ParavirtualClock.guestStopped }
  }

  private func writeWallClock() {
    guard msrs.wallClock & 3 == 0 else { return }
    _ = writeMemory(
      msrs.wallClock, count: ParavirtualClock.wallClockSize, in: machine.memory
    ) {
      ParavirtualClock.writeWallClock(&$0, machine.clock)
    }
  }
}

/// The MSRs that the client may save and restore.
enum MSRLists {
  /// KVM_GET_MSR_INDEX_LIST.
  static let saved: [UInt32] = {
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
  static let features: [UInt32] = [
    MSR.archCapabilities.rawValue, MSR.biosSignatureID.rawValue,
    MSR.performanceCapabilities.rawValue,
  ]

  static func feature(_ number: UInt32) -> UInt64? {
    if number == MSR.performanceCapabilities.rawValue {
      return PerformanceCapabilities.fullWidthWrites
    }
    guard features.contains(number), let rule = MSRModel.rule(number),
      case .constant(let value) = rule.storage
    else { return nil }
    return value
  }
}
