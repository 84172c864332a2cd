// SPDX-License-Identifier: Apache-2.0
//
// The real-time clock as a device on the bus; `RealTimeClock` is the chip itself.

import Synchronization

/// The real-time clock on a bus: index port at offset 0, data port at offset 1.
package final class RealTimeClockDevice: BusDevice {
  private struct State {
    var chip: RealTimeClock
    var level = false
  }

  private let state: Mutex<State>
  private let interrupt: InterruptLine
  private let now: @Sendable () -> UInt64
  private let eventChanged: @Sendable () -> Void

  /// - Parameters:
  ///   - now: the host's time, nanoseconds since 1970 UTC.
  ///   - eventChanged: called when `nextEvent` may have changed; must not call the clock.
  ///   - memory: bytes below and above 4 GiB.
  package init(
    memory: (low: UInt64, high: UInt64) = (0, 0), interrupt: @escaping InterruptLine,
    now: @escaping @Sendable () -> UInt64, eventChanged: @escaping @Sendable () -> Void = {}
  ) {
    var chip = RealTimeClock(now: now())
    chip.setMemorySize(below4GiB: memory.low, above4GiB: memory.high)
    state = Mutex(State(chip: chip))
    self.interrupt = interrupt
    self.now = now
    self.eventChanged = eventChanged
  }

  package func read(offset: UInt64, width: Int) -> UInt64 {
    state.withLock { state in
      guard offset == 1 else { return 0xFF }
      let value = state.chip.readData(now: now())
      updateInterrupt(&state)
      return UInt64(value)
    }
  }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    let value = UInt8(truncatingIfNeeded: value)
    state.withLock { state in
      guard offset == 1 else {
        // Bit 7 masks NMIs on a PC; there are none here.
        state.chip.index = value & 0x7F
        return
      }
      state.chip.writeData(value, now: now())
      updateInterrupt(&state)
      if state.chip.index == RealTimeClock.Register.b { eventChanged() }
    }
  }

  /// The battery preserves time and memory.
  package func resetWithMachine() {
    state.withLock { state in
      state.chip.reset()
      updateInterrupt(&state)
    }
    eventChanged()
  }

  /// Raises due interrupts.
  ///
  /// - Returns: the host's time of the next call; nil if none is needed.
  package func runEvents() -> UInt64? {
    state.withLock { state in
      let time = now()
      state.chip.advance(now: time)
      updateInterrupt(&state)
      return state.chip.nextEvent(now: time)
    }
  }

  private func updateInterrupt(_ state: inout State) {
    let level = state.chip.interruptLevel
    if level != state.level {
      state.level = level
      interrupt(level)
    }
  }
}
