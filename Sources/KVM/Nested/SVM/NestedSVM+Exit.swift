// SPDX-License-Identifier: Apache-2.0
//
// Exits of L2: which are L1's, and the #VMEXIT to L1 (APM volume 2, "#VMEXIT"). L1's permission
// maps are read when an access exits.

import Synchronization
import X86
import X86CPU

extension NestedSVM {
  func takeExit(_ vcpu: VirtualCPU) -> Disposition? {
    if unsafe svm.failure != nil { return nil }
    let code = unsafe SVMExitCode(rawValue: svm.vmcb[.exitCode])
    switch code {
    case .nestedPageFault: return hasNestedPaging ? takeNestedFault(vcpu) : nil
    case .invalid:
      vcpu.events.interrupted = nil
      unsafe svm.run(svm.page)
      refuse(vcpu)
      return .resume
    default: break
    }
    guard isGuests(code.rawValue, vcpu) else { return nil }
    unsafe svm.restoreDR6(isDebug: false)
    unsafe leave(
      vcpu,
      NestedSVMExit(
        code: code, info1: svm.vmcb[.exitInfo1], info2: svm.vmcb[.exitInfo2],
        nextRIP: svm.vmcb[.nextRIP]))
    return .resume
  }

  // MARK: Whose exit it is

  private var intercepts: SVMIntercepts {
    SVMIntercepts(rawValue: block.vmcb[.intercepts3] | block.vmcb[.intercepts4] << 32)
  }

  /// Whether L1 asked for an exit. Interrupts and NMIs are ours: L1 gets its own by `beforeEntry`.
  private func isGuests(_ code: UInt64, _ vcpu: VirtualCPU) -> Bool {
    func bit(_ field: VMCBField, _ first: UInt64) -> Bool {
      block.vmcb[field] &>> (code &- first) & 1 != 0
    }
    switch code {
    case 0x00...0x1F: return bit(.controlRegisterIntercepts, 0)
    case 0x20...0x3F: return bit(.debugRegisterIntercepts, 0x20)
    case 0x40...0x5F:
      let isClients = vcpu.debug.exceptions &>> UInt32(truncatingIfNeeded: code &- 0x40) & 1 != 0
      return !isClients && bit(.exceptionIntercepts, 0x40)
    case SVMExitCode.interrupt.rawValue, SVMExitCode.nmi.rawValue: return false
    case SVMExitCode.virtualInterrupt.rawValue where unsafe svm.isInterruptWindowOpen: return false
    case SVMExitCode.port.rawValue: return intercepts.contains(.ports) && isPortGuests(vcpu)
    case SVMExitCode.msr.rawValue: return intercepts.contains(.msrs) && isMSRGuests(vcpu)
    case SVMExitCode.invpcid.rawValue: return bit(.intercepts5, 0xA0)
    case 0x60..<0xA0: return intercepts.rawValue &>> (code &- 0x60) & 1 != 0
    default: return false
    }
  }

  private func isPortGuests(_ vcpu: VirtualCPU) -> Bool {
    let access = unsafe SVMPortInfo(rawValue: svm.vmcb[.exitInfo1])
    let base = block.vmcb[.ioPermissionMap] & Page.mask
    let bits: UInt16? = vcpu.memory.load(base &+ UInt64(access.port >> 3))
    guard let bits else { return true }
    let mask: UInt16 = (1 &<< UInt16(access.size)) &- 1
    return bits &>> (access.port & 7) & mask != 0
  }

  private func isMSRGuests(_ vcpu: VirtualCPU) -> Bool {
    let number = unsafe UInt32(truncatingIfNeeded: vcpu.cpu.gpr[1])
    guard let first = PermissionMap.msrBit(number) else { return true }
    let bit = unsafe first &+ Int(svm.vmcb[.exitInfo1] & 1)
    let base = block.vmcb[.msrPermissionMap] & Page.mask
    let byte: UInt8? = vcpu.memory.load(base &+ UInt64(truncatingIfNeeded: bit >> 3))
    return byte.map { $0 &>> UInt8(truncatingIfNeeded: bit & 7) & 1 != 0 } ?? true
  }

  // MARK: Events

  /// The flag that enables L1's interrupts while L2 runs: L1's with V_INTR_MASKING, otherwise L2's.
  private var isInterruptFlagSet: Bool {
    let flags = unsafe masksInterrupts ? svm.page.vmcb[.rflags] : svm[.rflags]
    return flags & RFLAGS.if.rawValue != 0
  }

  var exitsOnInterrupt: Bool { isGuest && intercepts.contains(.interrupt) }
  var exitsOnNMI: Bool { isGuest && intercepts.contains(.nmi) }

  var allowsInterrupts: Bool? {
    if !isGuest { return isGIFOpen ? nil : false }
    guard isInterruptFlagSet else { return false }
    if intercepts.contains(.interrupt) { return true }
    let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
    return unsafe svm[.interruptibility] & UInt64(shadows) == 0
  }

  /// What L2 exits for: an SMI, an NMI, an interrupt.
  private func dueExit(_ vcpu: VirtualCPU) -> SVMExitCode? {
    if vcpu.mailbox.pendingSMI.load(ordering: .relaxed), intercepts.contains(.smi),
      !vcpu.smm.isActive
    {
      return .smi
    }
    if vcpu.mailbox.hasNMI, intercepts.contains(.nmi),
      unsafe svm[.interruptibility] & UInt64(Interruptibility.blockingByNMI) == 0
    {
      return .nmi
    }
    guard intercepts.contains(.interrupt), isInterruptFlagSet, !vcpu.debug.blocksInterrupts,
      vcpu.hasPendingInterrupt
    else { return nil }
    return .interrupt
  }

  var takesManagementInterrupts: Bool { !intercepts.contains(.smi) }

  func beforeEntry(_ vcpu: VirtualCPU) {
    if unsafe svm.mustMerge { merge() }
    // An instruction that is executed in steps comes first.
    if vcpu.runState.completion == .emulation { return }
    if vcpu.events.interrupted != nil {
      // It is delivered, and the exit follows before the first instruction of its handler.
      if dueExit(vcpu) != nil { vcpu.slot?.cpu.kick() }
      return
    }
    if let exception = vcpu.events.exception {
      if isIntercepted(exception) { leave(vcpu, for: exception) }
      return
    }
    if let code = dueExit(vcpu) { leave(vcpu, NestedSVMExit(code: code)) }
  }

  private func isIntercepted(_ exception: GuestException) -> Bool {
    block.vmcb[.exceptionIntercepts] &>> UInt64(exception.vector & 31) & 1 != 0
  }

  /// An exception that we raise in L2.
  private func leave(_ vcpu: VirtualCPU, for exception: GuestException) {
    var exit = NestedSVMExit(code: .exception(exception.vector))
    if exception.hasErrorCode { exit.info1 = UInt64(exception.errorCode) }
    if exception.vector == ExceptionVector.pageFault.rawValue {
      exit.info2 = unsafe vcpu.events.payload ?? vcpu.cpu.s.pointee.cr2
    } else {
      vcpu.events.deliverPayload(exception, vcpu.cpu)
    }
    vcpu.events.dropException()
    leave(vcpu, exit)
  }

  func takeTripleFault(_ vcpu: VirtualCPU) -> Bool {
    guard isGuest, intercepts.contains(.shutdown) else { return false }
    leave(vcpu, NestedSVMExit(code: .shutdown))
    return true
  }

  // MARK: The exit

  /// L1 continues behind its VMRUN, with the exit in its VMCB.
  func leave(_ vcpu: VirtualCPU, _ exit: NestedSVMExit) {
    // This writes L2's state to vmcb02's memory.
    unsafe svm.run(svm.page)
    // An NMI that L1 has injected is L2's alone.
    if !wasNMIBlocked { unsafe svm.setNMIBlocking(false) }
    let (l2, own) = (merged.vmcb, block.vmcb)
    for range in Self.allStateRanges {
      unsafe (block.bytes + range.lowerBound).copyMemory(
        from: merged.bytes + range.lowerBound, byteCount: range.count)
    }
    own[.interruptShadow] = l2[.interruptShadow]
    own[.virtualInterrupt] = virtualInterruptAfterExit
    let interrupted = vcpu.events.takeInterrupted()
    own[.exitInterruptInfo] = interrupted.map { SVMEvent($0).rawValue } ?? 0
    // The CPU's own, which an exit does not give back to L1.
    unsafe svm.cpu.vmcbWrite(.cr2, l2[.cr2])
    unsafe svm.cpu.vmcbWrite(.dr6, l2[.dr6])
    vcpu.events.dropException()
    finish(vcpu, exit, hasNestedPaging ? Self.savedWithPAT : Self.saved)
  }

  /// VMEXIT_INVALID: L2's state stays as L1 has it. L1's VMCB runs.
  func refuse(_ vcpu: VirtualCPU) {
    block.vmcb[.exitInterruptInfo] = 0
    finish(vcpu, NestedSVMExit(code: .invalid), Self.exitRanges)
  }

  /// V_TPR where L2 has one, and V_IRQ if it still waits.
  private var virtualInterruptAfterExit: UInt64 {
    let mask = VirtualInterrupt.pendingBit | (masksInterrupts ? 0xFF : 0)
    return block.vmcb[.virtualInterrupt] & ~mask | merged.vmcb[.virtualInterrupt] & mask
  }

  /// What of the control area an exit writes: TLB_CONTROL; the virtual interrupt, the shadow and
  /// the exit; EVENTINJ; nRIP and the number of bytes fetched.
  private static let exitRanges: [Range<Int>] = [0x5C..<0x90, 0xA8..<0xB0, 0xC8..<0xD1]
  private static let saved = exitRanges + stateRanges
  private static let savedWithPAT = exitRanges + allStateRanges

  /// - Parameter ranges: of vmcb12 that are written.
  private func finish(_ vcpu: VirtualCPU, _ exit: NestedSVMExit, _ ranges: [Range<Int>]) {
    let own = block.vmcb
    own[.tlbControl] = 0
    own[.exitCode] = exit.code.rawValue
    own[.exitInfo1] = exit.info1
    own[.exitInfo2] = exit.info2
    own[.eventInjection] &= ~SVMEvent.validBit
    own[.nextRIP] = exit.nextRIP
    own[.fetchedByteCount] = 0
    isGuest = false
    isGIFOpen = false
    unsafe svm.cpu.vmcbWrite(.dr7, DR7.initial.rawValue)
    vcpu.events.mustCheck = true
    vcpu.stateChanged()
    if !write(block, ranges, to: blockAddress, vcpu) {
      // The VMCB's memory is gone: a processor shuts down.
      vcpu.events.isTripleFault = true
    }
  }
}

/// The exit information for L1.
struct NestedSVMExit {
  var code: SVMExitCode
  var info1: UInt64 = 0
  var info2: UInt64 = 0
  var nextRIP: UInt64 = 0
}
