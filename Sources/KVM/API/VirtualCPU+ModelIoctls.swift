// SPDX-License-Identifier: Apache-2.0
//
// The ioctls for a vCPU's CPUID and MSRs and for the rate and offset of its time-stamp counter.

import CHost
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

/// CPUID, MSRs and the clocks.
extension VirtualCPU {
  static let modelIoctls: [(UInt32, Method)] = [
    (
      CKVM_SET_CPUID2,
      { (vcpu, argument) throws(Errno) in
        try vcpu.setCPUID(CPUIDTable.read(argument))
        return 0
      }
    ),
    (
      CKVM_SET_CPUID,
      { (vcpu, argument) throws(Errno) in
        try vcpu.setCPUID(CPUIDTable.readOld(argument))
        return 0
      }
    ),
    (
      CKVM_GET_CPUID2,
      { (vcpu, argument) throws(Errno) in
        try CPUIDTable.write(vcpu.cpuid.entries(vcpu.cpuidState), to: argument)
        return 0
      }
    ),
    (
      CKVM_GET_MSRS,
      { (vcpu, argument) throws(Errno) in
        try MSRTable.forEach(argument) { vcpu.readMSR($0.index, byHost: true) }
      }
    ),
    (
      CKVM_SET_MSRS,
      { (vcpu, argument) throws(Errno) in
        defer { vcpu.stateChanged() }
        return try MSRTable.forEach(argument) { entry in
          vcpu.writeMSR(entry.index, entry.data, byHost: true) ? entry.data : nil
        }
      }
    ),
    (
      CKVM_HAS_DEVICE_ATTR,
      { (vcpu, argument) throws(Errno) in
        _ = try offsetAttribute(argument)
        return 0
      }
    ),
    (
      CKVM_GET_DEVICE_ATTR,
      { (vcpu, argument) throws(Errno) in
        try offsetAttribute(argument).write(vcpu.clock.offset)
        return 0
      }
    ),
    (
      CKVM_SET_DEVICE_ATTR,
      { (vcpu, argument) throws(Errno) in
        vcpu.setTSCOffset(try offsetAttribute(argument).read())
        return 0
      }
    ),
    (CKVM_GET_TSC_KHZ, { (vcpu, _) throws(Errno) in Int32(clamping: vcpu.clock.rate.kilohertz) }),
    (
      CKVM_SET_TSC_KHZ,
      { (vcpu, argument) throws(Errno) in
        vcpu.setTSCRate(try TSCRate(wanted: argument.value))
        return 0
      }
    ),
    (
      CKVM_KVMCLOCK_CTRL,
      { (vcpu, _) throws(Errno) in
        guard vcpu.msrs.systemTime & 1 != 0 else { throw .invalidArgument }
        vcpu.clock.flags |= ParavirtualClock.guestStopped
        vcpu.request(.clock)
        return 0
      }
    ),
    (
      CKVM_X86_SETUP_MCE,
      { (vcpu, argument) throws(Errno) in
        try vcpu.machineCheck.setUp(argument.read())
        let hasInterrupt = vcpu.machineCheck.hasCorrectedInterrupt
        vcpu.apic?.state.withLock { $0.offerCorrectedErrors(hasInterrupt) }
        return 0
      }
    ),
    (
      CKVM_X86_SET_MCE,
      { (vcpu, argument) throws(Errno) in
        let isEnabled = vcpu.backend[.cr4] & CR4.mce.rawValue != 0
        switch try vcpu.machineCheck.report(argument.read(), isEnabled: isEnabled) {
        case .none: break
        case .exception: vcpu.raise(GuestException(.machineCheck))
        case .correctedInterrupt:
          if let apic = vcpu.apic {
            vcpu.note(apic.state.withLock { $0.raiseLocal(APICRegister.lvtCMCI) })
          }
        case .tripleFault: vcpu.events.isTripleFault = true
        }
        return 0
      }
    ),
  ]

  /// The address of KVM_VCPU_TSC_OFFSET's value, the only attribute of a vCPU.
  private static func offsetAttribute(_ argument: Argument) throws(Errno) -> Argument {
    let attribute: kvm_device_attr = try argument.read()
    guard attribute.group == UInt32(KVM_VCPU_TSC_CTRL),
      attribute.attr == UInt64(KVM_VCPU_TSC_OFFSET)
    else { throw .noSuchAddressOrDevice }
    return Argument(value: UInt(attribute.addr))
  }

  func hasParavirtual(_ feature: UInt32) -> Bool {
    paravirtual.allows(feature, offered: cpuid.paravirtualFeatures)
  }

  /// After the vCPU has run, accepts only an identical table.
  private func setCPUID(_ given: [kvm_cpuid_entry2]) throws(Errno) {
    let haltsInGuest = unsafe machine.options.withLock { $0.haltsInGuest }
    let entries = GuestCPUID.adjusted(given, haltsInGuest: haltsInGuest)
    if runState.hasRun {
      let state = cpuidState
      let new = GuestCPUID(entries).entries(state)
      guard CPUIDTable.areEqual(new, cpuid.entries(state)) else { throw .invalidArgument }
      return
    }
    guard GuestCPUID.isValid(entries) else { throw .invalidArgument }
    cpuid = GuestCPUID(entries)
    registers.setVendorRules(cpuid.rules)
    backend.setInstructions(cpuid.features)
    updateMSRInterception()
    let hasDeadline = cpuid.features.contains(.tscDeadline)
    apic?.state.withLock {
      if hasDeadline { $0.features.insert(.tscDeadline) } else { $0.features.remove(.tscDeadline) }
    }
    backend.setGuestCR4(allowed: allowedCR4)
    configureCounters()
    updateHoggingControls()
  }
}
