// SPDX-License-Identifier: Apache-2.0
//
// Small devices that ask something of the machine (i8042, ACPI's fixed hardware, reset, debug
// exit): each guest access against what is then asked for.

import Devices
import Synchronization
import Testing

/// What devices asked of the machine.
final class Log: Sendable {
  private let storage = Mutex<[Int]>([])
  func add(_ value: Int) { storage.withLock { $0.append(value) } }
  var values: [Int] { storage.withLock { $0 } }
}

@Suite struct KeyboardControllerTests {
  @Test func resetIsAskedFor() {
    let log = Log()
    let controller = KeyboardController { log.add(1) }
    controller.write(offset: 4, width: 1, value: 0xFE)
    #expect(log.values == [1])
    controller.write(offset: 4, width: 1, value: 0xD1)
    controller.write(offset: 0, width: 1, value: 0x03)
    #expect(log.values == [1])
    controller.write(offset: 4, width: 1, value: 0xD1)
    controller.write(offset: 0, width: 1, value: 0x02)
    #expect(log.values == [1, 1])
  }

  @Test func whereNobodyIsResetsWorkStill() {
    let log = Log()
    let controller = KeyboardController(isPresent: false) { log.add(1) }
    controller.write(offset: 4, width: 1, value: 0xAA)
    #expect(controller.read(offset: 4, width: 1) == 0xFF)
    controller.write(offset: 4, width: 1, value: 0xFE)
    #expect(log.values == [1])
  }

  @Test func noKeyboardIsFound() {
    let controller = KeyboardController {}
    #expect(controller.read(offset: 4, width: 1) & 3 == 0)
    controller.write(offset: 4, width: 1, value: 0xAA)
    #expect(controller.read(offset: 4, width: 1) & 1 == 1)
    #expect(controller.read(offset: 0, width: 1) == 0x55)
    #expect(controller.read(offset: 4, width: 1) & 1 == 0)
    controller.write(offset: 4, width: 1, value: 0xAB)
    #expect(controller.read(offset: 0, width: 1) == 0xFF)
    controller.write(offset: 4, width: 1, value: 0x60)
    controller.write(offset: 0, width: 1, value: 0x47)
    controller.write(offset: 4, width: 1, value: 0x20)
    #expect(controller.read(offset: 0, width: 1) == 0x47)
  }
}

@Suite struct PowerManagementTests {
  @Test func powerOffNeedsTypeAndEnable() {
    let log = Log()
    let device = PowerManagement(interrupt: { _ in }, now: { 0 }, powerOff: { log.add(1) })
    device.write(offset: 4, width: 2, value: 5 << 10)
    device.write(offset: 4, width: 2, value: 1 << 13)
    #expect(log.values == [])
    #expect(device.read(offset: 4, width: 2) & 1 == 1)
    device.write(offset: 4, width: 2, value: 5 << 10 | 1 << 13)
    #expect(log.values == [1])
    let other = PowerManagement(
      interrupt: { _ in }, now: { 0 }, sleepTypes: [0], powerOff: { log.add(2) })
    other.write(offset: 4, width: 2, value: 1 << 13)
    #expect(log.values == [1, 2])
  }

  @Test func linesOfTheDebugPortAreReported() {
    let lines = Mutex<[String]>([])
    let port = DebugPort { line in lines.withLock { $0.append(line) } }
    for byte in "one\r\ntwo\nthree".utf8 { port.write(offset: 0, width: 1, value: UInt64(byte)) }
    #expect(lines.withLock { $0 } == ["one", "two"] && port.read(offset: 0, width: 1) == 0xE9)
  }

  @Test func theTimerCountsAndWraps() {
    let time = Mutex<UInt64>(0)
    let device = PowerManagement(
      interrupt: { _ in }, now: { time.withLock { $0 } }, powerOff: {})
    #expect(device.read(offset: 8, width: 4) == 0)
    time.withLock { $0 = 1_000_000_000 }
    #expect(device.read(offset: 8, width: 4) == 3_579_545)
    time.withLock { $0 = 1_200 * 1_000_000_000 }
    #expect(device.read(offset: 8, width: 4) == (1_200 * 3_579_545) & 0xFFFF_FFFF)
    time.withLock { $0 = .max }
    _ = device.read(offset: 8, width: 4)
    _ = device.read(offset: 11, width: 4)
  }

  @Test func thePowerButtonInterruptsUntilItIsCleared() {
    let log = Log()
    let device = PowerManagement(
      interrupt: { log.add($0 ? 1 : 0) }, now: { 0 }, powerOff: {})
    device.pressPowerButton()
    #expect(log.values == [])
    device.write(offset: 2, width: 2, value: 1 << 8)
    #expect(log.values == [1])
    #expect(device.read(offset: 0, width: 4) & 0xFFFF_FFFF == 0x0100_0100)
    device.write(offset: 0, width: 2, value: 1 << 8)
    #expect(log.values == [1, 0])
  }
}

@Suite struct SmallDeviceTests {
  @Test func theResetRegisterResets() {
    let log = Log()
    let register = ResetRegister { log.add(1) }
    register.write(offset: 0, width: 1, value: 2)
    #expect(log.values == [] && register.read(offset: 0, width: 1) == 2)
    register.write(offset: 0, width: 1, value: 6)
    #expect(log.values == [1])
  }

  @Test(arguments: [(0, 1), (16, 33), (0x7F, 255), (0xFF, 255)])
  func debugExitShiftsTheStatus(value: UInt64, status: Int) {
    let log = Log()
    DebugExit { log.add(Int($0)) }.write(offset: 0, width: 4, value: value)
    #expect(log.values == [status])
  }
}
