// SPDX-License-Identifier: Apache-2.0
//
// The --balloon option, and the guest's memory figures for --stats.

import Devices
import Host
import SystemPackage

/// A machine's memory balloon.
package struct BalloonConfiguration: Sendable, Hashable {
  package var options = BalloonDevice.Options()

  /// Reads text such as "on" or "target=256M,deflate-on-oom=off".
  ///
  /// - Parameter memory: bytes of the machine.
  package init(_ text: String, memory: Int) throws(RunError) {
    if text == "on" { return }
    for option in text.split(separator: ",", omittingEmptySubsequences: false) {
      let parts = option.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      switch (parts[0], parts.count == 2 ? parts[1] : "") {
      case ("target", let size):
        guard let target = Configuration.bytes(String(size)), target > 0, target <= memory else {
          throw RunError(
            "--balloon \(text): target=\(size) is not a part of the machine's memory; give up to "
              + "\(memory >> 20)M")
        }
        options.size = UInt64(memory &- target)
      case ("deflate-on-oom", "on"): options.deflatesWhenShort = true
      case ("deflate-on-oom", "off"): options.deflatesWhenShort = false
      case ("reporting", "on"): options.reportsFreePages = true
      case ("reporting", "off"): options.reportsFreePages = false
      default:
        throw RunError(
          "--balloon \(text): unknown option \(option); give on, or target=SIZE, "
            + "deflate-on-oom=on|off and reporting=on|off")
      }
    }
  }
}

extension BalloonDevice.Figures {
  /// The guest's figures by tag ("Memory Statistics"); some are bytes.
  private static let names: [(tag: UInt16, name: String, isBytes: Bool)] = [
    (0, "swapped in", true), (1, "swapped out", true), (2, "major faults", false),
    (3, "minor faults", false), (4, "free", true), (5, "total", true), (6, "available", true),
    (7, "caches", true),
  ]

  /// Lines for `--stats`.
  var lines: [String] {
    var lines = [
      "balloon: \(inflated >> 20) MiB inflated, \(discarded >> 20) MiB given back by it and "
        + "\(reported >> 20) MiB by reports of free pages"
    ]
    for row in Self.names {
      guard let value = statistics[row.tag] else { continue }
      lines.append("  guest's \(row.name): " + (row.isBytes ? "\(value >> 20) MiB" : "\(value)"))
    }
    return lines
  }
}

/// Asks the guest for new figures every second, so that --stats shows recent ones.
final class BalloonWatch: Sendable {
  private static let interval: UInt64 = 1_000_000_000
  private let timer: TimerFile
  private let device: BalloonDevice

  init(_ device: BalloonDevice, _ loop: EventLoop) throws(Errno) {
    timer = try TimerFile()
    self.device = device
    _ = try loop.add(timer.descriptor.rawValue) { [weak self] _ in self?.run() }
    run()
  }

  private func run() {
    timer.consume()
    device.askForStatistics()
    try? timer.arm(at: HostClock.monotonic() &+ Self.interval)
  }
}
