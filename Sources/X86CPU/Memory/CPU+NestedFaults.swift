// SPDX-License-Identifier: Apache-2.0
//
// Accesses that nested paging does not allow: exits, virtualization exceptions, the log of modified
// pages (SDM volume 3, "EPT Violations", "EPT Misconfigurations", "Virtualization Exceptions",
// "Page-Modification Logging").

import X86

extension PageTracking {
  /// The rights bits of an entry: one without any is not present.
  @inline(__always) var rightsMask: UInt64 {
    separatesUserExecution ? EPTEntry.rightsMask | EPTEntry.userExecute : EPTEntry.rightsMask
  }
}

/// The result of an EPT walk for an address.
private struct EPTInspection {
  /// The rights of all entries on the way.
  var rights: UInt64
  /// The entry at which the walk ends.
  var last: UInt64 = 0
  var isMisconfigured = false
}

extension CPU {
  // MARK: The log

  /// Whether a page can be logged; if not, the access exits.
  var hasRoomInPageLog: Bool {
    if s.pointee.pageTracking.logIndex < 512 { return true }
    s.pointee.pageTracking.isFull = true
    return false
  }

  func logModified(_ page: UInt64) {
    let index = s.pointee.pageTracking.logIndex
    let log = UnsafeMutableRawPointer(bitPattern: UInt(s.pointee.pageTracking.log))
    log?.storeBytes(of: page & Page.mask, toByteOffset: Int(index & 511) * 8, as: UInt64.self)
    s.pointee.pageTracking.logIndex = index &- 1
  }

  // MARK: Faults

  /// Records the exit for an access that nested paging denies.
  ///
  /// - Returns: what to throw; for EPT this may be a virtualization exception.
  func eptViolation(
    _ address: UInt64, _ kind: AccessKind, _ purpose: PhysicalAccessPurpose
  ) -> GuestException {
    if s.pointee.pageTracking.isFull {
      s.pointee.pageTracking.isFull = false
      let exception = exit(.pageLogFull)
      s.pointee.exit.details = nmiDetails
      return exception
    }
    let isEPT = s.pointee.intercepts.nested == .ept
    let found = isEPT ? inspectEPT(address) : EPTInspection(rights: readableRights(address))
    if found.isMisconfigured {
      let exception = exit(.nestedMisconfiguration)
      s.pointee.exit.physical = address
      return exception
    }
    let exception = exit(.nestedFault, value: found.rights)
    s.pointee.exit.kind = kind
    s.pointee.exit.physical = address
    s.pointee.exit.details = nmiDetails
    describe(purpose)
    if isEPT, found.last & EPTEntry.suppressException == 0,
      s.pointee.pageTracking.exceptionArea != 0, raisesVirtualizationException()
    {
      return GuestException(.virtualization)
    }
    return exception
  }

  private var nmiDetails: ExitDetails {
    let isUnblocked =
      s.pointee.interruptibility & Interruptibility.blockingByNMI == 0 && s.pointee.unblockedNMI
    return isUnblocked ? .unblockedNMI : []
  }

  private func describe(_ purpose: PhysicalAccessPurpose) {
    var details: ExitDetails = []
    switch purpose {
    case .linear(let linear, let translation):
      s.pointee.exit.linear = linear
      details = [.linearIsValid, .isTranslated]
      if s.pointee.intercepts.nested == .ept {
        if translation.user { details.insert(.isUserPage) }
        if translation.writable { details.insert(.isWritablePage) }
        if !translation.executable { details.insert(.isNotExecutablePage) }
      }
    case .pageWalk(let linear):
      s.pointee.exit.linear = linear
      details = .linearIsValid
      if s.pointee.intercepts.walksWrite { details.insert(.alsoReads) }
    case .other: break
    }
    s.pointee.exit.details.formUnion(details)
  }

  /// SVM: rights of a readable page.
  private func readableRights(_ address: UInt64) -> UInt64 {
    (physicalPage(address & Page.mask, .read)?.rights ?? 0) & EPTEntry.rightsMask
  }

  /// Walks EPT without side effects. A present entry is misconfigured if it is writable but not
  /// readable, or has reserved bits.
  private func inspectEPT(_ address: UInt64) -> EPTInspection {
    let pointer = s.pointee.intercepts.nestedRoot
    let mask = s.pointee.pageTracking.rightsMask
    var found = EPTInspection(rights: mask)
    var table = pointer & EPTEntry.addressMask
    var level = EPTPointer.levels(pointer) &- 1
    if address >> CPU.physicalAddressBits != 0 { return EPTInspection(rights: 0) }
    while true {
      let index = (address &>> (12 &+ 9 &* level)) & 511
      guard let entry = UnsafePointer<UInt64>(bitPattern: UInt(table &+ index &* 8))?.pointee else {
        return EPTInspection(rights: 0)
      }
      found.rights &= entry
      found.last = entry
      if entry & mask == 0 { return found }
      let isLeaf = level == 0 || (level < 3 && entry & EPTEntry.pageSize != 0)
      let type = (entry >> EPTEntry.memoryTypeShift) & 7
      let badType = isLeaf && (type == 2 || type == 3 || type == 7)
      let reserved = !isLeaf && entry & 0xF8 != 0
      if entry & 3 == EPTEntry.write || badType || reserved {
        found.isMisconfigured = true
        return found
      }
      if isLeaf { return found }
      table = entry & EPTEntry.addressMask
      level &-= 1
    }
  }
}
