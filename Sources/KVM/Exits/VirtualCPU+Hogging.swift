// SPDX-License-Identifier: Apache-2.0
//
// Guests that block others: bus locks (Linux, "KVM_CAP_X86_BUS_LOCK_EXIT") and endless faults
// without an event window (Linux, "KVM_CAP_X86_NOTIFY_VMEXIT").

import CHost
import Synchronization
import SystemPackage
import X86
import X86CPU

extension VirtualCPU {
  /// Applies the machine's options.
  func updateHoggingControls() {
    let (detects, window) = unsafe machine.options.withLock {
      ($0.detectsBusLocks, $0.notifyWindow)
    }
    backend.setBusLockDetection(detects)
    backend.setNotifyWindow(window)
  }

  /// Called after the instruction.
  func exitForBusLock() -> Disposition {
    runState.hasLockedBus = true
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_X86_BUS_LOCK)
    return .userSpace
  }

  func exitForNotify(isContextLost: Bool) -> Disposition {
    guard unsafe isContextLost || machine.options.withLock({ $0.tellsNotifyExits }) else {
      return .resume
    }
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_NOTIFY)
    unsafe run.pointee.notify.flags = isContextLost ? UInt32(KVM_NOTIFY_CONTEXT_INVALID) : 0
    return .userSpace
  }

  /// #AC is intercepted because its handler's stack may raise it again, without end. An event in
  /// whose delivery it arose is dropped: this is the pair's second event (SDM volume 3, "Interrupt
  /// 8: Double Fault Exception"), and a fault occurs again.
  func exitForAlignmentCheck() -> Disposition {
    events.interrupted = nil
    raise(GuestException(.alignmentCheck, code: 0))
    return .resume
  }
}

extension Machine {
  static let hoggingSwitches: [Int32: Switch] = [
    KVM_CAP_X86_BUS_LOCK_EXIT: { (machine, capability) throws(Errno) in
      let (off, exit) = (UInt64(KVM_BUS_LOCK_DETECTION_OFF), UInt64(KVM_BUS_LOCK_DETECTION_EXIT))
      let mode = capability.args.0
      guard machine.hypervisor.silicon == .intel else { throw .invalidArgument }
      guard mode & ~(off | exit) == 0, mode != off | exit else { throw .invalidArgument }
      if mode & exit != 0 { machine.options.withLock { $0.detectsBusLocks = true } }
    },
    KVM_CAP_X86_NOTIFY_VMEXIT: { (machine, capability) throws(Errno) in
      let (enabled, user): (UInt64, UInt64) = (1 << 0, 1 << 1)  // KVM_X86_NOTIFY_VMEXIT_...
      let flags = capability.args.0 & 0xFFFF_FFFF
      guard machine.hypervisor.silicon == .intel else { throw .invalidArgument }
      guard flags & ~(enabled | user) == 0, flags & enabled != 0 else { throw .invalidArgument }
      try machine.configure { (_) throws(Errno) in
        guard machine.virtualCPUs.isEmpty else { throw .invalidArgument }
        machine.options.withLock {
          $0.notifyWindow = UInt32(capability.args.0 >> 32)
          $0.tellsNotifyExits = flags & user != 0
        }
      }
    },
  ]
}
