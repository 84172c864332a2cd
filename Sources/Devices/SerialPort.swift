// SPDX-License-Identifier: Apache-2.0
//
// The 16550A as a device on the bus; `UART16550` is the chip itself.

import Synchronization

/// A 16550A on a bus: sent bytes go to `output`, received ones come through `receive`.
package final class SerialPort: BusDevice {
  private struct State {
    var chip = UART16550()
    /// Received bytes that do not fit into the chip's FIFO yet.
    var backlog: [UInt8] = []
    var backlogStart = 0
    var level = false

    mutating func refill() {
      while backlogStart < backlog.count, chip.canReceive {
        chip.receive(backlog[backlogStart])
        backlogStart += 1
      }
      if backlogStart == backlog.count {
        backlog.removeAll(keepingCapacity: true)
        backlogStart = 0
      }
    }
  }

  private let state = Mutex(State())
  private let interrupt: InterruptLine
  private let output: @Sendable (UInt8) -> Void

  /// - Parameters:
  ///   - interrupt: the port's interrupt line.
  ///   - output: takes each byte that the guest sends; called with the port's lock held, so it
  ///     must not call the port.
  package init(
    interrupt: @escaping InterruptLine, output: @escaping @Sendable (UInt8) -> Void
  ) {
    self.interrupt = interrupt
    self.output = output
  }

  package func read(offset: UInt64, width: Int) -> UInt64 {
    state.withLock { state in
      let value = state.chip.read(offset)
      state.refill()
      updateInterrupt(&state)
      return UInt64(value)
    }
  }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    state.withLock { state in
      if let sent = state.chip.write(offset, UInt8(truncatingIfNeeded: value)) { output(sent) }
      state.refill()
      updateInterrupt(&state)
    }
  }

  /// Unread received bytes stay for the next guest.
  package func resetWithMachine() {
    state.withLock { state in
      state.chip = UART16550()
      state.refill()
      updateInterrupt(&state)
    }
  }

  /// Receives bytes from the terminal.
  package func receive(_ bytes: some Collection<UInt8>) {
    state.withLock { state in
      state.backlog.append(contentsOf: bytes)
      state.refill()
      updateInterrupt(&state)
    }
  }

  /// Bytes that the guest has not read; callers of `receive` slow down when they pile up.
  package var pendingInput: Int { state.withLock { $0.backlog.count - $0.backlogStart } }

  /// The chip's state.
  package var chip: UART16550 { state.withLock { $0.chip } }

  private func updateInterrupt(_ state: inout State) {
    let level = state.chip.interruptLevel
    if level != state.level {
      state.level = level
      interrupt(level)
    }
  }
}
