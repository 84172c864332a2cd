// SPDX-License-Identifier: Apache-2.0
//
// Support for clients that avoid slow TPR accesses: reports of TPR accesses, and a copy of the TPR
// in guest memory (KVM_TPR_ACCESS_REPORTING, KVM_SET_VAPIC_ADDR). Only the thread in an ioctl of
// the vCPU uses it. VirtualCPU+APICIoctls contains the vCPU's side.

struct TaskPrioritySharing {
  struct Access {
    var rip: UInt64
    var isWrite: Bool
  }

  /// The client wants reports of accesses.
  var isReported = false
  /// The access to report.
  var access: Access?
  /// The guest-physical address of the copy; 0: none.
  var copy: UInt64 = 0

  /// Notes an access to the TPR by the instruction at `rip`.
  mutating func note(rip: UInt64, isWrite: Bool) {
    if isReported { access = Access(rip: rip, isWrite: isWrite) }
  }

  mutating func takeAccess() -> Access? {
    guard let access else { return nil }
    self.access = nil
    return access
  }
}
