// SPDX-License-Identifier: Apache-2.0
//
// The local APIC's reset values and priorities against the SDM. What it keeps beside its
// register page must agree with the page under random traffic.

import InterruptChips
import TestRandom
import Testing
import X86

typealias Time = LocalAPIC.Time

let start = Time(nanoseconds: 0, tsc: 0)

/// A software-enabled local APIC.
func makeAPIC(id: UInt32 = 0, features: LocalAPIC.Features = [.x2APIC, .tscDeadline]) -> LocalAPIC {
  var apic = LocalAPIC(id: id, isBootstrapProcessor: id == 0, features: features)
  apic.writeRegister(APICRegister.svr, 0x1FF, at: start)
  return apic
}

func makeX2APIC(
  id: UInt32 = 0, features: LocalAPIC.Features = [.x2APIC, .tscDeadline]
) -> LocalAPIC {
  var apic = makeAPIC(id: id, features: features)
  _ = apic.writeBase(apic.base | APICBase.extd.rawValue, physicalAddressWidth: 40)
  return apic
}

@Suite struct LocalAPICResetTests {
  @Test(
    arguments: [
      (APICRegister.id, 0x0300_0000), (APICRegister.version, 0x0005_0014), (APICRegister.tpr, 0),
      (APICRegister.ppr, 0), (APICRegister.ldr, 0), (APICRegister.dfr, 0xFFFF_FFFF),
      (APICRegister.svr, 0xFF), (APICRegister.isr, 0), (APICRegister.irr, 0), (APICRegister.esr, 0),
      (APICRegister.icrLow, 0), (APICRegister.icrHigh, 0), (APICRegister.lvtTimer, 0x10000),
      (APICRegister.lvtThermal, 0x10000), (APICRegister.lvtPerformance, 0x10000),
      (APICRegister.lvtLINT0, 0x10000), (APICRegister.lvtLINT1, 0x10000),
      (APICRegister.lvtError, 0x10000), (APICRegister.initialCount, 0),
      (APICRegister.currentCount, 0), (APICRegister.divideConfiguration, 0),
    ] as [(Int, UInt32)])
  func resetValue(offset: Int, value: UInt32) {
    var apic = LocalAPIC(id: 3, isBootstrapProcessor: false)
    #expect(apic.readRegister(offset, at: start) == value)
  }

  @Test func baseTellsTheBootstrapProcessor() {
    #expect(LocalAPIC(id: 0, isBootstrapProcessor: true).base == 0xFEE0_0900)
    #expect(LocalAPIC(id: 1, isBootstrapProcessor: false).base == 0xFEE0_0800)
  }

  @Test func initKeepsIdentifierAndBase() {
    var apic = makeAPIC(id: 1)
    apic.writeRegister(APICRegister.id, 0x0700_0000, at: start)
    apic.request(0x40)
    apic.initialize()
    #expect(apic.id == 7)
    #expect(apic.isRequested(0x40) == false)
    #expect(apic.readRegister(APICRegister.svr, at: start) == 0xFF)
    #expect(apic.mode == .xAPIC)
    var wide = makeX2APIC(id: 0x123)
    wide.initialize()
    #expect(wide.mode == .x2APIC)
    #expect(wide.readMSR(0x80D, at: start) == 0x0012_0008)
    wide.reset()
    #expect(wide.mode == .xAPIC)
    #expect(wide.readRegister(APICRegister.id, at: start) == 0x2300_0000)
  }
}

@Suite struct LocalAPICPriorityTests {
  @Test func highestVectorGoesFirstAndNests() {
    var apic = makeAPIC()
    for vector: UInt8 in [0x31, 0x85, 0x84, 0xF0, 0x20] { #expect(apic.request(vector) == true) }
    #expect(apic.acceptHighest() == 0xF0)
    #expect(apic.processorPriority == 0xF0)
    #expect(apic.acceptHighest() == nil)
    #expect(apic.endOfInterrupt() == nil)
    #expect(apic.acceptHighest() == 0x85)
    // 0x84 is of the same class: it waits.
    #expect(apic.hasDeliverableInterrupt == false)
    apic.request(0x91)
    #expect(apic.acceptHighest() == 0x91)
    _ = apic.endOfInterrupt()
    #expect(apic.processorPriority == 0x80)
    _ = apic.endOfInterrupt()
    #expect(apic.acceptHighest() == 0x84)
    #expect(apic.highestServicedVector == 0x84)
    _ = apic.endOfInterrupt()
    #expect(apic.acceptHighest() == 0x31)
    _ = apic.endOfInterrupt()
    #expect(apic.acceptHighest() == 0x20)
    _ = apic.endOfInterrupt()
    #expect(apic.highestRequestedVector == nil)
  }

  /// TPR, vector in service, PPR (SDM, "Processor-Priority Register").
  @Test(
    arguments: [
      (0x00, 0x00, 0x00), (0x35, 0x00, 0x35), (0x35, 0x42, 0x40), (0x4F, 0x42, 0x4F),
      (0x35, 0x31, 0x35), (0xFF, 0xF1, 0xFF),
    ] as [(UInt8, UInt8, UInt8)])
  func processorPriority(task: UInt8, service: UInt8, expected: UInt8) {
    var apic = makeAPIC()
    if service != 0 {
      apic.request(service)
      #expect(apic.acceptHighest() == service)
    }
    apic.setTaskPriority(task)
    #expect(apic.processorPriority == expected)
  }

  @Test func everyVectorIsBlockedByItsClassAndNoLower() {
    for vector in UInt8(16)...255 {
      var apic = makeAPIC()
      apic.request(vector)
      apic.cr8 = vector >> 4
      #expect(apic.highestPendingVector == nil)
      apic.cr8 = (vector >> 4) - 1
      #expect(apic.highestPendingVector == vector)
    }
  }

  @Test func cr8IsTheUpperHalfOfTPR() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.tpr, 0xFFFF_FF5A, at: start)
    #expect(apic.readRegister(APICRegister.tpr, at: start) == 0x5A)
    #expect(apic.cr8 == 5)
    apic.cr8 = 9
    #expect(apic.taskPriority == 0x90)
  }

  @Test func cachesAgreeWithThePageUnderRandomTraffic() {
    var apic = makeAPIC()
    var generator = SplitMix(seed: 0xA91C)
    var requested: Set<UInt8> = []
    var serviced: [UInt8] = []
    for _ in 0..<20_000 {
      switch UInt8.random(in: 0..<4, using: &generator) {
      case 0, 1:
        let vector = UInt8.random(in: 16...255, using: &generator)
        #expect(apic.request(vector) == requested.insert(vector).inserted)
      case 2:
        let best = requested.max() ?? 0
        let expected = best >> 4 > (serviced.last ?? 0) >> 4 ? best : nil
        #expect(apic.acceptHighest() == expected)
        if let expected {
          requested.remove(expected)
          serviced.append(expected)
        }
      default:
        _ = apic.endOfInterrupt()
        _ = serviced.popLast()
      }
      #expect(apic.highestRequestedVector == requested.max())
      #expect(apic.highestServicedVector == serviced.last)
    }
  }

  @Test func levelTriggeredEOIIsBroadcast() {
    var apic = makeAPIC()
    apic.request(0x51, trigger: .level)
    apic.request(0x41, trigger: .edge)
    _ = apic.acceptHighest()
    #expect(apic.writeRegister(APICRegister.eoi, 0, at: start) == .endOfInterrupt(0x51))
    _ = apic.acceptHighest()
    #expect(apic.writeRegister(APICRegister.eoi, 0, at: start) == .edgeEnded(0x41))
    // Nothing in service.
    #expect(apic.writeRegister(APICRegister.eoi, 0, at: start) == .none)
  }

  @Test(arguments: [true, false])
  func suppressionOnlyWhereAdvertised(isAdvertised: Bool) {
    var apic = makeAPIC(features: isAdvertised ? [.eoiBroadcastSuppression] : [])
    apic.writeRegister(APICRegister.svr, 0x11FF, at: start)
    #expect(apic.readRegister(APICRegister.svr, at: start) == (isAdvertised ? 0x11FF : 0x1FF))
    #expect(
      apic.readRegister(APICRegister.version, at: start) == (isAdvertised ? 0x0105_0014 : 0x50014))
    apic.request(0x51, trigger: .level)
    _ = apic.acceptHighest()
    #expect(apic.endOfInterrupt() == (isAdvertised ? nil : 0x51))
  }

  @Test func aVectorRequestedWhileInServiceWaits() {
    var apic = makeAPIC()
    apic.request(0x60)
    _ = apic.acceptHighest()
    #expect(apic.request(0x60) == true)
    #expect(apic.request(0x60) == false)
    #expect(apic.isInService(0x60) && apic.isRequested(0x60))
    #expect(apic.acceptHighest() == nil)
    _ = apic.endOfInterrupt()
    #expect(apic.acceptHighest() == 0x60)
  }
}
