// SPDX-License-Identifier: Apache-2.0
//
// Dispatch of guest accesses to devices. A bus is a list of disjoint address ranges, each with a
// device; a machine has one for I/O ports and one for physical memory. Devices may be attached and
// detached while vCPUs run: accesses in progress complete, later ones see the new state. Addresses
// without a device read as all ones and ignore writes, as on the real bus.
//
//     let ports = Bus()
//     ports.attach(SerialPort(...), at: 0x3F8, size: 8)
//     let status = ports.read(0x3FD, width: 1)

import Synchronization

/// A device that a guest can access. It knows neither its address nor its bus: offsets are relative
/// to where it was attached. Any vCPU may call it at any time.
package protocol BusDevice: Sendable {
  /// Reads `width` (1, 2, 4 or 8) bytes at an offset; bits above the width are ignored.
  func read(offset: UInt64, width: Int) -> UInt64
  /// Writes `width` bytes at an offset; bits of the value above the width are 0.
  func write(offset: UInt64, width: Int, value: UInt64)
  /// Resets the machine: restores the device's power-on state.
  func resetWithMachine()
}

extension BusDevice {
  package func resetWithMachine() {}
}

/// Addresses and the devices behind them.
package final class Bus: Sendable {
  private struct Range {
    let start: UInt64
    let end: UInt64
    let device: any BusDevice
  }
  /// In ascending order, not overlapping. The lock is held for a search, never for an access.
  private let ranges = Mutex<[Range]>([])

  package init() {}

  /// Attaches a device.
  ///
  /// - Returns: false if the range is empty or overlaps another: then nothing changes.
  @discardableResult
  package func attach(_ device: any BusDevice, at start: UInt64, size: UInt64) -> Bool {
    let (end, overflow) = start.addingReportingOverflow(size)
    guard size > 0, !overflow else { return false }
    return ranges.withLock { ranges in
      let position = ranges.firstIndex { $0.start >= start } ?? ranges.count
      if position > 0, ranges[position - 1].end > start { return false }
      if position < ranges.count, ranges[position].start < end { return false }
      ranges.insert(Range(start: start, end: end, device: device), at: position)
      return true
    }
  }

  /// Detaches the device that starts at an address.
  package func detach(at start: UInt64) {
    ranges.withLock { $0.removeAll { $0.start == start } }
  }

  /// The range that contains an address.
  private func find(_ address: UInt64) -> Range? {
    ranges.withLock { ranges in
      var low = 0
      var high = ranges.count
      while low < high {
        let middle = (low + high) / 2
        if ranges[middle].end <= address { low = middle + 1 } else { high = middle }
      }
      guard low < ranges.count, ranges[low].start <= address else { return nil }
      return ranges[low]
    }
  }

  /// Reads from the device at an address; all ones if there is none.
  package func read(_ address: UInt64, width: Int) -> UInt64 {
    let mask = Self.mask(width)
    guard let range = find(address) else { return mask }
    return range.device.read(offset: address - range.start, width: width) & mask
  }

  /// Writes to the device at an address.
  package func write(_ address: UInt64, width: Int, value: UInt64) {
    guard let range = find(address) else { return }
    range.device.write(
      offset: address - range.start, width: width, value: value & Self.mask(width))
  }

  private static func mask(_ width: Int) -> UInt64 {
    width >= 8 ? .max : (1 << UInt64(width * 8)) - 1
  }
}

/// A wire from a device to an interrupt chip: called with the new level.
package typealias InterruptLine = @Sendable (_ level: Bool) -> Void
