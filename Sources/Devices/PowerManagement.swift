// SPDX-License-Identifier: Apache-2.0
//
// ACPI's fixed hardware (ACPI specification, "Power Management Registers"): the PM1 event and
// control registers, the PM timer, and the reset register. All are in one block of ports:
//
//     offset 0  PM1 status, 16 bits, written ones clear    offset 2  PM1 enable, 16 bits
//     offset 4  PM1 control, 16 bits                       offset 8  PM timer, 32 bits, read-only
//
// The machine is always in ACPI mode (the SCI enable bit reads as 1), so there is no SMI command.

import Synchronization

/// ACPI's PM1 registers and timer on a bus.
package final class PowerManagement: BusDevice {
  /// Offsets in the block.
  package enum Register {
    package static let status: UInt64 = 0
    package static let enable: UInt64 = 2
    package static let control: UInt64 = 4
    package static let timer: UInt64 = 8
  }
  /// Bytes of the block.
  package static let size: UInt64 = 12
  /// Ticks per second of the PM timer.
  package static let timerFrequency: UInt64 = 3_579_545
  /// The sleep type in the control register that powers the machine off.
  package static let powerOffSleepType: UInt16 = 5
  /// That of QEMU's chipsets, which UEFI uses without ACPI's tables.
  package static let firmwareSleepType: UInt16 = 0

  private static let sciEnable: UInt16 = 1
  private static let sleepEnable: UInt16 = 1 << 13
  private static let powerButton: UInt16 = 1 << 8
  private static let globalLock: UInt16 = 1 << 5

  package struct State: Sendable, Hashable {
    var status: UInt16 = 0
    var enable: UInt16 = 0
    var control: UInt16 = PowerManagement.sciEnable
    var level = false
  }

  private let state = Mutex(State())
  private let interrupt: InterruptLine
  private let powerOff: @Sendable () -> Void
  private let now: @Sendable () -> UInt64
  private let sleepTypes: [UInt16]

  /// - Parameters:
  ///   - interrupt: the SCI's line.
  ///   - now: nanoseconds on a monotonic clock.
  ///   - sleepTypes: those that power the machine off.
  ///   - powerOff: called when the guest powers the machine off.
  package init(
    interrupt: @escaping InterruptLine, now: @escaping @Sendable () -> UInt64,
    sleepTypes: [UInt16] = [powerOffSleepType], powerOff: @escaping @Sendable () -> Void
  ) {
    self.sleepTypes = sleepTypes
    self.interrupt = interrupt
    self.now = now
    self.powerOff = powerOff
  }

  /// The timer's value: it wraps at 32 bits.
  private var timer: UInt64 {
    let ticks = now().multipliedFullWidth(by: Self.timerFrequency)
    // The quotient overflows only after 163 years; then the low bits still count.
    let seconds = UInt64(1_000_000_000)
    return seconds.dividingFullWidth((ticks.high % seconds, ticks.low)).quotient & 0xFFFF_FFFF
  }

  package func read(offset: UInt64, width: Int) -> UInt64 {
    if offset >= Register.timer { return timer >> ((offset &- Register.timer) &* 8) }
    let registers = state.withLock { state in
      UInt64(state.status) | UInt64(state.enable) << 16 | UInt64(state.control) << 32
    }
    return registers >> (offset &* 8)
  }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    for byte in 0..<UInt64(width) {
      writeByte(offset &+ byte, UInt8(truncatingIfNeeded: value >> (byte * 8)))
    }
  }

  private func writeByte(_ offset: UInt64, _ value: UInt8) {
    let shift = UInt16(offset & 1) * 8
    let bits = UInt16(value) << shift
    let keep = ~(UInt16(0xFF) << shift)
    let sleeps = state.withLock { state -> Bool in
      defer { updateInterrupt(&state) }
      switch offset & ~1 {
      case Register.status: state.status &= ~bits
      case Register.enable: state.enable = state.enable & keep | bits
      case Register.control:
        state.control = (state.control & keep | bits) & ~Self.sleepEnable | Self.sciEnable
        return bits & Self.sleepEnable != 0
          && sleepTypes.contains(state.control >> 10 & 7)
      default: break
      }
      return false
    }
    if sleeps { powerOff() }
  }

  package func resetWithMachine() {
    state.withLock { state in
      let level = state.level
      state = State()
      state.level = level
      updateInterrupt(&state)
    }
  }

  /// Presses the power button.
  ///
  /// - Returns: whether the guest has enabled the event.
  @discardableResult
  package func pressPowerButton() -> Bool {
    state.withLock { state in
      state.status |= Self.powerButton
      updateInterrupt(&state)
      return state.enable & Self.powerButton != 0
    }
  }

  private func updateInterrupt(_ state: inout State) {
    let level = state.status & state.enable & (Self.powerButton | Self.globalLock) != 0
    if level != state.level {
      state.level = level
      interrupt(level)
    }
  }
}
