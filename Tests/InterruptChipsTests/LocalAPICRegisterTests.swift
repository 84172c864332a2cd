// SPDX-License-Identifier: Apache-2.0
//
// Registers of the local APIC against the SDM's chapter on it: reserved bits, errors, commands,
// local vectors. Expected values are the manual's, written out.

import InterruptChips
import Testing
import X86

@Suite struct LocalAPICRegisterTests {
  /// Offset, all ones written, what reads back.
  @Test(
    arguments: [
      (APICRegister.id, 0xFF00_0000), (APICRegister.ldr, 0xFF00_0000),
      (APICRegister.dfr, 0xFFFF_FFFF), (APICRegister.icrHigh, 0xFF00_0000),
      (APICRegister.lvtTimer, 0x0007_00FF), (APICRegister.lvtThermal, 0x0001_07FF),
      (APICRegister.lvtPerformance, 0x0001_07FF), (APICRegister.lvtLINT0, 0x0001_A7FF),
      (APICRegister.lvtError, 0x0001_00FF), (APICRegister.divideConfiguration, 0xB),
      (APICRegister.version, 0x0005_0014), (APICRegister.lvtCMCI, 0), (APICRegister.ppr, 0),
      (APICRegister.irr, 0), (APICRegister.currentCount, 0),
    ] as [(Int, UInt32)])
  func reservedBitsStay(offset: Int, readsBack: UInt32) {
    var apic = makeAPIC()
    apic.writeRegister(offset, 0xFFFF_FFFF, at: start)
    #expect(apic.readRegister(offset, at: start) == readsBack)
  }

  @Test func dfrKeepsItsOnes() {
    var apic = makeAPIC()
    #expect(apic.writeRegister(APICRegister.dfr, 0, at: start) == .identityChanged)
    #expect(apic.readRegister(APICRegister.dfr, at: start) == 0x0FFF_FFFF)
  }

  @Test func partialReadsGiveBytesOfTheRegister() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.ldr, 0x1200_0000, at: start)
    #expect(apic.readMMIO(APICRegister.ldr + 3, width: 1, at: start) == 0x12)
    #expect(apic.readMMIO(APICRegister.ldr + 2, width: 2, at: start) == 0x1200)
    #expect(apic.readMMIO(APICRegister.ldr, width: 8, at: start) == 0x1200_0000)
    #expect(apic.readMMIO(APICRegister.ldr + 4, width: 4, at: start) == 0)
    #expect(apic.writeRegister(APICRegister.ldr + 4, 1, at: start) == .none)
  }

  @Test func softwareDisableMasksTheTable() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.lvtLINT0, 0x700, at: start)
    apic.writeRegister(APICRegister.svr, 0xFF, at: start)
    #expect(apic.readRegister(APICRegister.lvtLINT0, at: start) == 0x10700)
    apic.writeRegister(APICRegister.lvtLINT0, 0x700, at: start)
    #expect(apic.readRegister(APICRegister.lvtLINT0, at: start) == 0x10700)
    #expect(apic.deliver(InterruptMessage(destination: 0, vector: 0x44)) == .ignored)
    let nmi = InterruptMessage(destination: 0, deliveryMode: .nmi, vector: 0)
    #expect(apic.deliver(nmi) == .nmi)
  }

  @Test func errorsLatchAndRaiseTheirEntry() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.lvtError, 0xFE, at: start)
    #expect(apic.readRegister(0x3A0, at: start) == 0)
    #expect(apic.isRequested(0xFE) == true)
    #expect(apic.deliver(InterruptMessage(destination: 0, vector: 3)) == .ignored)
    // ICR with fixed vector 5 is not sent.
    #expect(apic.writeRegister(APICRegister.icrLow, 5, at: start) == .none)
    #expect(apic.readRegister(APICRegister.esr, at: start) == 0)
    apic.writeRegister(APICRegister.esr, 0, at: start)
    #expect(apic.readRegister(APICRegister.esr, at: start) == 0xE0)
    apic.writeRegister(APICRegister.esr, 0, at: start)
    #expect(apic.readRegister(APICRegister.esr, at: start) == 0)
  }

  @Test(
    arguments: [
      (0x0000_4031, .fixed, .none, .physical), (0x0000_0831, .fixed, .none, .logical),
      (0x0000_0131, .lowestPriority, .none, .physical), (0x0000_0400, .nmi, .none, .physical),
      (0x0000_4500, .initialize, .none, .physical), (0x0000_C500, .initialize, .none, .physical),
      (0x0000_4608, .startup, .none, .physical), (0x0004_4031, .fixed, .selfOnly, .physical),
      (0x0008_4031, .fixed, .allIncludingSelf, .physical),
      (0x000C_4031, .fixed, .allExcludingSelf, .physical),
    ] as [(UInt32, DeliveryMode, InterprocessorInterrupt.Shorthand, DestinationMode)])
  func command(
    low: UInt32, delivery: DeliveryMode, shorthand: InterprocessorInterrupt.Shorthand,
    destinationMode: DestinationMode
  ) {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.icrHigh, 0x0500_0000, at: start)
    let message = InterruptMessage(
      destination: 5, destinationMode: destinationMode, deliveryMode: delivery,
      vector: UInt8(low & 0xFF))
    let expected = InterprocessorInterrupt(message: message, shorthand: shorthand)
    #expect(apic.writeRegister(APICRegister.icrLow, low, at: start) == .send(expected))
  }

  @Test func initDeassertIsNotSent() {
    var apic = makeAPIC()
    #expect(apic.writeRegister(APICRegister.icrLow, 0x8500, at: start) == .none)
  }

  @Test(arguments: [
    (DeliveryMode.initialize, UInt8(0), LocalAPIC.Delivery.initialize),
    (.startup, 0x9A, .startup(0x9A)), (.smi, 0, .smi), (.external, 0, .external),
    (.fixed, 0x30, .requested), (.lowestPriority, 0x30, .requested), (.reserved, 0x30, .ignored),
  ])
  func delivery(mode: DeliveryMode, vector: UInt8, outcome: LocalAPIC.Delivery) {
    var apic = makeAPIC()
    let message = InterruptMessage(destination: 0, deliveryMode: mode, vector: vector)
    #expect(apic.deliver(message) == outcome)
    if mode.usesVector { #expect(apic.deliver(message) == .coalesced) }
  }

  @Test func virtualWire() {
    var apic = LocalAPIC(id: 0, isBootstrapProcessor: true)
    #expect(apic.acceptsExternalInterrupts == false)
    apic.writeRegister(APICRegister.svr, 0x1FF, at: start)
    #expect(apic.writeRegister(APICRegister.lvtLINT0, 0x700, at: start) == .linesChanged)
    #expect(apic.acceptsExternalInterrupts == true)
    #expect(apic.setLINT(0, asserted: true) == .external)
    apic.writeRegister(APICRegister.lvtLINT0, 0x10700, at: start)
    #expect(apic.acceptsExternalInterrupts == false)
    #expect(apic.setLINT(0, asserted: true) == .ignored)
    _ = apic.writeBase(APICBase.defaultAddress, physicalAddressWidth: 40)
    #expect(apic.acceptsExternalInterrupts == true)
    #expect(apic.setLINT(1, asserted: true) == .nmi)
    #expect(apic.setLINT(1, asserted: true) == .ignored)
  }

  @Test func levelTriggeredLINT0RepeatsWhileAsserted() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.lvtLINT0, 0x8050, at: start)
    #expect(apic.setLINT(0, asserted: true) == .requested)
    #expect(apic.readRegister(APICRegister.lvtLINT0, at: start) == 0xC050)
    #expect(apic.setLINT(0, asserted: true) == .coalesced)
    #expect(apic.acceptHighest() == 0x50)
    #expect(apic.endOfInterrupt() == 0x50)
    #expect(apic.acceptHighest() == 0x50)
    _ = apic.setLINT(0, asserted: false)
    _ = apic.endOfInterrupt()
    #expect(apic.acceptHighest() == nil)
    #expect(apic.readRegister(APICRegister.lvtLINT0, at: start) == 0x8050)
  }

  @Test func performanceInterruptMasksItself() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.lvtPerformance, 0x400, at: start)
    #expect(apic.raiseLocal(APICRegister.lvtPerformance) == .nmi)
    #expect(apic.raiseLocal(APICRegister.lvtPerformance) == .ignored)
  }

  @Test func registerImageRestores() {
    var apic = makeX2APIC(id: 0x11)
    apic.request(0x91, trigger: .level)
    apic.request(0x61)
    _ = apic.acceptHighest()
    _ = apic.writeMSR(0x838, 1000, at: start)
    _ = apic.writeMSR(0x832, 0x40, at: start)
    let later = Time(nanoseconds: 500)
    let image = apic.registerImage(at: later, wideID: true)
    #expect(image[APICRegister.currentCount / 4] == 750)
    var copy = makeX2APIC(id: 0x11)
    #expect(copy.load(registerImage: image, at: later, wideID: false) == false)
    #expect(copy.load(registerImage: image, at: later, wideID: true) == true)
    #expect(copy.nextDeadline == .nanoseconds(2000))
    #expect(copy.highestServicedVector == 0x91)
    #expect(copy.highestRequestedVector == 0x61)
    #expect(copy.processorPriority == 0x90)
    #expect(copy.endOfInterrupt() == 0x91)
    #expect(apic.registerImage(at: later, wideID: false)[8] == 0x1100_0000)
    var other = makeX2APIC(id: 0x12)
    #expect(other.load(registerImage: image, at: later, wideID: true) == false)
  }
}
