// SPDX-License-Identifier: Apache-2.0
//
// What old clients do about a slow TPR: reports of its accesses, and a copy of it in guest memory
// (KVM_TPR_ACCESS_REPORTING, KVM_SET_VAPIC_ADDR). Belongs to the thread that is in an ioctl of the
// vCPU. It reaches nothing else; VirtualCPU+APICIoctls has what the vCPU does with it.

struct TaskPrioritySharing {
  struct Access {
    var rip: UInt64
    var isWrite: Bool
  }

  /// The client wants to hear of accesses.
  var isReported = false
  /// The access to report.
  var access: Access?
  /// The guest-physical address of the copy; 0: none.
  var copy: UInt64 = 0

  /// An access to the TPR's register, by the instruction at `rip`.
  mutating func note(rip: UInt64, isWrite: Bool) {
    if isReported { access = Access(rip: rip, isWrite: isWrite) }
  }

  mutating func takeAccess() -> Access? {
    guard let access else { return nil }
    self.access = nil
    return access
  }
}
