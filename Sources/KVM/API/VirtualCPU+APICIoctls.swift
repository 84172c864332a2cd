// SPDX-License-Identifier: Apache-2.0
//
// The local APIC's state, and support for clients that avoid slow TPR accesses: reports of TPR
// accesses, and a copy of the TPR in guest memory (KVM_TPR_ACCESS_REPORTING, KVM_SET_VAPIC_ADDR).

import CHost
import InterruptChips
import Synchronization
import SystemPackage

extension VirtualCPU {
  static let apicIoctls: [(UInt32, Method)] = [
    (
      CKVM_GET_LAPIC,
      { (vcpu, argument) throws(Errno) in
        guard let apic = vcpu.apic else { throw .invalidArgument }
        // A timer that has expired by now has its interrupt in the image: after a restore nothing
        // else would raise it.
        let (time, wide) = (vcpu.apicTime, vcpu.usesWideAPICIDs)
        vcpu.expireTimer(at: time)
        try argument.write(apic.state.withLock { $0.registerImage(at: time, wideID: wide) })
        return 0
      }
    ),
    (
      CKVM_SET_LAPIC,
      { (vcpu, argument) throws(Errno) in
        guard let apic = vcpu.apic else { throw .invalidArgument }
        let image: InlineArray<256, UInt32> = try argument.read()
        let (time, wide) = (vcpu.apicTime, vcpu.usesWideAPICIDs)
        let done = apic.state.withLock {
          $0.load(registerImage: image, at: time, wideID: wide)
        }
        guard done else { throw .invalidArgument }
        vcpu.apicIdentityChanged()
        vcpu.armTimer()
        vcpu.events.mustCheck = true
        return 0
      }
    ),
    (
      CKVM_TPR_ACCESS_REPORTING,
      { (vcpu, argument) throws(Errno) in
        let control: kvm_tpr_access_ctl = try argument.read()
        guard control.flags == 0 else { throw .invalidArgument }
        vcpu.taskPriority.isReported = control.enabled != 0
        try argument.write(control)
        return 0
      }
    ),
    (
      CKVM_SET_VAPIC_ADDR,
      { (vcpu, argument) throws(Errno) in
        let address: UInt64 = try argument.read(kvm_vapic_addr.self).vapic_addr
        guard vcpu.apic != nil,
          unsafe address == 0 || vcpu.machine.memory.isReadable(address, count: 4)
        else { throw .invalidArgument }
        vcpu.taskPriority.copy = address
        return 0
      }
    ),
  ]

  private var usesWideAPICIDs: Bool {
    unsafe machine.options.withLock { $0.messageFormat.contains(.extendedDestination) }
  }

  /// Applies events from the bus to the state before it is read.
  func takePendingEvents() {
    if !mailbox.take(.timer).isEmpty { expireTimer() }
  }

  // MARK: TPR

  /// Notes a TPR access, to be reported after the instruction.
  func noteTPRAccess(isWrite: Bool) {
    taskPriority.note(rip: emulation.rip, isWrite: isWrite)
  }

  /// Reports a noted access as KVM_EXIT_TPR_ACCESS. False if there is none.
  func takeTPRReport() -> Bool {
    guard let access = taskPriority.takeAccess() else { return false }
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_TPR_ACCESS)
    unsafe run.pointee.tpr_access.rip = access.rip
    unsafe run.pointee.tpr_access.is_write = access.isWrite ? 1 : 0
    return true
  }

  /// Before an entry: reads the TPR from the guest's copy, which the guest may have changed.
  func readPriorityCopy() {
    guard taskPriority.copy != 0,
      let value = unsafe machine.memory.load(taskPriority.copy, as: UInt32.self)
    else { return }
    let priority = UInt8(truncatingIfNeeded: value)
    apic?.state.withLock { if $0.taskPriority != priority { $0.setTaskPriority(priority) } }
    events.mustCheck = true
  }

  /// After an exit: writes TPR, the class in service and the highest request to the copy.
  func writePriorityCopy() {
    guard taskPriority.copy != 0, let apic else { return }
    let value = apic.state.withLock { apic -> UInt32 in
      UInt32(apic.taskPriority) | UInt32((apic.highestServicedVector ?? 0) & 0xF0) << 8
        | UInt32(apic.highestRequestedVector ?? 0) << 24
    }
    _ = unsafe writeMemory(taskPriority.copy, count: 4, in: machine.memory) {
      $0.storeBytes(of: value, as: UInt32.self)
    }
  }
}
