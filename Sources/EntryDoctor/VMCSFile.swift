// SPDX-License-Identifier: Apache-2.0
//
// A VMCS as text. A VMCS has no architectural layout, so its file has one line for each field:
//
//     # a comment
//     guest CR0 = 0x80050033
//     0x681E = 0xFFF0                  an encoding works as well
//
// Linux's dump of a VMCS (dmesg, with kvm_intel.dump_invalid_vmcs=1) is accepted, too; see
// LinuxDump.swift.

import X86

/// What is wrong with a file, in one line.
package struct ControlStructureFileError: Error, Equatable, CustomStringConvertible {
  package var description: String
  package init(_ description: String) { self.description = description }
}

package struct VMCSFile: Equatable {
  package var fields: [VMCSField: UInt64]

  /// The size limit; larger files are something else.
  package static let limit = 1 << 20

  package init(parsing text: String) throws(ControlStructureFileError) {
    if LinuxDump.isOne(text) {
      fields = LinuxDump.fields(text)
    } else {
      fields = try Self.parse(text)
    }
    if fields.isEmpty {
      throw ControlStructureFileError("no field of a VMCS; write lines like 'guest CR0 = 0x31'")
    }
  }

  private static func parse(
    _ text: String
  ) throws(ControlStructureFileError) -> [VMCSField: UInt64] {
    var fields: [VMCSField: UInt64] = [:]
    for (index, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated()
    {
      let content = trimmed(line.prefix { $0 != "#" })
      if content.isEmpty { continue }
      let number = index &+ 1
      guard let sign = content.firstIndex(of: "=") else {
        throw ControlStructureFileError("line \(number): no '='; write NAME = VALUE")
      }
      let name = trimmed(content[..<sign])
      guard let field = field(name) else {
        throw ControlStructureFileError(
          "line \(number): '\(shortened(name))' is no field of a VMCS")
      }
      let digits = trimmed(content[content.index(after: sign)...])
      guard let value = value(digits) else {
        throw ControlStructureFileError(
          "line \(number): '\(shortened(digits))' is no number of 64 bits")
      }
      guard value & ~mask(field) == 0 else {
        throw ControlStructureFileError("line \(number): \(field.name) has fewer bits")
      }
      guard fields.updateValue(value, forKey: field) == nil else {
        throw ControlStructureFileError("line \(number): \(field.name) is there twice")
      }
    }
    return fields
  }

  /// By name or encoding. High halves of fields have no lines.
  private static func field(_ name: some StringProtocol) -> VMCSField? {
    if let field = VMCSField(named: String(name)) { return field }
    guard name.hasPrefix("0x"), let encoding = UInt32(name.dropFirst(2), radix: 16),
      encoding & ~0x6FFE == 0
    else { return nil }
    return VMCSField(rawValue: encoding)
  }

  private static func value(_ text: some StringProtocol) -> UInt64? {
    text.hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : UInt64(text)
  }

  /// The valid bits of a field.
  static func mask(_ field: VMCSField) -> UInt64 {
    switch field.width {
    case .bits16: 0xFFFF
    case .bits32: 0xFFFF_FFFF
    case .bits64, .natural: .max
    }
  }

  static func trimmed(_ text: some StringProtocol) -> Substring {
    var rest = Substring(text)
    while rest.last?.isWhitespace == true { rest.removeLast() }
    return rest.drop { $0.isWhitespace }
  }

  /// For messages: a file may contain anything.
  static func shortened(_ text: some StringProtocol) -> String {
    let shown = text.prefix(40).map { $0.isASCII && !$0.isNewline ? $0 : "?" }
    return String(shown) + (text.count > 40 ? "..." : "")
  }
}
