// SPDX-License-Identifier: Apache-2.0
//
// The boundary between a VMM and a hypervisor: KVM's ioctls, with the numbers, structs and errnos
// of <linux/kvm.h>. Code above this protocol cannot distinguish the kernel's KVM from one inside
// the process.
//
// A handle is a number for an open KVM object, like a file descriptor. There are three kinds: the
// system (`open`), a virtual machine (the result of KVM_CREATE_VM on the system), a virtual CPU
// (the result of KVM_CREATE_VCPU on a machine). The owner of a handle closes it once.
//
//     let system = try transport.open()
//     let machine = try transport.ioctl(system, CKVM_CREATE_VM, 0)

import Host
import SystemPackage

/// A KVM implementation.
package protocol KVMTransport: AnyObject, Sendable {
  /// Its name in messages: "/dev/kvm", "the software KVM".
  var name: String { get }

  /// Opens the system: a new system handle.
  func open() throws(Errno) -> Int32

  /// Calls an ioctl.
  ///
  /// - Parameters:
  ///   - request: a `CKVM_...` number.
  ///   - argument: the request's argument: a value, or the address of its struct as an integer.
  /// - Returns: the ioctl's result, 0 or more; a new handle for the KVM_CREATE_ calls.
  /// - Throws: Linux's errno. KVM_RUN throws `Errno.interrupted` after a kick; the transport
  ///   repeats all other requests when a signal interrupts them.
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

  /// Makes a virtual CPU return from KVM_RUN soon, from any thread. The caller has set
  /// `kvm_run.immediate_exit` before, so that a KVM_RUN which has not started yet returns, too.
  ///
  /// - Parameter thread: the thread that runs this vCPU.
  func kick(_ vcpu: Int32, thread: ThreadIdentifier)

  /// This process, not the guest, has written to memory of a slot. Call it after the write and
  /// before the guest is notified, because a hypervisor may cache code from there. From any thread.
  func noteWrite(_ start: UnsafeRawPointer, count: Int)

  /// The hypervisor's statistics since it was opened, for people to read: names and values in the
  /// order of printing. Empty if it has none.
  func statistics() -> [(name: String, value: UInt64)]

  /// Completes reports that the hypervisor writes while guests run. Call it while none runs.
  func finishReports()
}

/// Names of statistics that other code uses.
package enum KVMStatistic {
  /// Instructions that guests retired.
  package static let instructions = "instructions retired"
}

extension KVMTransport {
  package func statistics() -> [(name: String, value: UInt64)] { [] }

  package func noteWrite(_ start: UnsafeRawPointer, count: Int) {}

  package func finishReports() {}
}
