// SPDX-License-Identifier: Apache-2.0
//
// The table of a vCPU's ioctls and the lock (`inUse`) that serializes them.

import CHost
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

/// The ioctls of a vCPU. All but KVM_RUN are called with the vCPU loaded on a physical CPU.
extension VirtualCPU {
  typealias Method = IoctlTable<VirtualCPU>.Method

  private static let ioctls = IoctlTable<VirtualCPU>(
    [
      control, apicIoctls, debugIoctls, registerIoctls, extendedStateIoctls, modelIoctls,
      eventIoctls, nestedIoctls,
    ], missing: .invalidArgument)

  /// Calls an ioctl. Calls are serialized: another thread's call waits for the end of KVM_RUN.
  func ioctl(_ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
    try inUse.withLock { (_) throws(Errno) -> Int32 in
      if request == CKVM_RUN {
        guard argument == 0 else { throw .invalidArgument }
        return try runIoctl()
      }
      return try withLoaded { () throws(Errno) in
        try Self.ioctls.call(self, request, argument)
      }
    }
  }

  /// KVM_RUN for a thread that learns when it owns the vCPU; see `InterruptibleCPU.run`.
  func run(_ argument: UInt, entered: () -> Void, left: () -> Void) throws(Errno) -> Int32 {
    guard argument == 0 else { throw .invalidArgument }
    return try inUse.withLock { (_) throws(Errno) -> Int32 in
      entered()
      defer { left() }
      return try runIoctl()
    }
  }

  private static let control: [(UInt32, Method)] = [
    (
      CKVM_GET_MP_STATE,
      { (vcpu, argument) throws(Errno) in
        try argument.write(kvm_mp_state(mp_state: vcpu.runState.mpState))
        return 0
      }
    ),
    (
      CKVM_SET_MP_STATE,
      { (vcpu, argument) throws(Errno) in
        try vcpu.setMPState(argument.read(kvm_mp_state.self).mp_state)
        return 0
      }
    ),
    (CKVM_GET_STATS_FD, { (vcpu, _) throws(Errno) in try vcpu.openStatistics() }),
    (
      CKVM_SET_SIGNAL_MASK,
      { (vcpu, argument) throws(Errno) in
        try vcpu.setSignalMask(argument)
        return 0
      }
    ),
    (
      CKVM_ENABLE_CAP,
      { (vcpu, argument) throws(Errno) in
        let capability: kvm_enable_cap = try argument.read()
        guard capability.flags == 0,
          Int32(bitPattern: capability.cap) == KVM_CAP_ENFORCE_PV_FEATURE_CPUID
        else { throw .invalidArgument }
        vcpu.paravirtual.enforcesCPUID = capability.args.0 != 0
        return 0
      }
    ),
  ]

  /// KVM_SET_SIGNAL_MASK: a `kvm_signal_mask` with the kernel's eight bytes of signals, or null.
  private func setSignalMask(_ argument: Argument) throws(Errno) {
    guard argument.value != 0 else {
      runState.signalMask = nil
      return
    }
    let length: UInt32 = try argument.read()
    guard length == 8 else { throw .invalidArgument }
    runState.signalMask = try argument.element(0, at: 4, as: UInt64.self)
  }

  private func setMPState(_ state: UInt32) throws(Errno) {
    let known: [Int32] = [
      KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED,
      KVM_MP_STATE_HALTED, KVM_MP_STATE_SIPI_RECEIVED,
    ]
    guard known.contains(Int32(bitPattern: state)),
      apic != nil || state == UInt32(KVM_MP_STATE_RUNNABLE)
    else { throw .invalidArgument }
    // System management mode blocks INIT.
    let isAfterINIT =
      state == UInt32(KVM_MP_STATE_SIPI_RECEIVED) || state == UInt32(KVM_MP_STATE_INIT_RECEIVED)
    if isAfterINIT, smm.isActive || mailbox.pendingSMI.load(ordering: .relaxed) {
      throw .invalidArgument
    }
    if state == UInt32(KVM_MP_STATE_SIPI_RECEIVED) {
      runState.become(KVM_MP_STATE_INIT_RECEIVED)
      request(.startup)
    } else {
      runState.mpState = state
    }
    events.mustCheck = true
  }
}
