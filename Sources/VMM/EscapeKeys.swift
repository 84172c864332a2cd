// SPDX-License-Identifier: Apache-2.0
//
// The terminal's escape keys: Ctrl-A and another key.

/// Splits the user's input into bytes for the guest and commands for the VMM: Ctrl-A and a key.
package struct EscapeKeys: Sendable {
  package enum Event: Sendable, Hashable {
    case input(UInt8)
    case quit
    case help
  }

  private static let prefix: UInt8 = 1  // Ctrl-A
  private var escaped = false

  package static let help =
    "Ctrl-A X quits, Ctrl-A H shows this, Ctrl-A A sends Ctrl-A to the guest"

  package init() {}

  /// Processes typed bytes. An unknown key after Ctrl-A does nothing.
  package mutating func take(_ bytes: some Sequence<UInt8>) -> [Event] {
    var events: [Event] = []
    for byte in bytes {
      guard escaped else {
        if byte == Self.prefix { escaped = true } else { events.append(.input(byte)) }
        continue
      }
      escaped = false
      switch byte {
      case UInt8(ascii: "x"), UInt8(ascii: "X"): events.append(.quit)
      case UInt8(ascii: "h"), UInt8(ascii: "H"), UInt8(ascii: "?"): events.append(.help)
      case UInt8(ascii: "a"), UInt8(ascii: "A"), Self.prefix: events.append(.input(Self.prefix))
      default: break
      }
    }
    return events
  }
}
