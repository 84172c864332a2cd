// SPDX-License-Identifier: Apache-2.0
//
// Devices of one register, such as the reset control register.

import Synchronization

/// The reset control register of PC chipsets: a write with bit 2 set resets.
package final class ResetRegister: BusDevice {
  /// The value that ACPI tells the guest to write: a full reset.
  package static let resetValue: UInt8 = 0x06

  private static let resetBit: UInt8 = 1 << 2
  private let value = Mutex<UInt8>(0)
  private let reset: @Sendable () -> Void

  package init(reset: @escaping @Sendable () -> Void) { self.reset = reset }

  package func read(offset: UInt64, width: Int) -> UInt64 { value.withLock { UInt64($0) } }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    let new = UInt8(truncatingIfNeeded: value)
    self.value.withLock { $0 = new & ~Self.resetBit }
    if new & Self.resetBit != 0 { reset() }
  }
}

/// The port by which a test guest ends its machine with an exit status.
package final class DebugExit: BusDevice {
  private let exit: @Sendable (UInt8) -> Void

  /// - Parameter exit: called with the status: the written value, shifted left by one, plus one,
  ///   of which the host keeps 8 bits.
  package init(exit: @escaping @Sendable (UInt8) -> Void) { self.exit = exit }

  package func read(offset: UInt64, width: Int) -> UInt64 { 0 }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    exit(UInt8(truncatingIfNeeded: value << 1 | 1))
  }
}

/// The debug port of firmware that was built for it (QEMU's debug console).
package final class DebugPort: BusDevice {
  /// The port's value, which says that it exists.
  private static let presence: UInt64 = 0xE9
  private static let lineLimit = 4096

  private let line = Mutex<[UInt8]>([])
  private let report: @Sendable (String) -> Void

  /// - Parameter report: called with each line.
  package init(report: @escaping @Sendable (String) -> Void) { self.report = report }

  package func read(offset: UInt64, width: Int) -> UInt64 { Self.presence }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    let byte = UInt8(truncatingIfNeeded: value)
    let whole: [UInt8]? = line.withLock { line in
      if byte != UInt8(ascii: "\n"), line.count < Self.lineLimit {
        if byte != UInt8(ascii: "\r") { line.append(byte) }
        return nil
      }
      defer { line = [] }
      return line
    }
    if let whole { report(String(decoding: whole, as: UTF8.self)) }
  }
}
