// SPDX-License-Identifier: Apache-2.0
//
// KVM_CAP_SYNC_REGS: registers that travel in `kvm_run` instead of in ioctls of their own.

import CHost
import SystemPackage

extension VirtualCPU {
  static let synchronizable = UInt64(
    KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)

  /// At the start of KVM_RUN: what the client marked as changed.
  func loadSynchronizedState() throws(Errno) {
    let dirty = run.pointee.kvm_dirty_regs
    guard dirty | run.pointee.kvm_valid_regs != 0 else { return }
    guard (dirty | run.pointee.kvm_valid_regs) & ~Self.synchronizable == 0 else {
      throw .invalidArgument
    }
    if dirty & UInt64(KVM_SYNC_X86_REGS) != 0 {
      setGeneralRegisters(run.pointee.s.regs.regs)
      run.pointee.kvm_dirty_regs &= ~UInt64(KVM_SYNC_X86_REGS)
    }
    if dirty & UInt64(KVM_SYNC_X86_SREGS) != 0 {
      try setSpecialRegisters(run.pointee.s.regs.sregs)
      run.pointee.kvm_dirty_regs &= ~UInt64(KVM_SYNC_X86_SREGS)
    }
    if dirty & UInt64(KVM_SYNC_X86_EVENTS) != 0 {
      try setEvents(run.pointee.s.regs.events)
      run.pointee.kvm_dirty_regs &= ~UInt64(KVM_SYNC_X86_EVENTS)
    }
  }

  /// At its end: what the client wants to see.
  func storeSynchronizedState() {
    let valid = run.pointee.kvm_valid_regs
    if valid & Self.synchronizable == 0 { return }
    if valid & UInt64(KVM_SYNC_X86_REGS) != 0 { run.pointee.s.regs.regs = generalRegisters }
    if valid & UInt64(KVM_SYNC_X86_SREGS) != 0 { run.pointee.s.regs.sregs = specialRegisters }
    if valid & UInt64(KVM_SYNC_X86_EVENTS) != 0 { run.pointee.s.regs.events = events }
  }
}
