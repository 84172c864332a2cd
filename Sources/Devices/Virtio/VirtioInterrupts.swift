// SPDX-License-Identifier: Apache-2.0
//
// A virtio PCI device's notifications to the driver: MSI-X messages, else the interrupt pin and the
// ISR status (virtio 1.2, "Virtio Over PCI Bus"). Also reports that a device needs a reset, since
// an interrupt announces that.

import Synchronization

/// A device's connections to the machine.
package struct DeviceWires: Sendable {
  package let message: @Sendable (InterruptMessage) -> Void
  package let line: InterruptLine
  /// Reports a line to the user.
  package let report: @Sendable (String) -> Void

  package init(
    message: @escaping @Sendable (InterruptMessage) -> Void, line: @escaping InterruptLine,
    report: @escaping @Sendable (String) -> Void = { _ in }
  ) {
    self.message = message
    self.line = line
    self.report = report
  }
}

package final class VirtioInterrupts: Sendable {
  static let noVector: UInt16 = 0xFFFF
  /// Bits of the ISR status.
  private enum Cause {
    static let queue: UInt8 = 1
    static let configuration: UInt8 = 2
  }

  private struct State {
    var table: MSIXTable
    var configurationVector = VirtioInterrupts.noVector
    var queueVectors: [UInt16]
    var status: UInt8 = 0
    var pinIsDisabled = false
    var level = false
    var isActive = false
    var isBroken = false
    var hasReported = false
    var generation: UInt8 = 0
  }

  private let wires: DeviceWires
  private let state: Mutex<State>

  init(queues: Int, _ wires: DeviceWires) {
    self.wires = wires
    state = Mutex(
      State(
        // One vector for each queue, one for configuration changes.
        table: MSIXTable(count: queues &+ 1),
        queueVectors: [UInt16](repeating: Self.noVector, count: queues)))
  }

  // MARK: The device's side

  /// The device has used buffers of a queue.
  func raise(queue: Int) {
    state.withLock { state in
      raise(state.queueVectors[queue], Cause.queue, &state)
    }
  }

  /// The device's configuration has changed.
  package func configurationChanged() {
    state.withLock { state in
      state.generation &+= 1
      if state.isActive { raise(state.configurationVector, Cause.configuration, &state) }
    }
  }

  /// The device needs a reset. Reported to the user once.
  func fail(_ reason: String) {
    let isFirst = state.withLock { state in
      state.isBroken = true
      if state.isActive { raise(state.configurationVector, Cause.configuration, &state) }
      defer { state.hasReported = true }
      return !state.hasReported
    }
    if isFirst { wires.report("needs a reset after an error of the guest's driver: \(reason)") }
  }

  private func raise(_ vector: UInt16, _ cause: UInt8, _ state: inout State) {
    if state.table.isEnabled {
      if let message = state.table.raise(Int(vector)) { wires.message(message) }
    } else {
      state.status |= cause
      updateLine(&state)
    }
  }

  private func updateLine(_ state: inout State) {
    let level = state.status != 0 && !state.pinIsDisabled && !state.table.isEnabled
    if level != state.level {
      state.level = level
      wires.line(level)
    }
  }

  // MARK: The transport's side

  var isBroken: Bool { state.withLock { $0.isBroken } }
  var generation: UInt8 { state.withLock { $0.generation } }
  var hasInterruptPending: Bool { state.withLock { $0.status != 0 } }
  var vectorCount: Int { state.withLock { $0.table.count } }

  /// The driver is ready: from now on the device reports when it needs a reset.
  func activate() {
    state.withLock { state in
      state.isActive = true
      if state.isBroken { raise(state.configurationVector, Cause.configuration, &state) }
    }
  }

  /// Reset of the device; the function's table is kept.
  func reset() {
    state.withLock { state in
      state.configurationVector = Self.noVector
      for queue in state.queueVectors.indices { state.queueVectors[queue] = Self.noVector }
      state.status = 0
      (state.isActive, state.isBroken) = (false, false)
      updateLine(&state)
    }
  }

  /// Reset of the machine, which also resets the function's table.
  func resetWithMachine() {
    state.withLock { state in
      state.table = MSIXTable(count: state.table.count)
      state.pinIsDisabled = false
      updateLine(&state)
    }
  }

  /// Reads the ISR status, which clears it and lowers the pin.
  func takeStatus() -> UInt8 {
    state.withLock { state in
      defer {
        state.status = 0
        updateLine(&state)
      }
      return state.status
    }
  }

  /// The function's interrupt disable and MSI-X control bits.
  func setControl(_ control: UInt16, pinIsDisabled: Bool) {
    state.withLock { state in
      state.table.control = control
      state.pinIsDisabled = pinIsDisabled
      release(&state)
      updateLine(&state)
    }
  }

  private func release(_ state: inout State) {
    for message in state.table.takeReleased() { wires.message(message) }
  }

  func readTable(_ offset: UInt64) -> UInt32 { state.withLock { $0.table.read(offset) } }
  func readPending(_ offset: UInt64) -> UInt32 { state.withLock { $0.table.pendingBits(offset) } }
  func writeTable(_ offset: UInt64, _ value: UInt32) {
    state.withLock { state in
      state.table.write(offset, value)
      release(&state)
    }
  }

  /// The vector of a queue, or of configuration changes (nil).
  func vector(_ queue: Int?) -> UInt16 {
    state.withLock { state in
      queue.map { state.queueVectors[$0] } ?? state.configurationVector
    }
  }

  /// A vector that the table lacks becomes none, which tells the driver so.
  func setVector(_ queue: Int?, _ vector: UInt16) {
    state.withLock { state in
      let vector = Int(vector) < state.table.count ? vector : Self.noVector
      if let queue {
        state.queueVectors[queue] = vector
      } else {
        state.configurationVector = vector
      }
    }
  }
}
