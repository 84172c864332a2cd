// SPDX-License-Identifier: Apache-2.0
//
// The MSR areas of vmcs12: lists of 16-byte entries (number, 0, value) in L1's memory that VM entry
// and VM exit load and store (SDM volume 3, "Loading MSRs" and "Saving MSRs"). Each entry is copied
// before it is checked, and is L1's own RDMSR or WRMSR.

import X86
import X86CPU

/// An MSR area of vmcs12.
private struct NestedMSRArea {
  let address: UInt64
  let count: UInt64

  init?(_ fields: VMCSPage, _ count: VMCSField, _ address: VMCSField) {
    (self.address, self.count) = (fields[address], fields[count])
    if self.count == 0 { return nil }
  }

  /// The number of an entry; nil: one that no area may have.
  func number(_ index: UInt64, _ vcpu: VirtualCPU) -> UInt32? {
    guard index < VMXCapabilities.msrAreaLimit,
      let word: UInt64 = vcpu.memory.load(address &+ index &* 16), word >> 32 == 0
    else { return nil }
    let number = UInt32(truncatingIfNeeded: word)
    let isX2APIC = (MSR.x2APICFirst.rawValue...MSR.x2APICLast.rawValue).contains(number)
    return isX2APIC ? nil : number
  }

  func value(_ index: UInt64, _ vcpu: VirtualCPU) -> UInt64? {
    vcpu.memory.load(address &+ index &* 16 &+ 8)
  }

  func store(_ value: UInt64, _ index: UInt64, _ vcpu: VirtualCPU) -> Bool {
    vcpu.writeMemory(address &+ index &* 16 &+ 8, count: 8) {
      $0.storeBytes(of: value, as: UInt64.self)
    }
  }

  /// Loads all entries.
  ///
  /// - Returns: the number, from 1, of the first that cannot be loaded.
  func load(_ vcpu: VirtualCPU) -> UInt64? {
    var index: UInt64 = 0
    while index < count {
      guard let number = number(index, vcpu), number != MSR.fsBase.rawValue,
        number != MSR.gsBase.rawValue, let value = value(index, vcpu),
        vcpu.writeMSR(number, value, byHost: false)
      else { return index &+ 1 }
      index &+= 1
    }
    return nil
  }
}

extension NestedVMX {
  /// The VM-entry MSR-load area. vmcs02 runs.
  ///
  /// - Returns: not nil where the entry failed.
  func loadMSRs(_ vcpu: VirtualCPU) -> Void? {
    guard let area = NestedMSRArea(block.fields, .entryMSRLoadCount, .entryMSRLoadAddress) else {
      return nil
    }
    // The guest's state is checked before.
    if let failure = unsafe vmx.cpu.guestStateFailure() {
      return refuse(vcpu, .invalidGuestState, failure.qualification)
    }
    guard let index = area.load(vcpu) else { return nil }
    return refuse(vcpu, .msrLoading, index)
  }

  /// The VM-exit MSR-store area. vmcs02 runs.
  ///
  /// - Returns: false: VMX abort.
  func storeMSRs(_ vcpu: VirtualCPU) -> Bool {
    guard let area = NestedMSRArea(block.fields, .exitMSRStoreCount, .exitMSRStoreAddress) else {
      return true
    }
    var index: UInt64 = 0
    while index < area.count {
      guard let number = area.number(index, vcpu),
        let value = vcpu.readMSR(number, byHost: false), area.store(value, index, vcpu)
      else { return false }
      index &+= 1
    }
    return true
  }

  /// The VM-exit MSR-load area. vmcs01 runs.
  func loadHostMSRs(_ vcpu: VirtualCPU) -> Bool {
    let area = NestedMSRArea(block.fields, .exitMSRLoadCount, .exitMSRLoadAddress)
    return area?.load(vcpu) == nil
  }
}
