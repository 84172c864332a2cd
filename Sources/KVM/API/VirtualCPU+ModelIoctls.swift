// SPDX-License-Identifier: Apache-2.0

import CHost
import SystemPackage
import X86CPU

/// CPUID, MSRs and the clocks.
extension VirtualCPU {
  static let modelIoctls: [(UInt32, Method)] = [
    (
      CKVM_SET_CPUID2,
      { (vcpu, argument) throws(Errno) in
        vcpu.cpuid = GuestCPUID(try CPUIDTable.read(argument))
        vcpu.backend.setGuestCR4(allowed: vcpu.cpuid.allowedCR4)
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
      { (_, argument) throws(Errno) in
        let capabilities: UInt64 = try argument.read()
        let banks = capabilities & 0xFF
        guard banks > 0, banks <= 32, capabilities & ~(MachineCheck.capabilities | 0xFF) == 0 else {
          throw .invalidArgument
        }
        return 0
      }
    ),
  ]
}
