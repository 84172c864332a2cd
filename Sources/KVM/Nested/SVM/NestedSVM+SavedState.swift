// SPDX-License-Identifier: Apache-2.0
//
// KVM's nested state with SVM: the control area of vmcb12, and in the place of its save area L1's
// state, to which an exit returns. L2's registers are the vCPU's: the client saves and sets them as
// for any guest, before it sets this state.

import CHost
import SystemPackage
import X86
import X86CPU

extension NestedSVM {

  func savedState(_ vcpu: VirtualCPU) -> NestedState {
    var state = NestedState()
    state.header.format = UInt16(KVM_STATE_NESTED_FORMAT_SVM)
    if isGIFOpen { state.header.flags |= UInt16(KVM_STATE_NESTED_GIF_SET) }
    guard isGuest else { return state }
    state.header.flags |= UInt16(KVM_STATE_NESTED_GUEST_MODE)
    unsafe state.header.hdr.svm.vmcb_pa = blockAddress
    // The event is among the vCPU's events already.
    block.vmcb[.eventInjection] &= ~SVMEvent.validBit
    let controls = Self.controlArea.map {
      unsafe block.bytes.load(fromByteOffset: $0, as: UInt8.self)
    }
    let saved = Self.saveArea.map {
      unsafe svm.page.bytes.load(fromByteOffset: $0, as: UInt8.self)
    }
    state.data = controls + saved
    return state
  }

  private static let controlArea = 0..<0x400
  private static let saveArea = 0x400..<VMCBField.blockSize

  /// - Throws: `.invalidArgument` for what no processor can be in, as Linux does.
  func restore(_ state: NestedState, _ vcpu: VirtualCPU) throws(Errno) {
    let known =
      KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_RUN_PENDING | KVM_STATE_NESTED_GIF_SET
    let runs = state.flags & KVM_STATE_NESTED_GUEST_MODE != 0
    let address = unsafe state.header.hdr.svm.vmcb_pa
    guard state.header.format == UInt16(KVM_STATE_NESTED_FORMAT_SVM), state.flags & ~known == 0,
      vcpu.backend[.efer] & EFER.svme.rawValue != 0 || state.flags == KVM_STATE_NESTED_GIF_SET,
      !(runs && vcpu.smm.isActive)
    else { throw .invalidArgument }
    if runs {
      guard address & Page.offsetMask == 0, !vcpu.isBeyondWidth(address),
        state.data.count >= VMCBField.blockSize
      else { throw .invalidArgument }
      try enter(state, at: address, vcpu)
    } else {
      leaveAtOnce()
    }
    isGIFOpen = state.flags & KVM_STATE_NESTED_GIF_SET != 0
  }

  /// L1's state is loaded, and L2's registers are left to the client.
  private func leaveAtOnce() {
    guard isGuest else { return }
    isGuest = false
    unsafe svm.run(svm.page)
  }

  private func enter(
    _ state: NestedState, at address: UInt64, _ vcpu: VirtualCPU
  ) throws(Errno) {
    let l1 = SVMPages(1)
    for (offset, byte) in state.data.prefix(VMCBField.blockSize).enumerated() {
      unsafe l1.bytes.storeBytes(of: byte, toByteOffset: offset, as: UInt8.self)
    }
    if state.flags & KVM_STATE_NESTED_RUN_PENDING == 0 {
      l1.vmcb[.eventInjection] &= ~SVMEvent.validBit
    }
    guard CR0(rawValue: l1.vmcb[.cr0]).isSuperset(of: [.pg, .pe]) else { throw .invalidArgument }
    try enter(from: l1, at: address, vcpu)
  }

  /// - Parameter l1: the control area of vmcb12, and L1's state.
  private func enter(
    from l1: SVMPages, at address: UInt64, _ vcpu: VirtualCPU
  ) throws(Errno) {
    let checks = VMRunChecks(
      cpu: vcpu.cpu, guestVMCB: l1.vmcb, addressWidth: CPU.physicalAddressBits)
    do throws(VMRunFailure) { try checks.checkControlArea() } catch { throw .invalidArgument }
    guard l1.vmcb[.rflags] & RFLAGS.vm.rawValue == 0, l1.vmcb[.efer] & EFER.svme.rawValue != 0
    else { throw .invalidArgument }
    takeState(of: l1, vcpu)
    blockAddress = address
    unsafe svm.isGuestSVMEnabled = true
    let interrupted = vcpu.events.interrupted
    enter(vcpu)
    if vcpu.events.interrupted == nil { vcpu.events.interrupted = interrupted }
  }

  // MARK: System management mode

  /// L1's state goes to where VM_HSAVE_PA says.
  func suspend(_ vcpu: VirtualCPU) -> SuspendedGuest? {
    let place = hostSaveArea
    let isSaved = vcpu.writeMemory(place, count: VMCBField.blockSize) { bytes in
      for range in Self.allStateRanges {
        unsafe bytes.copyMemory(
          at: range.lowerBound, from: svm.page.bytes + range.lowerBound, byteCount: range.count)
      }
    }
    guard isSaved else { return nil }
    leaveAtOnce()
    return SuspendedGuest(
      controlBlock: blockAddress, virtualInterrupt: merged.vmcb[.virtualInterrupt])
  }

  /// L1's control block is read anew.
  func resume(_ guest: SuspendedGuest, _ vcpu: VirtualCPU) -> Bool {
    let (controls, l1) = (SVMPages(1), SVMPages(1))
    guard guest.controlBlock & Page.offsetMask == 0,
      unsafe vcpu.memory.read(
        guest.controlBlock, to: controls.bytes, count: VMCBField.blockSize),
      unsafe vcpu.memory.read(hostSaveArea, to: l1.bytes, count: VMCBField.blockSize)
    else { return false }
    unsafe l1.bytes.copyMemory(from: controls.bytes, byteCount: Self.controlArea.count)
    let mask = VirtualInterrupt.pendingBit | (masksInterrupts ? 0xFF : 0)
    l1.vmcb[.virtualInterrupt] =
      l1.vmcb[.virtualInterrupt] & ~mask | guest.virtualInterrupt & mask
    l1.vmcb[.eventInjection] &= ~SVMEvent.validBit
    do throws(Errno) { try enter(from: l1, at: guest.controlBlock, vcpu) } catch { return false }
    return true
  }

  /// The state that runs becomes vmcb12's, `l1` the state that L2's exit goes back to.
  private func takeState(of l1: SVMPages, _ vcpu: VirtualCPU) {
    // This writes what runs to its memory.
    unsafe svm.unload(from: svm.cpu)
    unsafe svm.flushGuestTranslations()
    flushTranslations()
    let l2 = isGuest ? merged : unsafe svm.page
    unsafe block.bytes.copyMemory(from: l1.bytes, byteCount: Self.controlArea.count)
    for range in Self.allStateRanges {
      unsafe (block.bytes + range.lowerBound).copyMemory(
        from: l2.bytes + range.lowerBound, byteCount: range.count)
      unsafe (svm.page.bytes + range.lowerBound).copyMemory(
        from: l1.bytes + range.lowerBound, byteCount: range.count)
    }
    unsafe svm.load(on: svm.cpu)
    leaveAtOnce()
  }
}
