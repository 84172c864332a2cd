// SPDX-License-Identifier: Apache-2.0
//
// The handle with which the preload library runs a vCPU. Members marked safe may be called in
// signal handlers.

import CHost
import Host
import Synchronization
import SystemPackage

/// A vCPU for signal handlers of its thread.
///
///     runner.run(0, entered: { runner.rearm() }, left: {})   // forgets earlier interruptions
///     // a handler calls runner.interrupt(): EINTR
package final class InterruptibleCPU: Sendable {
  private let vcpu: VirtualCPU
  /// Lives as long as its vCPUs' handles.
  private let machine: Machine

  init(vcpu: VirtualCPU, machine: Machine) {
    self.vcpu = vcpu
    self.machine = machine
  }

  /// Makes KVM_RUN return EINTR, now or when it is called. Safe in signal handlers.
  package func interrupt() { vcpu.request(.signal) }

  /// Forgets interruptions.
  package func rearm() {
    if vcpu.mailbox.mayHave(.signal) { _ = vcpu.mailbox.take(.signal) }
  }

  /// The file of the pages that the vCPU shares with its client.
  package var sharedFile: Int32 { vcpu.shared.file.descriptor.rawValue }

  /// See `Hypervisor.signalMask`.
  package var signalMask: UInt64? { vcpu.runState.signalMask }

  /// The dirty ring's byte range in the file; nil without one.
  package var dirtyRingRange: Range<Int>? {
    vcpu.dirtyRing.map { ring in
      let start = DirtyRing.pageOffset * 4096
      return start..<start + ring.byteCount
    }
  }

  /// The file with the ring of coalesced writes, at the same offset as in this vCPU's pages; nil if
  /// the ring is in this vCPU's own file.
  package var ringFile: Int32? { vcpu.shared.ringFile }
  package static let ringRange = CoalescedRing.fileRange

  /// KVM_RUN, which waits while another thread is in an ioctl of this vCPU.
  ///
  /// - Parameters:
  ///   - entered: called when this thread owns the vCPU; may call `rearm` and `interrupt`.
  ///   - left: called before the thread gives the vCPU up.
  package func run(
    _ argument: UInt, entered: () -> Void, left: () -> Void
  ) throws(Errno) -> Int32 {
    try vcpu.run(argument, entered: entered, left: left)
  }

  package func ioctl(_ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
    try vcpu.ioctl(request, argument)
  }
}
