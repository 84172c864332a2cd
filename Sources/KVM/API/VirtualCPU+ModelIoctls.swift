// SPDX-License-Identifier: Apache-2.0

import CHost
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
        try CPUIDTable.write(vcpu.cpuid.entries, to: argument)
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
    (CKVM_GET_TSC_KHZ, { (_, _) throws(Errno) in Int32(clamping: HostTSC.kilohertz) }),
    (
      CKVM_SET_TSC_KHZ,
      { (_, argument) throws(Errno) in
        // The counter is the host's: only its own frequency, give or take 250 parts per million.
        let wanted = argument.value == 0 ? HostTSC.kilohertz : UInt64(argument.value)
        let tolerance = HostTSC.kilohertz / 4000
        guard wanted &+ tolerance >= HostTSC.kilohertz, wanted <= HostTSC.kilohertz &+ tolerance
        else { throw .invalidArgument }
        return 0
      }
    ),
    (
      CKVM_KVMCLOCK_CTRL,
      { (vcpu, _) throws(Errno) in
        guard vcpu.msrs.systemTime & 1 != 0 else { throw .invalidArgument }
        vcpu.clockFlags |= ParavirtualClock.guestStopped
        vcpu.request(.clock)
        return 0
      }
    ),
    (
      CKVM_X86_SETUP_MCE,
      { (vcpu, argument) throws(Errno) in
        try vcpu.machineCheck.setUp(argument.read())
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
        case .tripleFault: vcpu.isTripleFaultPending = true
        }
        return 0
      }
    ),
  ]

  /// Once the vCPU has run, only what it has.
  private func setCPUID(_ entries: [kvm_cpuid_entry2]) throws(Errno) {
    if hasRun {
      guard CPUIDTable.areEqual(entries, cpuid.entries) else { throw .invalidArgument }
      return
    }
    cpuid = GuestCPUID(entries)
    backend.setGuestCR4(allowed: cpuid.allowedCR4)
  }
}
