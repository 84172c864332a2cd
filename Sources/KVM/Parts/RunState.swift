// SPDX-License-Identifier: Apache-2.0
//
// How far a vCPU is: started or not, halted or not, in KVM_RUN or not, and what KVM_RUN still has
// to finish or to report. Belongs to the thread that is in an ioctl of the vCPU. It reaches nothing
// else.

import CHost

/// What KVM_RUN does first with the client's answer to the last exit.
enum Completion: Equatable {
  case none
  /// OUT: nothing but RIP.
  case portOut
  /// IN of so many bytes: into RAX.
  case portIn(UInt8)
  /// MMIO or string I/O: execute the instruction again with one more access answered.
  case emulation
  /// RDMSR, WRMSR that the client answered.
  case readMSR
  case writeMSR
  /// A hypercall whose result the client gave.
  case hypercall
}

struct RunState {
  /// KVM_MP_STATE_...
  var mpState: UInt32
  /// KVM_RUN was called: the CPUID stays as it is.
  var hasRun = false
  /// In KVM_RUN.
  var isInRun = false
  /// KVM_HC_KICK_CPU came: the next halt, or the one that lasts, ends.
  var wakePending = false
  /// KVM_SET_SIGNAL_MASK: the signals that are blocked during KVM_RUN; nil: the thread's own.
  var signalMask: UInt64?

  // MARK: What is to be finished

  /// What the next KVM_RUN has to finish.
  var completion: Completion = .none
  /// Of the IN or OUT that the client was asked for.
  var completionRIP: UInt64 = 0

  // MARK: What is to be reported

  /// KVM_RUN ends with EFAULT.
  var isHostFault = false
  /// KVM_RUN_X86_BUS_LOCK at the next return.
  var hasLockedBus = false
  /// A vector whose end the client's I/O APIC has to know.
  var endedVector: UInt8?

  init(mpState: Int32) { self.mpState = UInt32(mpState) }

  var isRunnable: Bool { mpState == UInt32(KVM_MP_STATE_RUNNABLE) }
  var isHalted: Bool { mpState == UInt32(KVM_MP_STATE_HALTED) }
  var hasReceivedINIT: Bool { mpState == UInt32(KVM_MP_STATE_INIT_RECEIVED) }
  var isWaitingForStartup: Bool {
    mpState == UInt32(KVM_MP_STATE_UNINITIALIZED) || hasReceivedINIT
  }

  mutating func become(_ state: Int32) { mpState = UInt32(state) }

  /// Once for each that was noted.
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
