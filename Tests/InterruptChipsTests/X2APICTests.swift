// SPDX-License-Identifier: Apache-2.0
//
// The local APIC in x2APIC mode against the tables of the SDM: which MSRs are there, which bits
// fault, which changes of mode are allowed.

import InterruptChips
import Testing
import X86

@Suite struct X2APICTests {
  /// MSRs that exist, from "x2APIC Register Address Space": number, readable, writable with 0.
  static let registers: [UInt32: (read: Bool, write: Bool)] = {
    var table: [UInt32: (Bool, Bool)] = [
      0x802: (true, false), 0x803: (true, false), 0x808: (true, true), 0x80A: (true, false),
      0x80B: (false, true), 0x80D: (true, false), 0x80F: (true, true), 0x828: (true, true),
      0x830: (true, true), 0x838: (true, true), 0x839: (true, false), 0x83E: (true, true),
      0x83F: (false, true),
    ]
    for number: UInt32 in 0x810...0x827 { table[number] = (true, false) }
    for number: UInt32 in 0x832...0x837 { table[number] = (true, true) }
    return table
  }()

  @Test func accessRights() {
    for number: UInt32 in 0x7FF...0x840 {
      var apic = makeX2APIC()
      let rights = Self.registers[number] ?? (false, false)
      let isRead = apic.readMSR(number, at: start) != nil
      let isWritten = apic.writeMSR(number, 0, at: start) != nil
      #expect(isRead == rights.read, "RDMSR \(number)")
      #expect(isWritten == rights.write, "WRMSR \(number)")
    }
  }

  @Test func cmciExistsWhereOffered() {
    var apic = makeX2APIC(features: [.x2APIC, .cmci])
    #expect(apic.readMSR(0x82F, at: start) == 0x10000)
    #expect(apic.readMSR(0x803, at: start) == 0x0006_0014)
  }

  @Test func nothingInXAPICMode() {
    var apic = makeAPIC()
    #expect(apic.readMSR(0x802, at: start) == nil)
    #expect(apic.writeMSR(0x808, 0, at: start) == nil)
    var wide = makeX2APIC()
    #expect(wide.readRegister(APICRegister.version, at: start) == 0)
  }

  /// MSR, the bits that may be set.
  @Test(
    arguments: [
      (0x808, 0xFF), (0x80B, 0), (0x80F, 0x3FF), (0x828, 0), (0x830, 0xFFFF_FFFF_000C_DFFF),
      (0x832, 0x7_10FF), (0x833, 0x1_17FF), (0x834, 0x1_17FF), (0x835, 0x1_F7FF),
      (0x836, 0x1_F7FF), (0x837, 0x1_10FF), (0x838, 0xFFFF_FFFF), (0x83E, 0xB), (0x83F, 0xFF),
    ] as [(UInt32, UInt64)])
  func reservedBitsFault(number: UInt32, allowed: UInt64) {
    for bit in UInt64(0)..<64 {
      var apic = makeX2APIC()
      let isAllowed = allowed & 1 << bit != 0
      let isWritten = apic.writeMSR(number, 1 << bit, at: start) != nil
      #expect(isWritten == isAllowed, "bit \(bit)")
    }
  }

  @Test func icrIsOneRegister() {
    var apic = makeX2APIC()
    let expected = InterprocessorInterrupt(
      message: InterruptMessage(destination: 0x1234_5678, vector: 0x41, isWide: true))
    #expect(apic.writeMSR(0x830, 0x1234_5678_0000_4041, at: start) == .send(expected))
    #expect(apic.readMSR(0x830, at: start) == 0x1234_5678_0000_4041)
  }

  @Test func selfIPI() {
    var apic = makeX2APIC()
    #expect(apic.writeMSR(0x83F, 0x77, at: start) == LocalAPIC.Effect.none)
    #expect(apic.isRequested(0x77) == true)
    #expect(apic.isLevelTriggered(0x77) == false)
  }

  @Test func identifiers() {
    let apic = makeX2APIC(id: 0x1_002A)
    #expect(apic.id == 0x1_002A)
    #expect(apic.identity.logicalID == 0x1002_0400)
  }

  enum Step: Sendable { case disable, xAPIC, x2APIC, invalid }

  /// From, to, allowed ("x2APIC State Transitions").
  @Test(
    arguments: [
      (.disable, .disable, true), (.disable, .xAPIC, true), (.disable, .x2APIC, false),
      (.xAPIC, .disable, true), (.xAPIC, .xAPIC, true), (.xAPIC, .x2APIC, true),
      (.x2APIC, .disable, true), (.x2APIC, .xAPIC, false), (.x2APIC, .x2APIC, true),
      (.disable, .invalid, false), (.xAPIC, .invalid, false), (.x2APIC, .invalid, false),
    ] as [(Step, Step, Bool)])
  func transition(from: Step, to: Step, isAllowed: Bool) {
    var apic = makeAPIC()
    let values: (Step) -> UInt64 = {
      switch $0 {
      case .disable: 0xFEE0_0000
      case .xAPIC: 0xFEE0_0800
      case .x2APIC: 0xFEE0_0C00
      case .invalid: 0xFEE0_0400
      }
    }
    if from != .xAPIC { #expect(apic.writeBase(values(from), physicalAddressWidth: 40) == true) }
    let before = apic.base
    #expect(apic.writeBase(values(to), physicalAddressWidth: 40) == isAllowed)
    #expect(apic.base == (isAllowed ? values(to) : before))
  }

  @Test(arguments: [1 << 0, 1 << 9, 1 << 40, 1 << 63] as [UInt64])
  func reservedBaseBits(bit: UInt64) {
    var apic = makeAPIC()
    #expect(apic.writeBase(0xFEE0_0900 | bit, physicalAddressWidth: 40) == false)
  }

  @Test func x2APICNeedsTheFeature() {
    var apic = makeAPIC(features: [])
    #expect(apic.writeBase(0xFEE0_0D00, physicalAddressWidth: 40) == false)
  }

  @Test func disablingForgets() {
    var apic = makeX2APIC(id: 5)
    apic.request(0x55)
    #expect(apic.writeBase(0xFEE0_0000, physicalAddressWidth: 40) == true)
    #expect(apic.hasDeliverableInterrupt == false)
    #expect(apic.deliver(InterruptMessage(destination: 5, vector: 0x55)) == .ignored)
    #expect(apic.writeBase(0xFEE0_0800, physicalAddressWidth: 40) == true)
    #expect(apic.id == 5)
    #expect(apic.isSoftwareEnabled == false)
  }
}
