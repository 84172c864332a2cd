// SPDX-License-Identifier: Apache-2.0

import InterruptChips
import Testing

@Suite struct InterruptRouterTests {
  /// Processors 0 to 3 in xAPIC mode with flat logical identifiers 1, 2, 4, 8; 2 is
  /// software-disabled and 3 disabled.
  func makeRouter() -> InterruptRouter {
    var router = InterruptRouter()
    for index in [1, 0, 2, 3] {
      let identity = LocalAPICIdentity(
        mode: index == 3 ? .disabled : .xAPIC, id: UInt32(index), logicalID: 1 << UInt32(index),
        isSoftwareEnabled: index != 2)
      router.setIdentity(identity, ofProcessor: index)
    }
    return router
  }

  func destinations(_ router: InterruptRouter, _ message: InterruptMessage) -> [Int] {
    var list: [Int] = []
    #expect(router.forEachDestination(of: message) { list.append($0) } == list.count)
    return list
  }

  @Test func messages() {
    let router = makeRouter()
    var message = InterruptMessage(destination: 1, vector: 0x40)
    #expect(destinations(router, message) == [1])
    message.destination = 3
    #expect(destinations(router, message) == [])
    message.destination = 0xFF
    #expect(destinations(router, message) == [0, 1, 2])
    message.destinationMode = .logical
    message.destination = 0b1110
    #expect(destinations(router, message) == [1, 2])
  }

  @Test func identifiersNeedNotBeIndices() {
    var router = InterruptRouter()
    for (index, id): (Int, UInt32) in [(0, 1), (1, 0), (2, 8)] {
      let identity = LocalAPICIdentity(mode: .xAPIC, id: id, logicalID: 0)
      router.setIdentity(identity, ofProcessor: index)
    }
    #expect(destinations(router, InterruptMessage(destination: 0, vector: 0x40)) == [1])
    #expect(destinations(router, InterruptMessage(destination: 1, vector: 0x40)) == [0])
    #expect(destinations(router, InterruptMessage(destination: 8, vector: 0x40)) == [2])
    #expect(destinations(router, InterruptMessage(destination: 2, vector: 0x40)) == [])
  }

  @Test func lowestPriorityHasOneDestinationThatIsEnabled() {
    let router = makeRouter()
    var seen: Set<Int> = []
    for vector in UInt8(16)...255 {
      let message = InterruptMessage(
        destination: 0xFF, destinationMode: .logical, deliveryMode: .lowestPriority,
        vector: vector)
      let list = destinations(router, message)
      #expect(list.count == 1)
      seen.formUnion(list)
    }
    #expect(seen == [0, 1])
    let toDisabled = InterruptMessage(
      destination: 4, destinationMode: .logical, deliveryMode: .lowestPriority, vector: 0x40)
    #expect(destinations(router, toDisabled) == [])
  }

  @Test(
    arguments: [
      (.none, [2]), (.selfOnly, [1]), (.allIncludingSelf, [0, 1, 2]), (.allExcludingSelf, [0, 2]),
    ] as [(InterprocessorInterrupt.Shorthand, [Int])])
  func shorthands(_ shorthand: InterprocessorInterrupt.Shorthand, expected: [Int]) {
    let interrupt = InterprocessorInterrupt(
      message: InterruptMessage(destination: 2, deliveryMode: .nmi, vector: 0),
      shorthand: shorthand)
    var list: [Int] = []
    makeRouter().forEachDestination(of: interrupt, from: 1) { list.append($0) }
    #expect(list == expected)
  }
}
