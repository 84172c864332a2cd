// SPDX-License-Identifier: Apache-2.0
//
// `martlet doctor vmcs` and `martlet doctor vmcb`: the contents of a saved control structure, area
// by area, and the rules of VM entry that it breaks; or the difference of two.
//
//     let report = try ControlStructureReport(vmcs: text)
//     for line in report.lines { print(line) }

import SystemPackage
import X86
import X86CPU

package struct ControlStructureReport {
  /// One field of a control structure.
  struct Entry {
    var name: String
    /// Encoding or offset.
    var place: String
    var value: UInt64
    /// Digits of the field's width.
    var digits: Int
    var text: String
    var bits: BitNames?
  }

  struct Area {
    var name: String
    var entries: [Entry]
  }

  let areas: [Area]
  private let explanation: EntryExplanation
  /// Rules that could not be checked.
  private let notes: [String]

  /// Whether it breaks no rule.
  package var isAccepted: Bool { explanation.broken.isEmpty }

  // MARK: Reading

  /// - Parameter text: in the format of VMCSFile.swift.
  package init(
    vmcs text: String, checkedBy checker: SavedControlStructures
  ) throws(ControlStructureFileError) {
    let file = try VMCSFile(parsing: text)
    let known = Self.vmcsAreas.map { name, rows in
      Area(
        name: name,
        entries: rows.compactMap { row in
          file.fields[row.field].map { Self.entry(row.field, $0) }
        })
    }
    let named = Set(VMCSField.table.map(\.field))
    let others = file.fields.filter { !named.contains($0.key) }
      .sorted { $0.key.rawValue < $1.key.rawValue }
    areas =
      (known + [
        Area(name: "other fields", entries: others.map { Self.entry($0.key, $0.value) })
      ]).filter { !$0.entries.isEmpty }
    explanation = checker.explain(vmcs: file.fields)
    notes = Self.notes(file)
  }

  /// - Parameter bytes: a VMCB in memory format.
  package init(
    vmcb bytes: [UInt8], checkedBy checker: SavedControlStructures
  ) throws(ControlStructureFileError) {
    guard bytes.count == VMCBField.blockSize else {
      throw ControlStructureFileError(
        "a VMCB has \(VMCBField.blockSize) bytes, this file has \(bytes.count)")
    }
    let entries = VMCBField.table.map { name, field in
      Self.entry(name, field, Self.value(bytes, field))
    }
    let isControl = VMCBField.table.map { $0.field.offset < VMCBField.saveArea }
    areas = [
      Area(name: "control area", entries: zip(entries, isControl).filter(\.1).map(\.0)),
      Area(name: "state-save area", entries: zip(entries, isControl).filter { !$0.1 }.map(\.0)),
    ]
    explanation = checker.explain(vmcb: bytes)
    notes = []
  }

  private static let vmcsAreas: [(String, [(name: String, field: VMCSField)])] = [
    ("guest-state area", VMCSField.guestState), ("host-state area", VMCSField.hostState),
    ("control fields", VMCSField.controls), ("exit information", VMCSField.exitInformation),
  ]

  private static func entry(_ field: VMCSField, _ value: UInt64) -> Entry {
    let digits = String(VMCSFile.mask(field), radix: 16).count
    return Entry(
      name: field.name, place: "0x" + padded(UInt64(field.rawValue), 4), value: value,
      digits: digits, text: FieldText.of(field, value), bits: BitNames.of(field))
  }

  private static func entry(_ name: String, _ field: VMCBField, _ value: UInt64) -> Entry {
    Entry(
      name: name, place: "0x" + padded(UInt64(field.offset), 3), value: value,
      digits: Int(field.size) &* 2, text: FieldText.of(field, value), bits: BitNames.of(field))
  }

  private static func value(_ bytes: [UInt8], _ field: VMCBField) -> UInt64 {
    bytes.dropFirst(Int(field.offset)).prefix(Int(field.size)).reversed()
      .reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// The controls determine which rules apply.
  private static func notes(_ file: VMCSFile) -> [String] {
    let needed: [VMCSField] = [
      .pinBasedControls, .primaryControls, .secondaryControls, .exitControls, .entryControls,
    ]
    let missing = needed.filter { file.fields[$0] == nil }
    if missing.isEmpty { return [] }
    let names = missing.map(\.name).joined(separator: ", ")
    return ["not in the file, and taken as 0: \(names); other rules may depend on it"]
  }

  // MARK: Lines

  package var lines: [String] {
    let width = areas.flatMap(\.entries).map(\.name.count).max() ?? 0
    var lines: [String] = []
    for area in areas {
      lines.append("\(area.name):")
      for entry in area.entries {
        let name = entry.name + String(repeating: " ", count: max(width &- entry.name.count, 0))
        let value = "0x" + Self.padded(entry.value, entry.digits)
        let text = entry.text.isEmpty ? "" : "  " + entry.text
        lines.append("  \(name)  \(entry.place)  \(value)\(text)")
      }
    }
    return lines + verdict
  }

  /// The verdict on the rules.
  package var verdict: [String] {
    let broken = isAccepted ? ["It breaks no rule of VM entry."] : explanation.lines
    return broken + notes
  }

  /// The difference to another one: fields with both values, and added (+) and removed (-) bits.
  package func difference(_ other: ControlStructureReport) -> [String] {
    let here = areas.flatMap(\.entries)
    let there = Dictionary(
      other.areas.flatMap(\.entries).map { ($0.place, $0) }, uniquingKeysWith: { first, _ in first }
    )
    let places = Set(here.map(\.place))
    var lines: [String] = []
    for entry in here {
      guard let second = there[entry.place] else {
        lines.append("\(entry.name): only in the first, \(Self.shown(entry))")
        continue
      }
      if entry.value == second.value { continue }
      let change =
        "\(entry.name): 0x\(Self.padded(entry.value, entry.digits)) -> "
        + "0x\(Self.padded(second.value, second.digits))"
      lines.append(change + Self.bits(entry, second))
    }
    for area in other.areas {
      for entry in area.entries where !places.contains(entry.place) {
        lines.append("\(entry.name): only in the second, \(Self.shown(entry))")
      }
    }
    return lines
  }

  private static func shown(_ entry: Entry) -> String { "0x" + padded(entry.value, entry.digits) }

  private static func bits(_ first: Entry, _ second: Entry) -> String {
    guard let names = first.bits else {
      return first.text == second.text ? "" : " (\(first.text) -> \(second.text))"
    }
    let come = names.list(second.value & ~first.value)
    let gone = names.list(first.value & ~second.value)
    let parts = [gone.isEmpty ? "" : "- \(gone)", come.isEmpty ? "" : "+ \(come)"]
    return "  " + parts.filter { !$0.isEmpty }.joined(separator: "; ")
  }

  private static func padded(_ value: UInt64, _ digits: Int) -> String {
    let text = String(value, radix: 16, uppercase: true)
    return String(repeating: "0", count: max(digits &- text.count, 0)) + text
  }
}
