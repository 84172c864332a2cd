// SPDX-License-Identifier: Apache-2.0
//
// Texts for each rule of VMRUN in a report: its fields, and the wrong bits of the first. A test
// fails for a rule without a row.

import X86

struct VMRunRuleText: Sendable {
  /// The wrong one first.
  let fields: [VMCBField]
  /// The wrong bits of the first field's value; 0: the field as a whole.
  let wrong: @Sendable (UInt64) -> UInt64
}

extension VMRunFailure {
  var text: VMRunRuleText { Self.texts[self] ?? VMRunRuleText(fields: []) { _ in 0 } }

  /// Whether the table has a row for the rule.
  package var hasText: Bool { Self.texts[self] != nil }

  private static let texts = Dictionary(uniqueKeysWithValues: rows)

  private static func row(
    _ rule: VMRunFailure, _ fields: VMCBField...,
    wrong: @escaping @Sendable (UInt64) -> UInt64 = { _ in 0 }
  ) -> (VMRunFailure, VMRunRuleText) {
    (rule, VMRunRuleText(fields: fields, wrong: wrong))
  }

  private static func mask(_ bits: UInt64) -> @Sendable (UInt64) -> UInt64 { { _ in bits } }
  private static func ones(_ bits: UInt64) -> @Sendable (UInt64) -> UInt64 { { $0 & bits } }

  private static let rows: [(VMRunFailure, VMRunRuleText)] = [
    row(.eferSVME, .efer, wrong: mask(EFER.svme.rawValue)),
    row(.cr0NotWriteThrough, .cr0, wrong: mask(CR0.nw.rawValue)),
    row(.cr0Upper, .cr0, wrong: ones(0xFFFF_FFFF << 32)),
    row(.cr3, .cr3, .efer, wrong: ones(~((UInt64(1) << CPU.physicalAddressBits) &- 1))),
    row(.cr4, .cr4, wrong: ones(~CR4.supported.subtracting(.vmxe).rawValue)),
    row(.dr6, .dr6, wrong: ones(0xFFFF_FFFF << 32)),
    row(.dr7, .dr7, wrong: ones(0xFFFF_FFFF << 32)),
    row(.eferReserved, .efer, wrong: ones(~SVMCapabilities.efer.rawValue)),
    row(.longModeWithoutPAE, .cr4, .efer, .cr0, wrong: mask(CR4.pae.rawValue)),
    row(.longModeWithoutProtection, .cr0, .efer, wrong: mask(CR0.pe.rawValue)),
    row(.longAndBigCode, .attributes(of: .cs), .efer, .cr0, .cr4, wrong: mask(3 << 9)),
    row(.vmrunNotIntercepted, .intercepts4, wrong: mask(1)),
    row(.permissionMaps, .ioPermissionMap, .msrPermissionMap, .intercepts3),
    row(.injectionType, .eventInjection, wrong: mask(7 << 8)),
    row(.injectionVector, .eventInjection, wrong: mask(0xFF)),
    row(.asid, .asid),
    row(
      .nestedCR3, .nestedCR3,
      wrong: ones(~((UInt64(1) << SVMCapabilities.hostAddressWidth) &- 1))),
    row(.guestPAT, .guestPAT),
  ]
}

extension VMCBField {
  /// The field's name in reports.
  package var name: String { Self.names[offset] ?? "offset 0x\(String(offset, radix: 16))" }

  private static let names = Dictionary(
    table.map { ($0.field.offset, $0.name) }, uniquingKeysWith: { first, _ in first })
}
