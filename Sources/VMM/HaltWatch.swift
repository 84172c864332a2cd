// SPDX-License-Identifier: Apache-2.0
//
// Detects a guest that has halted for good.

import Host

/// Detects that nothing can ever happen in the guest again. If no CPU has exited for a while, each
/// CPU's thread inspects its state; while one can continue, the next inspection is later.
struct HaltWatch {
  private static let shortest: Int32 = 500
  private static let longest: Int32 = 16_000

  private let processors: [VirtualProcessor]
  /// Milliseconds between inspections.
  private(set) var interval = Self.shortest
  private var exits: UInt64 = .max
  private var next = HostClock.monotonic()
  private var inspected = false

  init(_ processors: [VirtualProcessor]) { self.processors = processors }

  /// Inspects when due; true when all CPUs have halted for good.
  mutating func check() -> Bool {
    let now = HostClock.monotonic()
    guard now >= next else { return false }
    next = now + UInt64(interval) * 1_000_000
    let exits = processors.reduce(UInt64(0)) { $0 &+ $1.exitsSoFar }
    defer { self.exits = exits }
    guard exits == self.exits else {
      (inspected, interval) = (false, Self.shortest)
      return false
    }
    if inspected {
      if processors.allSatisfy(\.isHaltedForEver) { return true }
      interval = min(interval * 2, Self.longest)
    }
    inspected = true
    for processor in processors { processor.inspect() }
    return false
  }
}
