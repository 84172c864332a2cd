// SPDX-License-Identifier: Apache-2.0
//
// The MSR areas: lists of 16-byte entries (number, 0, value) in host-physical memory that VM entry
// and VM exit load and store (SDM volume 3, "Loading MSRs" and "Saving MSRs").

import X86

/// An MSR area.
private struct MSRArea {
  let base: UnsafeMutableRawPointer
  let count: Int

  init?(_ unit: VMXUnit, _ countField: VMCSField, _ addressField: VMCSField) {
    let count = unit.page(countField)
    guard count != 0, let base = UnsafeMutableRawPointer(bitPattern: UInt(unit.page(addressField)))
    else { return nil }
    self.base = base
    self.count = Int(min(count, VMXCapabilities.msrAreaLimit))
  }

  func number(_ n: Int) -> UInt32 { base.load(fromByteOffset: n * 16, as: UInt32.self) }
  func reserved(_ n: Int) -> UInt32 { base.load(fromByteOffset: n * 16 + 4, as: UInt32.self) }
  func value(_ n: Int) -> UInt64 { base.load(fromByteOffset: n * 16 + 8, as: UInt64.self) }
  func setValue(_ n: Int, _ value: UInt64) {
    base.storeBytes(of: value, toByteOffset: n * 16 + 8, as: UInt64.self)
  }

  /// Invalid entries in any area: bits 63:32, FS and GS base, x2APIC registers.
  func isAllowed(_ n: Int) -> Bool {
    let number = number(n)
    return reserved(n) == 0 && number != MSR.fsBase.rawValue && number != MSR.gsBase.rawValue
      && !(MSR.x2APICFirst.rawValue...MSR.x2APICLast.rawValue).contains(number)
  }
}

extension PhysicalCPU {
  /// The VM-entry MSR-load area.
  ///
  /// - Returns: false if an entry cannot be loaded; the entry-failure exit (34, qualification: the
  ///   entry's number from 1) is then recorded.
  func loadEntryMSRs() -> Bool {
    guard let area = MSRArea(vmx.pointee, .entryMSRLoadCount, .entryMSRLoadAddress) else {
      return true
    }
    for n in 0..<area.count {
      let loaded = area.isAllowed(n) && (try? cpu.writeMSR(area.number(n), area.value(n))) != nil
      if !loaded {
        vmx.pointee.entryFailure = .msrLoading
        recordEntryFailure(.msrLoading, qualification: UInt64(n + 1))
        return false
      }
    }
    return true
  }

  /// The VM-exit MSR-store area.
  func storeExitMSRs() throws(VMXError) {
    guard let area = MSRArea(vmx.pointee, .exitMSRStoreCount, .exitMSRStoreAddress) else { return }
    for n in 0..<area.count {
      guard area.isAllowed(n), let value = try? cpu.readMSR(area.number(n)) else {
        throw abort(.savingGuestMSRs)
      }
      area.setValue(n, value)
    }
  }

  /// The VM-exit MSR-load area. Root operation's own MSRs (EFER, PAT) are kept apart from the
  /// guest's state, which stays in the CPU.
  func loadExitMSRs() throws(VMXError) {
    guard let area = MSRArea(vmx.pointee, .exitMSRLoadCount, .exitMSRLoadAddress) else { return }
    for n in 0..<area.count {
      guard area.isAllowed(n) else { throw abort(.loadingHostMSRs) }
      switch MSR(rawValue: area.number(n)) {
      case .efer: vmx.pointee.rootEFER = area.value(n)
      case .pat: vmx.pointee.rootPAT = area.value(n)
      case .sysenterCS, .sysenterESP, .sysenterEIP, .debugctl: break
      default:
        if (try? cpu.writeMSR(area.number(n), area.value(n))) == nil {
          throw abort(.loadingHostMSRs)
        }
      }
    }
  }
}
