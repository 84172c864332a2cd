// SPDX-License-Identifier: Apache-2.0
//
// KVM_X86_SET_MSR_FILTER: the MSRs that the guest may access; and exits for MSR accesses that the
// client handles (KVM_CAP_X86_USER_SPACE_MSR).

import CHost
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

struct MSRFilter: Sendable {
  struct Range: Sendable {
    var flags: UInt32
    var base: UInt32
    var count: UInt32
    /// A bit for each MSR: whether it is allowed.
    var bitmap: [UInt8]
  }

  static let allReasons = UInt64(
    KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)
  /// As KVM_MSR_FILTER_MAX_BITMAP_SIZE.
  private static let maxBitmapSize = 0x600

  private var ranges: [Range] = []
  private var isDefaultAllow: Bool

  init(_ argument: Argument) throws(Errno) {
    let filter: kvm_msr_filter = try argument.read()
    guard filter.flags & ~UInt32(KVM_MSR_FILTER_DEFAULT_DENY) == 0 else {
      throw .invalidArgument
    }
    isDefaultAllow = filter.flags & UInt32(KVM_MSR_FILTER_DEFAULT_DENY) == 0
    let given = unsafe withUnsafeBytes(of: filter.ranges) {
      unsafe Array($0.bindMemory(to: kvm_msr_filter_range.self))
    }
    if !isDefaultAllow, unsafe given.allSatisfy({ unsafe $0.nmsrs == 0 }) { throw .invalidArgument }
    for n in unsafe given.indices {
      let range = unsafe given[n]
      if unsafe range.nmsrs == 0 { continue }
      let known = UInt32(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)
      let size = unsafe (Int(range.nmsrs) + 63) / 64 * 8
      guard unsafe range.flags & ~known == 0, unsafe range.flags != 0, size <= Self.maxBitmapSize
      else {
        throw .invalidArgument
      }
      let bitmap = unsafe Argument(value: UInt(bitPattern: range.bitmap))
      unsafe ranges.append(
        Range(
          flags: range.flags, base: range.base, count: range.nmsrs,
          bitmap: try bitmap.elements(size)))
    }
  }

  /// The first range with the MSR decides for this kind of access. x2APIC registers are not
  /// filtered.
  func allows(_ number: UInt32, isWrite: Bool) -> Bool {
    if (APICRegister.x2APICBase...MSR.x2APICLast.rawValue).contains(number) { return true }
    let flag = UInt32(isWrite ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ)
    for range in ranges where range.flags & flag != 0 {
      let index = number &- range.base
      guard number >= range.base, index < range.count else { continue }
      return range.bitmap[Int(index / 8)] & (1 << UInt8(index & 7)) != 0
    }
    return isDefaultAllow
  }
}

extension VirtualCPU {
  /// Applies a new filter or CPUID to the MSRs that do not exit.
  func updateMSRInterception() {
    let filter = unsafe machine.options.withLock { $0.msrFilter }
    // The processor allows all of EFER; watch writes if the guest's CPUID has less.
    let watchesEFER = !cpuid.features.isSuperset(of: [.longMode, .executeDisable])
    withLoaded { backend.setMSRFilter(filter, watchesEFER: watchesEFER) }
  }

  private func isAllowed(_ number: UInt32, isWrite: Bool) -> Bool {
    unsafe machine.options.withLock { $0.msrFilter?.allows(number, isWrite: isWrite) ?? true }
  }

  func emulateRDMSR() -> Disposition {
    let number = unsafe UInt32(truncatingIfNeeded: cpu.gpr[1])
    guard isAllowed(number, isWrite: false) else {
      return msrFailed(number, nil, KVM_MSR_EXIT_REASON_FILTER)
    }
    guard let value = readMSR(number, byHost: false) else {
      return msrFailed(number, nil, Self.failure(number))
    }
    setMSRResult(value)
    advance()
    return .resume
  }

  func emulateWRMSR() -> Disposition {
    let number = unsafe UInt32(truncatingIfNeeded: cpu.gpr[1])
    let value = unsafe cpu.gpr[0] & 0xFFFF_FFFF | cpu.gpr[2] << 32
    guard isAllowed(number, isWrite: true) else {
      return msrFailed(number, value, KVM_MSR_EXIT_REASON_FILTER)
    }
    guard writeMSR(number, value, byHost: false) else {
      return msrFailed(number, value, Self.failure(number))
    }
    advance()
    return .resume
  }

  /// The reason for an unknown MSR or an invalid access.
  private static func failure(_ number: UInt32) -> Int32 {
    isKnownMSR(number) ? KVM_MSR_EXIT_REASON_INVAL : KVM_MSR_EXIT_REASON_UNKNOWN
  }

  private func setMSRResult(_ value: UInt64) {
    unsafe cpu.gpr[0] = value & 0xFFFF_FFFF
    unsafe cpu.gpr[2] = value >> 32
  }

  /// Raises #GP, or exits to the client.
  private func msrFailed(_ number: UInt32, _ written: UInt64?, _ reason: Int32) -> Disposition {
    guard unsafe machine.options.withLock({ $0.userSpaceMSRs }) & UInt64(reason) != 0 else {
      raise(.generalProtection)
      return .resume
    }
    unsafe run.pointee.exit_reason = UInt32(
      written == nil ? KVM_EXIT_X86_RDMSR : KVM_EXIT_X86_WRMSR)
    unsafe run.pointee.msr.error = 0
    unsafe run.pointee.msr.reason = UInt32(reason)
    unsafe run.pointee.msr.index = number
    unsafe run.pointee.msr.data = written ?? 0
    runState.completion = written == nil ? .readMSR : .writeMSR
    return .userSpace
  }

  /// Finishes an access that the client handled.
  func completeMSR(isRead: Bool) {
    runState.completion = .none
    if unsafe run.pointee.msr.error != 0 {
      raise(.generalProtection)
      return
    }
    if isRead { unsafe setMSRResult(run.pointee.msr.data) }
    advance()
  }
}
