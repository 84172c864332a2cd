// SPDX-License-Identifier: Apache-2.0
//
// The i8042 without keyboard and mouse, and the PC's reset line behind it.

import Synchronization

/// The i8042 without keyboard and mouse: software can see that nothing is attached, and reset the
/// PC. The data port is at offset 0, the command port at offset 4.
package final class KeyboardController: BusDevice {
  /// Commands written to the command port.
  package enum Command {
    package static let readConfiguration: UInt8 = 0x20
    package static let writeConfiguration: UInt8 = 0x60
    package static let testSecondPort: UInt8 = 0xA9
    package static let selfTest: UInt8 = 0xAA
    package static let testFirstPort: UInt8 = 0xAB
    package static let readOutputPort: UInt8 = 0xD0
    package static let writeOutputPort: UInt8 = 0xD1
    package static let reset: UInt8 = 0xFE
  }

  package struct State: Sendable, Hashable {
    /// The next value of the data port.
    var output: UInt8?
    /// The command that waits for its parameter at the data port.
    var pending: UInt8?
    var configuration: UInt8 = 0x30
  }

  private static let outputFull: UInt8 = 1
  private static let systemFlag: UInt8 = 4
  private static let unlocked: UInt8 = 0x10
  private static let selfTestPassed: UInt8 = 0x55
  private static let portTestFailed: UInt8 = 0xFF
  /// Address line 20 open, reset line high.
  private static let outputPort: UInt8 = 0x03

  private let state = Mutex(State())
  private let reset: @Sendable () -> Void
  private let isPresent: Bool

  /// - Parameters:
  ///   - isPresent: if false its ports read as absent, so that firmware does not wait seconds for a
  ///     keyboard; the reset works in any case.
  ///   - reset: called when the guest requests a reset of the machine.
  package init(isPresent: Bool = true, reset: @escaping @Sendable () -> Void) {
    self.isPresent = isPresent
    self.reset = reset
  }

  package func resetWithMachine() { state.withLock { $0 = State() } }

  package func read(offset: UInt64, width: Int) -> UInt64 {
    guard isPresent else { return 0xFF }
    return state.withLock { state in
      if offset == 4 {
        return UInt64(
          Self.systemFlag | Self.unlocked | (state.output == nil ? 0 : Self.outputFull))
      }
      guard offset == 0 else { return 0xFF }
      defer { state.output = nil }
      return UInt64(state.output ?? 0)
    }
  }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    let value = UInt8(truncatingIfNeeded: value)
    let asksForReset = state.withLock { state in
      switch offset {
      case 0: Self.data(value, &state)
      case 4: Self.command(value, &state)
      default: false
      }
    }
    if asksForReset { reset() }
  }

  /// Executes a command; true if it resets the machine.
  private static func command(_ value: UInt8, _ state: inout State) -> Bool {
    state.pending = nil
    switch value {
    case Command.readConfiguration: state.output = state.configuration
    case Command.selfTest: state.output = selfTestPassed
    case Command.testFirstPort, Command.testSecondPort: state.output = portTestFailed
    case Command.readOutputPort: state.output = outputPort
    case Command.writeConfiguration, Command.writeOutputPort: state.pending = value
    case Command.reset: return true
    default: break
    }
    return false
  }

  /// Takes a parameter; other bytes are for the absent keyboard. Bit 0 of the output port is the
  /// processor's reset line, active low.
  private static func data(_ value: UInt8, _ state: inout State) -> Bool {
    defer { state.pending = nil }
    switch state.pending {
    case Command.writeConfiguration: state.configuration = value
    case Command.writeOutputPort: return value & 1 == 0
    default: break
    }
    return false
  }
}
