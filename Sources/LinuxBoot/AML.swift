// SPDX-License-Identifier: Apache-2.0
//
// The terms of ACPI's machine language that the DSDT needs, as functions that return their bytes
// (ACPI specification, "ACPI Machine Language (AML) Specification").

import Host

enum AML {
  private static let nameOp: UInt8 = 0x08
  private static let bytePrefix: UInt8 = 0x0A
  private static let dwordPrefix: UInt8 = 0x0C
  private static let scopeOp: UInt8 = 0x10
  private static let bufferOp: UInt8 = 0x11
  private static let packageOp: UInt8 = 0x12
  private static let extendedPrefix: UInt8 = 0x5B
  private static let deviceOp: UInt8 = 0x82
  private static let root: UInt8 = 0x5C
  private static let endTag: [UInt8] = [0x79, 0]

  /// Four characters, padded with underscores; a leading backslash starts at the root.
  static func name(_ text: String) -> [UInt8] {
    let absolute = text.hasPrefix("\\")
    let segment = absolute ? text.dropFirst() : text[...]
    let padded =
      Array(segment.utf8.prefix(4)) + Array(repeating: 0x5F, count: max(0, 4 - segment.utf8.count))
    return (absolute ? [root] : []) + padded
  }

  /// A package length counts itself: one byte up to 63, else two to four with the low 4 bits first.
  private static func withLength(_ body: [UInt8]) -> [UInt8] {
    if body.count + 1 < 64 { return [UInt8(body.count + 1)] + body }
    let extra = body.count + 2 < 1 << 12 ? 1 : 2
    let length = body.count + 1 + extra
    var bytes = [UInt8(extra << 6 | length & 0xF)]
    for index in 0..<extra { bytes.append(UInt8(length >> (4 + 8 * index) & 0xFF)) }
    return bytes + body
  }

  static func byte(_ value: UInt8) -> [UInt8] { [bytePrefix, value] }
  static func dword(_ value: UInt32) -> [UInt8] {
    var bytes = [dwordPrefix]
    bytes.append(little: value)
    return bytes
  }
  static func assign(_ target: String, _ value: [UInt8]) -> [UInt8] {
    [nameOp] + name(target) + value
  }
  static func package(_ elements: [[UInt8]]) -> [UInt8] {
    [packageOp] + withLength([UInt8(elements.count)] + elements.joined())
  }
  static func scope(_ target: String, _ terms: [[UInt8]]) -> [UInt8] {
    [scopeOp] + withLength(name(target) + terms.joined())
  }
  static func device(_ target: String, _ terms: [[UInt8]]) -> [UInt8] {
    [extendedPrefix, deviceOp] + withLength(name(target) + terms.joined())
  }

  /// A compressed EISA identifier: three letters of 5 bits, four hexadecimal digits, big-endian.
  static func eisaIdentifier(_ text: String) -> [UInt8] {
    let letters = text.utf8.prefix(3).reduce(UInt32(0)) { $0 << 5 | (UInt32($1) &- 0x40) & 0x1F }
    let digits = UInt32(text.dropFirst(3), radix: 16) ?? 0
    return dword((letters << 16 | digits & 0xFFFF).byteSwapped)
  }

  /// A resource template: descriptors in a buffer, with an end tag that needs no checksum.
  static func resources(_ descriptors: [[UInt8]]) -> [UInt8] {
    let content = descriptors.joined() + endTag
    return [bufferOp] + withLength(byte(UInt8(content.count)) + content)
  }

  /// Ports decoded with 16 address bits.
  static func ports(_ start: UInt16, count: UInt8) -> [UInt8] {
    var bytes: [UInt8] = [0x47, 1]
    bytes.append(little: start)
    bytes.append(little: start)
    return bytes + [1, count]
  }

  /// The kinds of a bridge's windows ("Address Space Resource Descriptors").
  enum AddressSpace: UInt8 {
    case memory = 0
    case ports = 1
    case buses = 2

    /// Writable, uncached memory; all ports.
    fileprivate var flags: UInt8 {
      switch self {
      case .memory: 1
      case .ports: 3
      case .buses: 0
      }
    }
  }

  /// A fixed range of buses or ports.
  static func window16(_ space: AddressSpace, _ first: UInt16, _ last: UInt16) -> [UInt8] {
    window(0x88, space, first, last)
  }

  /// A fixed range of memory below 4 GiB.
  static func window32(_ space: AddressSpace, _ first: UInt32, _ last: UInt32) -> [UInt8] {
    window(0x87, space, first, last)
  }

  private static func window<Address: FixedWidthInteger>(
    _ tag: UInt8, _ space: AddressSpace, _ first: Address, _ last: Address
  ) -> [UInt8] {
    let fixedEnds: UInt8 = 0x0C
    var body: [UInt8] = [space.rawValue, fixedEnds, space.flags]
    for value in [0, first, last, 0, last - first + 1] { body.append(little: value) }
    var bytes = [tag]
    bytes.append(little: UInt16(body.count))
    return bytes + body
  }

  /// Memory at a fixed place.
  static func fixedMemory(_ start: UInt32, size: UInt32) -> [UInt8] {
    var bytes: [UInt8] = [0x86, 9, 0, 1]
    bytes.append(little: start)
    bytes.append(little: size)
    return bytes
  }

  /// An edge-triggered, active-high interrupt.
  static func interrupt(_ line: UInt32) -> [UInt8] {
    var bytes: [UInt8] = [0x22]
    bytes.append(little: UInt16(1) << UInt16(line & 15))
    return bytes
  }
}
