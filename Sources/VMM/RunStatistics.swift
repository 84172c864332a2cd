// SPDX-License-Identifier: Apache-2.0
//
// The VMM's statistics for `--stats`: exits to user space, times and memory.

import KVMClient

/// How often a CPU exited to the VMM, by reason. Owned by the CPU's thread.
struct ExitCounts: Sendable {
  private(set) var total: UInt64 = 0
  private var perKind = [UInt64](repeating: 0, count: Self.names.count)

  private static let names = [
    "port I/O", "memory-mapped I/O", "halt", "shutdown", "entry failure", "internal error",
    "interrupted", "interrupt window", "system event", "debug", "unknown",
  ]

  mutating func count(_ exit: Exit) {
    total &+= 1
    perKind[Self.kind(exit)] &+= 1
  }

  mutating func add(_ other: ExitCounts) {
    total &+= other.total
    for index in perKind.indices { perKind[index] &+= other.perKind[index] }
  }

  /// Reasons that occurred, most frequent first.
  var rows: [(name: String, value: UInt64)] {
    zip(Self.names, perKind).map { (name: $0, value: $1) }.filter { $0.value > 0 }
      .sorted { $0.value > $1.value }
  }

  private static func kind(_ exit: Exit) -> Int {
    switch exit {
    case .io: 0
    case .mmio: 1
    case .halt: 2
    case .shutdown: 3
    case .failEntry: 4
    case .internalError: 5
    case .interrupted: 6
    case .interruptWindowOpen: 7
    case .systemEvent: 8
    case .debug: 9
    case .hardware, .unknown: 10
    }
  }
}
