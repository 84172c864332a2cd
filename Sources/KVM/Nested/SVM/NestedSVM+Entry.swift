// SPDX-License-Identifier: Apache-2.0
//
// VMRUN of a guest: vmcb12 is copied once, so that L1 cannot change what was checked; its control
// area is checked by the processor's own rules; state and controls become those of vmcb02. The
// guest's state is checked by the processor, at the entry.

import X86
import X86CPU

extension NestedSVM {
  /// The state that VMRUN loads and an exit saves, as parts of a VMCB: ES, CS, SS, DS; GDTR; IDTR;
  /// CPL, EFER; CR4 to RIP; RSP; RAX; CR2.
  static let stateRanges: [Range<Int>] = [
    0x400..<0x440, 0x460..<0x470, 0x480..<0x490, 0x4C8..<0x4D8, 0x548..<0x580, 0x5D8..<0x5E0,
    0x5F8..<0x600, 0x640..<0x648,
  ]
  /// G_PAT, which counts with nested paging.
  static let patRange = 0x668..<0x670
  static let allStateRanges = stateRanges + [patRange]

  func vmrun(_ vcpu: VirtualCPU) -> Disposition {
    guard let address = operand(vcpu),
      unsafe vcpu.memory.read(address, to: block.bytes, count: VMCBField.blockSize)
    else { return Self.raise(.generalProtection, vcpu) }
    blockAddress = address
    vcpu.advance()
    let checks = VMRunChecks(
      cpu: vcpu.cpu, guestVMCB: block.vmcb, addressWidth: CPU.physicalAddressBits)
    do throws(VMRunFailure) { try checks.checkControlArea() } catch {
      refuse(vcpu)
      return .resume
    }
    // Nested tables of the 32-bit format are not supported.
    if hasNestedPaging, unsafe vcpu.cpu.s.pointee.cr4 & CR4.pae.rawValue == 0 {
      refuse(vcpu)
      return .resume
    }
    enter(vcpu)
    return .resume
  }

  var hasNestedPaging: Bool { block.vmcb[.nestedControl] & NestedControl.paging != 0 }

  /// L1 has V_INTR_MASKING: CR8 and RFLAGS.IF of L2 are L2's own.
  var masksInterrupts: Bool {
    VirtualInterrupt(rawValue: block.vmcb[.virtualInterrupt]).masksInterrupts
  }

  func enter(_ vcpu: VirtualCPU) {
    let (l1, l2) = unsafe (svm.page.vmcb, merged.vmcb)
    obeyTLBControl()
    for range in Self.stateRanges { copyState(range) }
    if hasNestedPaging {
      copyState(Self.patRange)
      useShadow(vcpu)
    }
    l2[.interruptShadow] = block.vmcb[.interruptShadow] & InterruptShadow.active
    let priority: UInt64 = 0xF
    l2[.virtualInterrupt] =
      block.vmcb[.virtualInterrupt] & (VirtualInterrupt.requestMask | priority)
      | VirtualInterrupt.maskingBit
      | VirtualInterrupt.nmiEnabledBit
    l2[.asid] = unsafe UInt64(svm.guestsASID)
    l2[.nestedControl] = NestedControl.paging
    l2[.ioPermissionMap] = l1[.ioPermissionMap]
    l2[.msrPermissionMap] = msrMap.address
    mergeMSRMap(vcpu)
    let blocking = unsafe svm[.interruptibility] & UInt64(Interruptibility.blockingByNMI)
    wasNMIBlocked = blocking != 0
    isGuest = true
    isGIFOpen = true
    unsafe svm.run(merged)
    if !hasNestedPaging { unsafe svm.cpu.vmcbWrite(.guestPAT, l1[.guestPAT]) }
    unsafe svm.cpu.vmcbWrite(.debugctl, l1[.debugctl])
    merge()
    let event = SVMEvent(rawValue: block.vmcb[.eventInjection])
    let length = block.vmcb[.nextRIP] &- block.vmcb[.rip]
    vcpu.events.interrupted = GuestEvent(
      event, instructionLength: UInt32(truncatingIfNeeded: length))
    vcpu.events.mustCheck = true
    vcpu.stateChanged()
  }

  private func copyState(_ range: Range<Int>) {
    unsafe (merged.bytes + range.lowerBound).copyMemory(
      from: block.bytes + range.lowerBound, byteCount: range.count)
  }

  // MARK: Controls

  /// Sets the controls of vmcb02 that depend on both sides. vmcb02 runs.
  func merge() {
    unsafe svm.mustMerge = false
    let (l1, l2, cpu) = unsafe (svm.page.vmcb, block.vmcb, svm.cpu)
    // With V_INTR_MASKING, CR8 is L2's own.
    let ownCR8: UInt64 = masksInterrupts ? 1 << 8 | 1 << 24 : 0
    let intercepts = SVMIntercepts(rawValue: l2[.intercepts3])
    unsafe svm.isVirtualInterruptGuests = intercepts.contains(.virtualInterrupt)
    let word3 = l1[.intercepts3] & ~SVMIntercepts.virtualInterrupt.rawValue
    let pause = intercepts.contains(.pause) ? l2 : l1
    let nestedRoot = hasNestedPaging ? shadows.current?.root ?? 0 : l1[.nestedCR3]
    let fields: [(VMCBField, UInt64)] = [
      (
        .controlRegisterIntercepts,
        l1[.controlRegisterIntercepts] & ~ownCR8 | l2[.controlRegisterIntercepts]
      ),
      (.debugRegisterIntercepts, l1[.debugRegisterIntercepts] | l2[.debugRegisterIntercepts]),
      (.exceptionIntercepts, l1[.exceptionIntercepts] | l2[.exceptionIntercepts]),
      (.intercepts3, word3 | l2[.intercepts3]),
      (.intercepts4, l1[.intercepts4] | l2[.intercepts4]),
      (.intercepts5, l1[.intercepts5] | l2[.intercepts5]),
      (.pauseFilterCount, pause[.pauseFilterCount]),
      (.pauseFilterThreshold, pause[.pauseFilterThreshold]),
      (.tscOffset, l1[.tscOffset] &+ l2[.tscOffset]), (.nestedCR3, nestedRoot),
    ]
    for (field, value) in fields { cpu.vmcbWrite(field, value) }
    unsafe svm.interceptVirtualInterrupts()
  }

  /// Merges the MSR maps: an MSR exits if ours or L1's says so. L1's map is read only where ours
  /// has a bit that is 0.
  private func mergeMSRMap(_ vcpu: VirtualCPU) {
    let own = unsafe svm.ownMSRMap
    let all = !SVMIntercepts(rawValue: block.vmcb[.intercepts3]).contains(.msrs)
    let base = block.vmcb[.msrPermissionMap] & Page.mask
    unsafe msrMap.bytes.initializeMemory(
      as: UInt8.self, repeating: 0xFF, count: Int(PermissionMap.msrBytes))
    for offset in own.openBytes {
      let address = base &+ UInt64(truncatingIfNeeded: offset)
      let wanted: UInt8 = all ? 0 : vcpu.memory.load(address) ?? 0xFF
      unsafe msrMap.bytes.storeBytes(
        of: own.byte(offset) | wanted, toByteOffset: offset, as: UInt8.self)
    }
  }
}
