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

  init(
    cpu: CPU, unit: UnsafeMutablePointer<VMXUnit>, found: BrokenRules<EntryFailure>? = nil,
    readsMemory: Bool = true
  ) {
    self.cpu = cpu
    self.unit = unit
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
