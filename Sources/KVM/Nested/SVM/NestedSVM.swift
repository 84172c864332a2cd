// SPDX-License-Identifier: Apache-2.0
//
// Nested SVM: the instructions of a guest (L1) that is a hypervisor, and what it has of SVM (APM
// volume 2, "SVM Processor and Platform Extensions"). See NestedVirtualization for the whole.
//
//     vmcb01   `SVM.page`: L1's own, as of any guest. While L2 runs it keeps L1's state: what
//              VMRUN saves in the host-state area is there, and VM_HSAVE_PA's page stays unused
//     vmcb12   in L1's memory; `block` is the copy of it that VMRUN has made
//     vmcb02   `merged`: what runs L2. State of vmcb12, controls of both (NestedSVM+Entry)
//
// L2's TLB entries have an ASID of their own, and its nested tables are L1's and ours in one
// (NestedSVM+Memory), or ours where L1 uses none.

import X86
import X86CPU

final class NestedSVM: NestedVirtualization {
  /// The bits of CPUID leaf 8000_000AH EDX for guests.
  static let features: SVMFeatures = [
    .nestedPaging, .svmLock, .nextRIP, .cleanBits, .flushByASID, .decodeAssists, .pauseFilter,
    .pauseFilterThreshold,
  ]

  unowned(unsafe) let svm: SVM
  var isGuest = false
  /// L1's global interrupt flag.
  var isGIFOpen = true
  /// VM_HSAVE_PA and VM_CR.
  private(set) var hostSaveArea: UInt64 = 0
  private var vmcr: UInt64 = 0
  /// L1's physical address of vmcb12.
  var blockAddress: UInt64 = 0
  lazy var block = SVMPages(1)
  lazy var merged = SVMPages(1)
  lazy var msrMap = SVMPages(Int(PermissionMap.msrBytes / Page.size))
  private lazy var scratch = SVMPages(1)
  /// NMIs of L1 were blocked at VMRUN.
  var wasNMIBlocked = false
  /// L1's ASID of the guest that ran last.
  var lastASID: UInt64 = 0
  var shadows = ShadowSet()

  init(_ svm: SVM) { unsafe self.svm = svm }

  var holdsEvents: Bool { !isGuest && !isGIFOpen }

  // MARK: MSRs

  func readMSR(_ number: UInt32) -> UInt64? {
    switch MSR(rawValue: number) {
    case .hostSaveArea: hostSaveArea
    case .vmcr: vmcr
    default: nil
    }
  }

  func writeMSR(_ number: UInt32, _ value: UInt64, byHost: Bool) -> Bool? {
    switch MSR(rawValue: number) {
    case .hostSaveArea:
      guard byHost || value & Page.offsetMask == 0, value >> CPU.physicalAddressBits == 0 else {
        return false
      }
      hostSaveArea = value
    case .vmcr:
      let known = VMCRBits.lock | VMCRBits.svmDisable
      guard value & ~known == 0 else { return false }
      // EFER.SVME is 1: SVM cannot be disabled now.
      if !byHost, value & VMCRBits.svmDisable != 0, unsafe svm.isGuestSVMEnabled { return false }
      vmcr = !byHost && vmcr & VMCRBits.lock != 0 ? vmcr : value
    default: return nil
    }
    return true
  }

  func reset(_ vcpu: VirtualCPU) {
    if isGuest {
      isGuest = false
      unsafe svm.run(svm.page)
    }
    isGIFOpen = true
    shadows.removeAll()
  }

  // MARK: Instructions

  /// The processor has checked the mode and the privilege level.
  func execute(_ vcpu: VirtualCPU) -> Disposition {
    guard vcpu.cpuid.features.contains(.svm), unsafe isGuest || svm.isGuestSVMEnabled else {
      return Self.raise(.invalidOpcode, vcpu)
    }
    switch unsafe SVMExitCode(rawValue: svm.vmcb[.exitCode]) {
    case .vmrun: return vmrun(vcpu)
    case .vmload: return loadState(vcpu)
    case .vmsave: return saveState(vcpu)
    case .stgi: setGIF(true, vcpu)
    case .clgi: setGIF(false, vcpu)
    case .invlpga: invalidate(vcpu)
    default: return Self.raise(.invalidOpcode, vcpu)
    }
    vcpu.advance()
    return .resume
  }

  static func raise(_ exception: GuestException, _ vcpu: VirtualCPU) -> Disposition {
    vcpu.raise(exception)
    return .resume
  }

  private func setGIF(_ isOpen: Bool, _ vcpu: VirtualCPU) {
    isGIFOpen = isOpen
    vcpu.events.mustCheck = true
  }

  /// RAX, as the address of a VMCB; nil: #GP.
  func operand(_ vcpu: VirtualCPU) -> UInt64? {
    let address = unsafe vcpu.cpu.is64Bit ? vcpu.cpu.gpr[0] : vcpu.cpu.gpr[0] & 0xFFFF_FFFF
    let isAllowed = address & Page.offsetMask == 0 && !vcpu.isBeyondWidth(address)
    return isAllowed ? address : nil
  }

  /// The parts of a VMCB that VMLOAD loads and VMSAVE saves: FS and GS, LDTR, TR, and the MSRs of
  /// system calls.
  private static let loadSaveRanges: [Range<Int>] = [
    0x440..<0x460, 0x470..<0x480, 0x490..<0x4A0, 0x600..<0x640,
  ]

  private func loadState(_ vcpu: VirtualCPU) -> Disposition {
    guard let address = operand(vcpu),
      unsafe vcpu.memory.read(address, to: scratch.bytes, count: VMCBField.blockSize)
    else { return Self.raise(.generalProtection, vcpu) }
    do throws(SVMError) { try unsafe svm.cpu.vmload(scratch.address) } catch {
      unsafe svm.failure = error
    }
    vcpu.advance()
    vcpu.stateChanged()
    return .resume
  }

  private func saveState(_ vcpu: VirtualCPU) -> Disposition {
    guard let address = operand(vcpu) else { return Self.raise(.generalProtection, vcpu) }
    do throws(SVMError) { try unsafe svm.cpu.vmsave(scratch.address) } catch {
      unsafe svm.failure = error
    }
    guard write(scratch, Self.loadSaveRanges, to: address, vcpu) else {
      return Self.raise(.generalProtection, vcpu)
    }
    vcpu.advance()
    return .resume
  }

  /// Writes parts of a VMCB to L1's memory.
  func write(
    _ pages: SVMPages, _ ranges: [Range<Int>], to address: UInt64, _ vcpu: VirtualCPU
  ) -> Bool {
    vcpu.writeMemory(address, count: VMCBField.blockSize) { place in
      for range in ranges {
        unsafe place.copyMemory(
          at: range.lowerBound, from: pages.bytes + range.lowerBound, byteCount: range.count)
      }
    }
  }

  /// INVLPGA: ECX is the ASID, 0 L1's own.
  private func invalidate(_ vcpu: VirtualCPU) {
    let space = unsafe vcpu.cpu.gpr[1] & 0xFFFF_FFFF
    if space == 0 { return unsafe svm.flushGuestTranslations() }
    clearShadows(of: space)
  }
}
