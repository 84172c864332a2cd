// SPDX-License-Identifier: Apache-2.0
//
// How a guest's accesses find their device. A bus is a list of address ranges that do not overlap,
// each with a device; a machine has one for I/O ports and one for physical memory. Devices may come
// and go while vCPUs run: an access that has found its device is carried out, later ones find what
// is there then. What no device answers reads as all ones, and writes to it are lost, as on the
// real bus.
//
//     let ports = Bus()
//     ports.attach(SerialPort(...), at: 0x3F8, size: 8)
//     let status = ports.read(0x3FD, width: 1)

import Synchronization

/// A device that a guest can access. It knows neither its address nor its bus: offsets count from
/// where it was attached. Any vCPU may call it at any time.
package protocol BusDevice: Sendable {
  /// Reads `width` (1, 2, 4 or 8) bytes at an offset; bits above the width are ignored.
  func read(offset: UInt64, width: Int) -> UInt64
  /// Writes `width` bytes at an offset; bits of the value above the width are 0.
  func write(offset: UInt64, width: Int, value: UInt64)
  /// The machine is reset: the device is what it was when the machine was switched on.
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

  /// Puts a device on the bus.
  ///
  /// - Returns: false when the range is empty or overlaps another: then nothing changes.
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

  /// Takes the device that starts at an address off the bus.
  package func detach(at start: UInt64) {
    ranges.withLock { $0.removeAll { $0.start == start } }
  }

  /// The range that holds an address.
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

  /// Reads from whatever device is there; all ones where there is none.
  package func read(_ address: UInt64, width: Int) -> UInt64 {
    let mask = Self.mask(width)
    guard let range = find(address) else { return mask }
    return range.device.read(offset: address - range.start, width: width) & mask
  }

  /// Writes to whatever device is there.
  package func write(_ address: UInt64, width: Int, value: UInt64) {
    guard let range = find(address) else { return }
    range.device.write(
      offset: address - range.start, width: width, value: value & Self.mask(width))
  }

  private static func mask(_ width: Int) -> UInt64 {
    width >= 8 ? .max : (1 << UInt64(width * 8)) - 1
  }
}

/// A wire from a device to an interrupt chip: called with the level it is to have.
package typealias InterruptLine = @Sendable (_ level: Bool) -> Void
