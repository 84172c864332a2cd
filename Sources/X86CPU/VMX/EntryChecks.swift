// SPDX-License-Identifier: Apache-2.0
//
// The checks of VM entry, in the manual's order: each is one `require` with its rule (SDM volume 3,
// "Checks on VMX Controls and Host-State Area", "Checking and Loading Guest State"). Controls and
// host state are read from the VMCS, guest state from the CPU.
//
//     try require(vpid != 0, .zeroVPID)
//
// The first broken rule ends the checks; with `found` they continue and collect all.

import X86

/// What depends on whose VMCS it is: the processor's own, or one that a hypervisor runs for a guest
/// that is a hypervisor itself.
package struct EntryLimits: Sendable {
  package var pin = VMXCapabilities.pin
  package var primary = VMXCapabilities.primary
  package var secondary = VMXCapabilities.secondary
  package var exit = VMXCapabilities.exit
  package var entry = VMXCapabilities.entry
  package var cr3TargetCount = UInt64(VMXCapabilities.cr3TargetCount)
  package var cr0Fixed = (ones: VMXCapabilities.cr0Fixed0, allowed: VMXCapabilities.cr0Fixed1)
  package var cr4Fixed = (ones: VMXCapabilities.cr4Fixed0, allowed: VMXCapabilities.cr4Fixed1)
  package var eptVPID = VMXCapabilities.eptVPID
  /// Bits of the addresses that the VMCS has.
  package var addressWidth = VMXCapabilities.hostAddressWidth
  /// Bits of the host's CR3.
  package var physicalWidth = CPU.physicalAddressBits
  /// The entry is made from 64-bit mode.
  package var isHost64Bit = true
  /// The VMCS is a guest's: 0 is an address like any other, and no field of it is in the CPU.
  package var isGuests = false

  package init() {}

  /// For the VMCS of a guest.
  package init(addressWidth: UInt64) {
    self.addressWidth = addressWidth
    physicalWidth = addressWidth
    isGuests = true
  }

  static let processor = EntryLimits()
}

struct EntryChecks {
  let cpu: CPU
  let unit: UnsafeMutablePointer<VMXUnit>

  /// Controls that many checks use.
  let pin: UInt32
  let primary: UInt32
  let secondary: UInt32
  let exit: UInt32
  let entry: UInt32
  let injection: InterruptionInfo

  /// Collects the broken rules, instead of a throw.
  let found: BrokenRules<EntryFailure>?
  /// Whether addresses in the VMCS may be dereferenced.
  let readsMemory: Bool
  let limits: EntryLimits

  init(
    cpu: CPU, unit: UnsafeMutablePointer<VMXUnit>, found: BrokenRules<EntryFailure>? = nil,
    readsMemory: Bool = true, limits: EntryLimits = .processor
  ) {
    self.cpu = cpu
    self.unit = unit
    self.limits = limits
    self.found = found
    self.readsMemory = readsMemory
    pin = unit.pointee.page32(.pinBasedControls)
    primary = unit.pointee.page32(.primaryControls)
    let usesSecondary = primary & PrimaryControls.secondaryControls != 0
    secondary = usesSecondary ? unit.pointee.page32(.secondaryControls) : 0
    exit = unit.pointee.page32(.exitControls)
    entry = unit.pointee.page32(.entryControls)
    injection = InterruptionInfo(rawValue: unit.pointee.page32(.entryInterruptionInfo))
  }

  @inline(__always) func require(
    _ holds: Bool, _ rule: EntryFailure, at subject: RuleSubject = .rule
  ) throws(EntryFailure) {
    if !holds { try broken(rule, subject) }
  }

  @inline(never) private func broken(
    _ rule: EntryFailure, _ subject: RuleSubject
  ) throws(EntryFailure) {
    guard let found else { throw rule }
    found.add(rule, subject)
  }

  func page(_ field: VMCSField) -> UInt64 { unit.pointee.page(field) }

  var isUnrestricted: Bool { secondary & SecondaryControls.unrestrictedGuest != 0 }
  var isLongModeGuest: Bool { entry & EntryControls.ia32eModeGuest != 0 }

  /// A guest-physical address within the physical-address width.
  static func isPhysical(_ address: UInt64) -> Bool { address >> CPU.physicalAddressBits == 0 }

  /// A physical address of a 4 KiB structure, of who owns the VMCS.
  func isPage(_ address: UInt64) -> Bool {
    address & Page.offsetMask == 0 && isAddress(address)
  }

  func isAddress(_ address: UInt64) -> Bool {
    (address != 0 || limits.isGuests) && address >> limits.addressWidth == 0
  }

  /// A host-physical address of a 4 KiB structure.
  static func isHostPage(_ address: UInt64) -> Bool {
    address & Page.offsetMask == 0 && address != 0
      && address >> VMXCapabilities.hostAddressWidth == 0
  }

  /// Canonical for the processor's widest linear addresses (57 bits).
  static func isCanonical(_ address: UInt64) -> Bool {
    Int64(bitPattern: address << 7) >> 7 == Int64(bitPattern: address)
  }

  /// Every byte is UC, WC, WT, WP, WB or UC-.
  static func isPAT(_ value: UInt64) -> Bool {
    for shift in stride(from: UInt64(0), to: 64, by: 8) {
      let type = value >> shift & 0xFF
      if type > 7 || type == 2 || type == 3 { return false }
    }
    return true
  }

  static let eferBits = EFER([.sce, .lme, .lma, .nxe]).rawValue
}
