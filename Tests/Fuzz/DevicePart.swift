// SPDX-License-Identifier: Apache-2.0
//
// Devices at ports, driven by the fuzzer's bytes: no access at no time may trap.

import Devices
import LinuxBoot
import Synchronization

/// Bytes become accesses of ports, and steps of time.
enum DevicePart {
  private final class Time: Sendable {
    let now = Atomic<UInt64>(1_800_000_000_000_000_000)
  }

  private struct Board {
    let time = Time()
    let clock: RealTimeClockDevice
    let power: PowerManagement
    let serial: SerialPort
    let ports = Bus()
    /// All ports, and one that no device has.
    var addresses: [UInt64] = [0x80]

    init() {
      let time = time
      clock = RealTimeClockDevice(
        interrupt: { _ in }, now: { time.now.load(ordering: .relaxed) })
      power = PowerManagement(
        interrupt: { _ in }, now: { time.now.load(ordering: .relaxed) }, powerOff: {})
      serial = SerialPort(interrupt: { _ in }, output: { _ in })
      attach(KeyboardController {}, GuestMap.Port.keyboardController, 5)
      attach(clock, GuestMap.Port.realTimeClock, 2)
      attach(DebugExit { _ in }, GuestMap.Port.debugExit, 1)
      attach(serial, GuestMap.Port.serial, 8)
      attach(power, GuestMap.Port.powerManagement, PowerManagement.size)
      attach(ResetRegister {}, GuestMap.Port.reset, 1)
    }

    private mutating func attach(_ device: any BusDevice, _ start: UInt64, _ size: UInt64) {
      check(ports.attach(device, at: start, size: size), "the map of ports overlaps")
      addresses += start..<start + size
    }
  }

  static func run(_ input: UnsafeRawBufferPointer) {
    let board = Board()
    var reader = Reader(input)
    while !reader.isAtEnd {
      let kind = reader.byte()
      let address = board.addresses[Int(reader.byte()) % board.addresses.count]
      let width = 1 << Int(kind >> 3 & 3)
      switch kind & 7 {
      case 0...2: board.ports.write(address, width: width, value: reader.number())
      case 3, 4: _ = board.ports.read(address, width: width)
      case 5: step(board.time, &reader)
      case 6: _ = board.clock.runEvents()
      default: pressAndType(board, &reader)
      }
    }
  }

  private static func pressAndType(_ board: Board, _ reader: inout Reader) {
    board.power.pressPowerButton()
    guard board.serial.pendingInput < 256 else { return }
    board.serial.receive((0..<Int(reader.byte() & 31)).map { _ in reader.byte() })
  }

  private static func step(_ time: Time, _ reader: inout Reader) {
    let number = reader.number()
    let now = time.now.load(ordering: .relaxed)
    time.now.store(reader.byte() & 1 == 0 ? now &+ number : number, ordering: .relaxed)
  }
}
