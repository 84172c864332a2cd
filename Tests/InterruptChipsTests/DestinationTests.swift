// SPDX-License-Identifier: Apache-2.0
//
// Which processors a message names and what its fields mean, case by case from the SDM
// ("Determining IPI Destination", "Message Signalled Interrupts").

import InterruptChips
import Testing

@Suite struct DestinationTests {
  struct Case: Sendable, CustomStringConvertible {
    var destination: UInt32
    var mode: DestinationMode
    var identity: LocalAPICIdentity
    var isWide = false
    var matches: Bool
    var description: String { "\(destination) \(mode) to \(identity), wide \(isWide)" }
  }

  static func flat(id: UInt32, logical: UInt32) -> LocalAPICIdentity {
    LocalAPICIdentity(mode: .xAPIC, id: id, logicalID: logical)
  }
  static func cluster(id: UInt32, logical: UInt32) -> LocalAPICIdentity {
    LocalAPICIdentity(mode: .xAPIC, id: id, logicalID: logical, isFlat: false)
  }
  static func x2(id: UInt32) -> LocalAPICIdentity {
    LocalAPICIdentity(
      mode: .x2APIC, id: id, logicalID: LocalAPICIdentity.x2APICLogicalID(of: id))
  }
  static let off = LocalAPICIdentity(mode: .disabled, id: 1, logicalID: 1)

  static let cases: [Case] = [
    Case(destination: 3, mode: .physical, identity: flat(id: 3, logical: 8), matches: true),
    Case(destination: 3, mode: .physical, identity: flat(id: 2, logical: 8), matches: false),
    Case(destination: 0xFF, mode: .physical, identity: flat(id: 2, logical: 8), matches: true),
    Case(destination: 0xFF, mode: .physical, identity: x2(id: 2), matches: true),
    Case(destination: 0xFF, mode: .physical, identity: x2(id: 2), isWide: true, matches: false),
    Case(destination: 0xFF, mode: .physical, identity: x2(id: 255), isWide: true, matches: true),
    Case(
      destination: 0xFFFF_FFFF, mode: .physical, identity: x2(id: 9), isWide: true, matches: true),
    Case(
      destination: 0xFFFF_FFFF, mode: .logical, identity: x2(id: 9), isWide: true, matches: true),
    Case(
      destination: 0xFFFF_FFFF, mode: .physical, identity: flat(id: 9, logical: 0), isWide: true,
      matches: true),
    Case(destination: 0x105, mode: .physical, identity: x2(id: 0x105), isWide: true, matches: true),
    Case(
      destination: 0x105, mode: .physical, identity: flat(id: 5, logical: 0), isWide: true,
      matches: false),
    Case(destination: 0x0C, mode: .logical, identity: flat(id: 3, logical: 8), matches: true),
    Case(destination: 0x07, mode: .logical, identity: flat(id: 3, logical: 8), matches: false),
    Case(destination: 0xFF, mode: .logical, identity: flat(id: 3, logical: 0), matches: true),
    Case(destination: 0x23, mode: .logical, identity: cluster(id: 3, logical: 0x22), matches: true),
    Case(
      destination: 0x33, mode: .logical, identity: cluster(id: 3, logical: 0x22), matches: false),
    Case(
      destination: 0x21, mode: .logical, identity: cluster(id: 3, logical: 0x22), matches: false),
    Case(
      destination: 0x2_0009, mode: .logical, identity: x2(id: 0x23), isWide: true, matches: true),
    Case(
      destination: 0x2_0009, mode: .logical, identity: x2(id: 0x22), isWide: true, matches: false),
    Case(
      destination: 0x2_0009, mode: .logical, identity: x2(id: 0x13), isWide: true, matches: false),
    Case(destination: 0x08, mode: .logical, identity: x2(id: 3), matches: true),
    Case(destination: 1, mode: .physical, identity: off, matches: false),
    Case(destination: 0xFF, mode: .physical, identity: off, matches: false),
  ]

  @Test(arguments: cases) func matching(_ sample: Case) {
    let message = InterruptMessage(
      destination: sample.destination, destinationMode: sample.mode, vector: 0x40,
      isWide: sample.isWide)
    #expect(sample.identity.matches(message) == sample.matches)
  }

  /// Shorthand, then whether the sender and another (not the destination) match.
  @Test(
    arguments: [
      (.none, false, false), (.selfOnly, true, false), (.allIncludingSelf, true, true),
      (.allExcludingSelf, false, true),
    ] as [(InterprocessorInterrupt.Shorthand, Bool, Bool)])
  func shorthand(_ shorthand: InterprocessorInterrupt.Shorthand, sender: Bool, other: Bool) {
    let interrupt = InterprocessorInterrupt(
      message: InterruptMessage(destination: 7, vector: 0x40), shorthand: shorthand)
    let identity = Self.flat(id: 1, logical: 2)
    #expect(identity.matches(interrupt, isSender: true) == sender)
    #expect(identity.matches(interrupt, isSender: false) == other)
    #expect(!Self.off.matches(interrupt, isSender: true))
  }

  @Test func identityFollowsTheRegisters() {
    var apic = makeAPIC(id: 4)
    apic.writeRegister(0x0D0, 0x2200_0000, at: start)
    apic.writeRegister(0x0E0, 0x0000_0000, at: start)
    #expect(apic.identity == Self.cluster(id: 4, logical: 0x22))
  }

  struct MSICase: Sendable {
    var low: UInt32
    var high: UInt32 = 0
    var data: UInt32
    var format: MessageSignalledInterrupt.Format = []
    var message: InterruptMessage
  }

  @Test(arguments: [
    MSICase(
      low: 0xFEE0_3000, data: 0x41, message: InterruptMessage(destination: 3, vector: 0x41)),
    MSICase(
      low: 0xFEE0_300C, data: 0x41,
      message: InterruptMessage(
        destination: 3, destinationMode: .logical, deliveryMode: .lowestPriority, vector: 0x41)),
    MSICase(
      low: 0xFEEF_F000, data: 0xC142,
      message: InterruptMessage(
        destination: 0xFF, deliveryMode: .lowestPriority, vector: 0x42, trigger: .level)),
    MSICase(
      low: 0xFEE0_3000, high: 0x100, data: 0x41, format: .extendedDestination,
      message: InterruptMessage(destination: 0x103, vector: 0x41, isWide: true)),
    MSICase(
      low: 0xFEE0_3000, high: 0x100, data: 0x441,
      message: InterruptMessage(destination: 3, deliveryMode: .nmi, vector: 0x41)),
    MSICase(
      low: 0xFEEF_F000, data: 0x41, format: .noNarrowBroadcast,
      message: InterruptMessage(destination: 0xFF, vector: 0x41, isWide: true)),
  ])
  func messageSignalled(_ sample: MSICase) {
    let interrupt = MessageSignalledInterrupt(
      addressLow: sample.low, addressHigh: sample.high, data: sample.data)
    #expect(interrupt.message(sample.format) == sample.message)
  }

  @Test func routing() throws {
    let standard = GSIRoutingTable.standard
    #expect(Array(standard[gsi: 4]) == [.ioapic(pin: 4), .picMaster(pin: 4)])
    #expect(Array(standard[gsi: 12]) == [.ioapic(pin: 12), .picSlave(pin: 4)])
    #expect(Array(standard[gsi: 23]) == [.ioapic(pin: 23)])
    #expect(standard[gsi: 24].isEmpty && standard[gsi: .max].isEmpty)
    #expect(GSIRoute.picSlave(pin: 4).picLine == 12)

    let interrupt = MessageSignalledInterrupt(addressLow: 0xFEE0_0000, data: 0x50)
    let table = try #require(
      GSIRoutingTable([(40, .message(interrupt)), (2, .ioapic(pin: 0)), (0, .picMaster(pin: 0))]))
    #expect(Array(table[gsi: 40]) == [.message(interrupt)])
    #expect(Array(table[gsi: 2]) == [.ioapic(pin: 0)])
    #expect(table[gsi: 1].isEmpty && table[gsi: 39].isEmpty && table[gsi: 41].isEmpty)
    #expect(try #require(GSIRoutingTable([]))[gsi: 0].isEmpty)

    #expect(GSIRoutingTable([(0, .ioapic(pin: 24))]) == nil)
    #expect(GSIRoutingTable([(0, .picSlave(pin: 8))]) == nil)
    #expect(GSIRoutingTable([(4096, .ioapic(pin: 1))]) == nil)
    #expect(GSIRoutingTable([(1, .ioapic(pin: 1)), (1, .ioapic(pin: 2))]) == nil)
    #expect(GSIRoutingTable([(1, .message(interrupt)), (1, .ioapic(pin: 2))]) == nil)
    let format = MessageSignalledInterrupt.Format.extendedDestination
    let bad = MessageSignalledInterrupt(addressLow: 0xFEE0_0000, addressHigh: 1, data: 0x50)
    #expect(bad.isValid([]) && !bad.isValid(format))
  }
}
