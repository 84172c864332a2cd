// SPDX-License-Identifier: Apache-2.0
//
// The two access mechanisms of configuration space: the ports 0xCF8 and 0xCFC (PCI Local Bus
// Specification, "Configuration Mechanism #1"), and memory with 4 KiB for each function (PCI
// Express Base Specification, "PCI Express Enhanced Configuration Access Mechanism").

import Synchronization

/// A function's address.
package struct PCIAddress: Sendable, Hashable {
  package let bus: Int
  /// 0 to 31.
  package let slot: Int
  /// 0 to 7.
  package let function: Int

  /// Bus, slot and function, in adjacent bits from the lowest on, as in both mechanisms.
  package init(_ bits: UInt64) {
    bus = Int(bits >> 8 & 0xFF)
    slot = Int(bits >> 3 & 0x1F)
    function = Int(bits & 7)
  }
}

/// The address port. It only takes 32-bit accesses; port 0xCF9 within it is another device's.
package final class PCIAddressPort: BusDevice {
  package static let port: UInt64 = 0xCF8
  private static let enable: UInt32 = 1 << 31
  private static let writable: UInt32 = 0x80FF_FFFC

  private let value = Mutex<UInt32>(0)

  package init() {}

  package func resetWithMachine() { value.withLock { $0 = 0 } }

  package func read(offset: UInt64, width: Int) -> UInt64 {
    offset == 0 && width == 4 ? value.withLock { UInt64($0) } : .max
  }

  package func write(offset: UInt64, width: Int, value new: UInt64) {
    guard offset == 0, width == 4 else { return }
    value.withLock { $0 = UInt32(truncatingIfNeeded: new) & Self.writable }
  }

  /// The function and register that the data port accesses; nil while disabled.
  fileprivate var target: (PCIAddress, Int)? {
    let value = value.withLock { $0 }
    guard value & Self.enable != 0 else { return nil }
    return (PCIAddress(UInt64(value >> 8 & 0xFFFF)), Int(value & 0xFC))
  }
}

/// The data port.
package final class PCIDataPort: BusDevice {
  package static let port: UInt64 = 0xCFC
  package static let size: UInt64 = 4

  private let root: PCIRoot
  private let address: PCIAddressPort

  package init(_ root: PCIRoot, _ address: PCIAddressPort) {
    self.root = root
    self.address = address
  }

  package func read(offset: UInt64, width: Int) -> UInt64 {
    guard let (function, register) = target(offset, width) else { return .max }
    return UInt64(root.read(function, register, width: width))
  }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    guard let (function, register) = target(offset, width) else { return }
    root.write(function, register, width: width, value: UInt32(truncatingIfNeeded: value))
  }

  private func target(_ offset: UInt64, _ width: Int) -> (PCIAddress, Int)? {
    guard offset < Self.size, width <= 4 &- Int(truncatingIfNeeded: offset),
      let (function, register) = address.target
    else { return nil }
    return (function, register &+ Int(truncatingIfNeeded: offset))
  }
}

/// Configuration space as memory.
package final class PCIConfigurationMemory: BusDevice {
  /// Size of one bus.
  package static let size: UInt64 = 1 << 20

  private let root: PCIRoot

  package init(_ root: PCIRoot) { self.root = root }

  package func read(offset: UInt64, width: Int) -> UInt64 {
    guard isAligned(offset, width) else { return .max }
    let (function, register) = Self.target(offset)
    if width < 8 { return UInt64(root.read(function, register, width: width)) }
    let low = root.read(function, register, width: 4)
    return UInt64(low) | UInt64(root.read(function, register &+ 4, width: 4)) << 32
  }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    guard isAligned(offset, width) else { return }
    let (function, register) = Self.target(offset)
    root.write(function, register, width: min(width, 4), value: UInt32(truncatingIfNeeded: value))
    if width == 8 {
      root.write(
        function, register &+ 4, width: 4, value: UInt32(truncatingIfNeeded: value >> 32))
    }
  }

  private func isAligned(_ offset: UInt64, _ width: Int) -> Bool {
    [1, 2, 4, 8].contains(width) && offset & UInt64(truncatingIfNeeded: width &- 1) == 0
  }

  private static func target(_ offset: UInt64) -> (PCIAddress, Int) {
    (PCIAddress(offset >> 12 & 0xFFFF), Int(truncatingIfNeeded: offset & 0xFFF))
  }
}
