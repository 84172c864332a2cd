// SPDX-License-Identifier: Apache-2.0
//
// The local APIC's timer in its three modes, against ticks and deadlines that are counted by
// hand.

import InterruptChips
import Testing
import X86

@Suite struct LocalAPICTimerTests {
  func at(_ nanoseconds: UInt64) -> Time { Time(nanoseconds: nanoseconds) }

  /// DCR, nanoseconds of a count with a bus cycle of 1 ns.
  @Test(
    arguments: [
      (0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16), (0b1000, 32), (0b1001, 64),
      (0b1010, 128), (0b1011, 1),
    ] as [(UInt32, UInt64)])
  func divider(configuration: UInt32, tick: UInt64) {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.divideConfiguration, configuration, at: start)
    #expect(apic.writeRegister(APICRegister.initialCount, 100, at: at(50)) == .timerChanged)
    #expect(apic.nextDeadline == .nanoseconds(50 + 100 * tick))
    #expect(apic.readRegister(APICRegister.currentCount, at: at(50)) == 100)
    #expect(apic.readRegister(APICRegister.currentCount, at: at(50 + 40 * tick)) == 60)
    #expect(apic.readRegister(APICRegister.currentCount, at: at(50 + 100 * tick)) == 0)
  }

  @Test func oneShotFiresOnce() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.lvtTimer, 0xEC, at: start)
    apic.writeRegister(APICRegister.initialCount, 500, at: start)
    #expect(apic.expireTimer(at: at(999)) == .ignored)
    #expect(apic.expireTimer(at: at(1000)) == .requested)
    #expect(apic.acceptHighest() == 0xEC)
    #expect(apic.nextDeadline == nil)
    #expect(apic.expireTimer(at: at(5000)) == .ignored)
  }

  @Test func periodicRepeatsAndCatchesUp() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.lvtTimer, 0x2_0030, at: start)
    apic.writeRegister(APICRegister.initialCount, 500, at: start)
    #expect(apic.expireTimer(at: at(1000)) == .requested)
    #expect(apic.nextDeadline == .nanoseconds(2000))
    #expect(apic.readRegister(APICRegister.currentCount, at: at(1000)) == 500)
    // Late by three periods: one interrupt, and the phase stays.
    #expect(apic.readRegister(APICRegister.currentCount, at: at(4100)) == 450)
    #expect(apic.expireTimer(at: at(4100)) == .coalesced)
    #expect(apic.nextDeadline == .nanoseconds(5000))
    apic.writeRegister(APICRegister.initialCount, 0, at: at(4200))
    #expect(apic.nextDeadline == nil)
  }

  @Test func maskedTimerRunsInSilence() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.initialCount, 500, at: start)
    #expect(apic.expireTimer(at: at(1000)) == .ignored)
    apic.writeRegister(APICRegister.lvtTimer, 0x30, at: at(1001))
    #expect(apic.expireTimer(at: at(1002)) == .ignored)
    #expect(apic.highestRequestedVector == nil)
  }

  @Test func newDividerKeepsTheCount() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.divideConfiguration, 0xB, at: start)
    apic.writeRegister(APICRegister.initialCount, 1000, at: start)
    apic.writeRegister(APICRegister.divideConfiguration, 0, at: at(400))
    #expect(apic.readRegister(APICRegister.currentCount, at: at(400)) == 600)
    #expect(apic.nextDeadline == .nanoseconds(1600))
  }

  @Test func tscDeadline() {
    var apic = makeAPIC()
    #expect(apic.writeTSCDeadline(100) == .none)
    #expect(apic.readTSCDeadline() == 0)
    apic.writeRegister(APICRegister.lvtTimer, 0x4_00EC, at: start)
    #expect(apic.timerMode == .tscDeadline)
    #expect(apic.writeTSCDeadline(5000) == .timerChanged)
    #expect(apic.readTSCDeadline() == 5000)
    #expect(apic.nextDeadline == .tsc(5000))
    #expect(apic.writeRegister(APICRegister.initialCount, 77, at: start) == .none)
    #expect(apic.readRegister(APICRegister.initialCount, at: start) == 0)
    #expect(apic.expireTimer(at: Time(nanoseconds: 9999, tsc: 4999)) == .ignored)
    #expect(apic.expireTimer(at: Time(nanoseconds: 0, tsc: 5000)) == .requested)
    #expect(apic.readTSCDeadline() == 0)
    #expect(apic.nextDeadline == nil)
    apic.writeTSCDeadline(6000)
    apic.writeTSCDeadline(0)
    #expect(apic.nextDeadline == nil)
  }

  @Test func changingToOrFromDeadlineDisarms() {
    var apic = makeAPIC()
    apic.writeRegister(APICRegister.initialCount, 77, at: start)
    apic.writeRegister(APICRegister.lvtTimer, 0x4_00EC, at: start)
    #expect(apic.nextDeadline == nil)
    apic.writeTSCDeadline(1)
    apic.writeRegister(APICRegister.lvtTimer, 0xEC, at: start)
    #expect(apic.nextDeadline == nil)
    #expect(apic.readTSCDeadline() == 0)
  }

  @Test func withoutDeadlineFeatureTheBitIsReserved() {
    var apic = makeAPIC(features: [])
    apic.writeRegister(APICRegister.lvtTimer, 0x4_00EC, at: start)
    #expect(apic.readRegister(APICRegister.lvtTimer, at: start) == 0xEC)
  }

  /// The interrupt of a count that an image shows as run out may not have been told to anyone: it
  /// comes at once where the image is loaded. A timer that nobody started stays stopped, a periodic
  /// one starts a period.
  @Test func restoredAfterItRanOut() {
    func restored(_ entry: UInt32, initial: UInt32) -> LocalAPIC {
      var old = makeAPIC()
      old.writeRegister(APICRegister.divideConfiguration, 0xB, at: start)
      old.writeRegister(APICRegister.lvtTimer, entry, at: start)
      old.writeRegister(APICRegister.initialCount, initial, at: start)
      var image = old.registerImage(at: at(UInt64(initial)), wideID: false)
      image[APICRegister.currentCount >> 2] = 0
      var apic = makeAPIC()
      let isLoaded = apic.load(registerImage: image, at: at(7000), wideID: false)
      #expect(isLoaded)
      return apic
    }
    var oneShot = restored(0xEC, initial: 500)
    #expect(oneShot.nextDeadline == .nanoseconds(7000))
    #expect(oneShot.expireTimer(at: at(7000)) == .requested)
    #expect(oneShot.acceptHighest() == 0xEC)
    #expect(oneShot.nextDeadline == nil)
    let stopped = restored(0xEC, initial: 0)
    #expect(stopped.nextDeadline == nil)
    let periodic = restored(0x2_00EC, initial: 500)
    #expect(periodic.nextDeadline == .nanoseconds(7500))
  }

  @Test func busCycleScales() {
    var apic = makeAPIC()
    apic.busCycleNanoseconds = 40
    apic.writeRegister(APICRegister.divideConfiguration, 0xB, at: start)
    apic.writeRegister(APICRegister.initialCount, 0xFFFF_FFFF, at: start)
    #expect(apic.nextDeadline == .nanoseconds(0xFFFF_FFFF * 40))
    #expect(apic.readRegister(APICRegister.currentCount, at: start) == 0xFFFF_FFFF)
  }
}
