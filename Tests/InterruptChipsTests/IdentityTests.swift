// SPDX-License-Identifier: Apache-2.0
//
// Which processors of four a message names, by its destination and shorthand; those that are
// disabled are not among them.

import InterruptChips
import Testing

@Suite struct IdentityTests {
  /// Processors 0 to 3 in xAPIC mode with flat logical identifiers 1, 2, 4, 8; 2 is
  /// software-disabled and 3 disabled.
  private let identities = (0..<4).map { index in
    LocalAPICIdentity(
      mode: index == 3 ? .disabled : .xAPIC, id: UInt32(index), logicalID: 1 << UInt32(index),
      isSoftwareEnabled: index != 2)
  }

  private func destinations(_ message: InterruptMessage) -> [Int] {
    identities.indices.filter { identities[$0].matches(message) }
  }

  @Test func messages() {
    var message = InterruptMessage(destination: 1, vector: 0x40)
    #expect(destinations(message) == [1])
    message.destination = 3
    #expect(destinations(message) == [])
    message.destination = 0xFF
    #expect(destinations(message) == [0, 1, 2])
    message.destinationMode = .logical
    message.destination = 0b1110
    #expect(destinations(message) == [1, 2])
  }

  @Test(
    arguments: [
      (.none, [2]), (.selfOnly, [1]), (.allIncludingSelf, [0, 1, 2]), (.allExcludingSelf, [0, 2]),
    ] as [(InterprocessorInterrupt.Shorthand, [Int])])
  func shorthands(_ shorthand: InterprocessorInterrupt.Shorthand, expected: [Int]) {
    let interrupt = InterprocessorInterrupt(
      message: InterruptMessage(destination: 2, deliveryMode: .nmi, vector: 0),
      shorthand: shorthand)
    let list = identities.indices.filter {
      identities[$0].matches(interrupt, isSender: $0 == 1)
    }
    #expect(list == expected)
  }
}
