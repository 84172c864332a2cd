// SPDX-License-Identifier: Apache-2.0
//
// The state in KVM's format: `kvm_lapic_state` is the register page. In x2APIC mode its ID register
// has the 32-bit identifier, or, for clients that did not enable 32-bit identifiers, its low eight
// bits in 31:24 (Linux, "KVM_GET_LAPIC" and "KVM_CAP_X2APIC_API").
// IA32_APIC_BASE and IA32_TSC_DEADLINE are not in the page; clients save them as MSRs.

import X86

extension LocalAPIC {
  /// The register page, word `offset / 4` for the register at `offset`, with the current count at
  /// `time`.
  package func registerImage(at time: Time, wideID: Bool) -> InlineArray<256, UInt32> {
    var image = InlineArray<256, UInt32> { page[$0 &<< 2] }
    image[APICRegister.currentCount >> 2] = currentCount(at: time)
    if mode == .x2APIC, !wideID {
      image[APICRegister.id >> 2] = self[APICRegister.id] &<< 24
    }
    return image
  }

  /// Loads a register page. False, with nothing changed, if the page's x2APIC identifier is not
  /// this processor's (Linux: EINVAL).
  package mutating func load(
    registerImage image: InlineArray<256, UInt32>, at time: Time, wideID: Bool
  ) -> Bool {
    let imageID = image[APICRegister.id >> 2]
    if mode == .x2APIC {
      let expected = wideID ? initialID : initialID &<< 24
      guard imageID == expected else { return false }
    }
    for word in 0..<256 { page[word &<< 2] = image[word] }
    self[APICRegister.version] = versionRegister
    if mode == .x2APIC {
      self[APICRegister.id] = initialID
      self[APICRegister.ldr] = LocalAPICIdentity.x2APICLogicalID(of: initialID)
    }
    pendingErrors = 0
    rebuildPriorityCache()
    restoreTimer(at: time)
    return true
  }

  /// Restores IA32_APIC_BASE from outside the guest: any change of mode is allowed. False
  /// for an invalid mode.
  package mutating func restoreBase(_ value: UInt64) -> Bool {
    let new = APICBase(rawValue: value)
    if new.contains(.extd), !new.contains(.en) || !features.contains(.x2APIC) { return false }
    let old = mode
    base = value
    if old != .x2APIC, mode == .x2APIC {
      self[APICRegister.id] = initialID
      self[APICRegister.ldr] = LocalAPICIdentity.x2APICLogicalID(of: initialID)
    } else if old == .x2APIC, mode != .x2APIC {
      self[APICRegister.id] = initialID &<< 24
      self[APICRegister.ldr] = 0
    }
    return true
  }

  /// Restores IA32_TSC_DEADLINE from outside the guest, in any timer mode.
  package mutating func restoreTSCDeadline(_ value: UInt64) { tscDeadlineValue = value }
}
