// SPDX-License-Identifier: Apache-2.0
//
// KVM_CAP_SYNC_REGS: registers in `kvm_run` instead of in ioctls of their own.

import CHost
import SystemPackage

extension VirtualCPU {
  static let synchronizable = UInt64(
    KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)

  /// Loads what the client marked dirty, at the start of KVM_RUN.
  func loadSynchronizedState() throws(Errno) {
    let dirty = unsafe run.pointee.kvm_dirty_regs
    let asked = unsafe dirty | run.pointee.kvm_valid_regs
    if asked == 0 { return }
    guard asked & ~Self.synchronizable == 0 else {
      throw .invalidArgument
    }
    if dirty & UInt64(KVM_SYNC_X86_REGS) != 0 {
      unsafe setGeneralRegisters(try copyOfShared(&run.pointee.s.regs.regs))
      unsafe run.pointee.kvm_dirty_regs &= ~UInt64(KVM_SYNC_X86_REGS)
    }
    if dirty & UInt64(KVM_SYNC_X86_SREGS) != 0 {
      try unsafe setSpecialRegisters(try copyOfShared(&run.pointee.s.regs.sregs))
      unsafe run.pointee.kvm_dirty_regs &= ~UInt64(KVM_SYNC_X86_SREGS)
    }
    if dirty & UInt64(KVM_SYNC_X86_EVENTS) != 0 {
      try unsafe setEvents(try copyOfShared(&run.pointee.s.regs.events))
      unsafe run.pointee.kvm_dirty_regs &= ~UInt64(KVM_SYNC_X86_EVENTS)
    }
  }

  /// A private copy of a part of the page that the client may change at any time: the values
  /// checked are the values used.
  private func copyOfShared<T>(_ part: UnsafeMutablePointer<T>) throws(Errno) -> T {
    try Argument(value: UInt(bitPattern: part)).read()
  }

  /// Stores what the client asked for, at the end of KVM_RUN.
  func storeSynchronizedState() {
    let valid = unsafe run.pointee.kvm_valid_regs
    if valid & Self.synchronizable == 0 { return }
    if valid & UInt64(KVM_SYNC_X86_REGS) != 0 { unsafe run.pointee.s.regs.regs = generalRegisters }
    if valid & UInt64(KVM_SYNC_X86_SREGS) != 0 {
      unsafe run.pointee.s.regs.sregs = specialRegisters
    }
    if valid & UInt64(KVM_SYNC_X86_EVENTS) != 0 { unsafe run.pointee.s.regs.events = clientEvents }
  }
}
