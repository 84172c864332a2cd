// SPDX-License-Identifier: Apache-2.0
//
// A vCPU's run state: started, halted, in KVM_RUN, and what KVM_RUN still has to finish or report.
// Only the thread in an ioctl of the vCPU uses it.

import CHost

/// How the next KVM_RUN finishes the last exit.
enum Completion: Equatable {
  case none
  /// OUT: only advances RIP.
  case portOut
  /// IN of so many bytes into RAX.
  case portIn(UInt8)
  /// MMIO or string I/O: execute the instruction again with one more access answered.
  case emulation
  /// RDMSR or WRMSR that the client answered.
  case readMSR
  case writeMSR
  /// A hypercall with the client's result.
  case hypercall
}

struct RunState {
  /// KVM_MP_STATE_...
  var mpState: UInt32
  /// KVM_RUN was called: CPUID is now fixed.
  var hasRun = false
  /// In KVM_RUN.
  var isInRun = false
  /// KVM_HC_KICK_CPU arrived: ends the current or next halt.
  var wakePending = false
  /// KVM_SET_SIGNAL_MASK: the signals blocked during KVM_RUN; nil: the thread's mask.
  var signalMask: UInt64?

  // MARK: To finish

  /// What the next KVM_RUN must finish.
  var completion: Completion = .none
  /// RIP of the pending IN or OUT.
  var completionRIP: UInt64 = 0

  // MARK: To report

  /// KVM_RUN ends with EFAULT.
  var isHostFault = false
  /// KVM_RUN_X86_BUS_LOCK at the next return.
  var hasLockedBus = false
  /// A vector whose end must be reported to the client's I/O APIC.
  var endedVector: UInt8?

  init(mpState: Int32) { self.mpState = UInt32(mpState) }

  var isRunnable: Bool { mpState == UInt32(KVM_MP_STATE_RUNNABLE) }
  var isHalted: Bool { mpState == UInt32(KVM_MP_STATE_HALTED) }
  var hasReceivedINIT: Bool { mpState == UInt32(KVM_MP_STATE_INIT_RECEIVED) }
  var isWaitingForStartup: Bool {
    mpState == UInt32(KVM_MP_STATE_UNINITIALIZED) || hasReceivedINIT
  }

  mutating func become(_ state: Int32) { mpState = UInt32(state) }

  /// Resets the flag and returns its value.
  mutating func takeHostFault() -> Bool {
    defer { isHostFault = false }
    return isHostFault
  }

  mutating func takeBusLock() -> Bool {
    defer { hasLockedBus = false }
    return hasLockedBus
  }

  mutating func takeEndedVector() -> UInt8? {
    guard let vector = endedVector else { return nil }
    endedVector = nil
    return vector
  }
}
