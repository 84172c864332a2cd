// SPDX-License-Identifier: Apache-2.0
//
// The boundary between a VMM and a hypervisor: KVM's ioctls, with the numbers, structs and errnos
// of <linux/kvm.h>. Everything above this protocol cannot tell the kernel's KVM from one that runs
// inside the process.
//
// A handle is a number that stands for an open KVM object, as a file descriptor does. There are
// three kinds: the system (`open`), a virtual machine (the result of KVM_CREATE_VM on the system),
// a virtual CPU (the result of KVM_CREATE_VCPU on a machine). Whoever got a handle closes it once.
//
//     let system = try transport.open()
//     let machine = try transport.ioctl(system, CKVM_CREATE_VM, 0)

import Host
import SystemPackage

/// A KVM that can be called.
package protocol KVMTransport: AnyObject, Sendable {
  /// What messages call it: "/dev/kvm", "the software KVM".
  var name: String { get }

  /// Opens the system: a new system handle.
  func open() throws(Errno) -> Int32

  /// Calls an ioctl.
  ///
  /// - Parameters:
  ///   - request: a `CKVM_...` number.
  ///   - argument: what the request takes: a value, or the address of its struct as an integer.
  /// - Returns: the ioctl's result, 0 or more; a new handle for the KVM_CREATE_ calls.
  /// - Throws: Linux's errno. KVM_RUN throws `Errno.interrupted` when it was kicked; all other
  ///   requests are repeated by the transport when a signal interrupts them.
  func ioctl(_ handle: Int32, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32

  /// Maps a virtual CPU's shared pages (`kvm_run`, the port I/O data page, the coalesced ring).
  /// They stay mapped until `unmapRun`.
  ///
  /// - Parameter size: bytes, as KVM_GET_VCPU_MMAP_SIZE answers.
  func mapRun(_ vcpu: Int32, size: Int) throws(Errno) -> UnsafeMutableRawPointer

  /// Undoes `mapRun`.
  func unmapRun(_ vcpu: Int32, _ pages: UnsafeMutableRawPointer, size: Int)

  /// Closes a handle.
  func close(_ handle: Int32)

  /// Makes a virtual CPU leave KVM_RUN soon, from any thread. The caller has set
  /// `kvm_run.immediate_exit` before, so that a KVM_RUN which has not started yet returns too.
  ///
  /// - Parameter thread: the thread that runs this vCPU.
  func kick(_ vcpu: Int32, thread: ThreadIdentifier)

  /// This process has written to memory of a slot, not the guest. To be called after the write and
  /// before the guest is told of it, as a hypervisor may keep code that it has read there. From any
  /// thread.
  func noteWrite(_ start: UnsafeRawPointer, count: Int)

  /// What the hypervisor counted since it was opened, for people to read: names and values in the
  /// order of printing. Empty where it does not tell.
  func statistics() -> [(name: String, value: UInt64)]

  /// Completes what the hypervisor was asked to report while guests ran. For when none runs.
  func finishReports()
}

/// Names of statistics that others compute with.
package enum KVMStatistic {
  /// Instructions that guests retired.
  package static let instructions = "instructions retired"
}

extension KVMTransport {
  package func statistics() -> [(name: String, value: UInt64)] { [] }

  package func noteWrite(_ start: UnsafeRawPointer, count: Int) {}

  package func finishReports() {}
}
