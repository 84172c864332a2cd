// SPDX-License-Identifier: Apache-2.0
//
// Names of the virtio specification, version 1.2, with its numbers.

/// Feature bits common to all devices ("Reserved Feature Bits").
package enum VirtioFeature {
  package static let indirectDescriptors: UInt64 = 1 << 28
  package static let eventIndex: UInt64 = 1 << 29
  package static let version1: UInt64 = 1 << 32
}

/// Bits of the device status field.
package enum VirtioStatus {
  package static let acknowledge: UInt8 = 1
  package static let driver: UInt8 = 2
  package static let driverOK: UInt8 = 4
  package static let featuresOK: UInt8 = 8
  package static let needsReset: UInt8 = 64
  package static let failed: UInt8 = 128
}

/// "Device Types".
package enum VirtioDeviceType: UInt16, Sendable {
  case network = 1
  case block = 2
  case console = 3
  case entropy = 4
  case balloon = 5
  case socket = 19

  /// Class, subclass and interface of the PCI function.
  var classCode: UInt32 {
    switch self {
    case .network: 0x020000
    case .block: 0x010000
    case .console: 0x078000
    case .entropy, .balloon, .socket: 0x00FF00
    }
  }
}

/// Offsets of the fields in a split queue's parts ("Split Virtqueues").
package enum SplitQueueLayout {
  package static let descriptorSize: UInt64 = 16
  /// Offsets in both rings: flags, index, entries.
  package static let flags: UInt64 = 0
  package static let index: UInt64 = 2
  package static let entries: UInt64 = 4
  package static let availableEntrySize: UInt64 = 2
  package static let usedEntrySize: UInt64 = 8
  /// Bits of a descriptor's flags.
  package static let next: UInt16 = 1
  package static let write: UInt16 = 2
  package static let indirect: UInt16 = 4
  /// The available ring's flag that suppresses interrupts.
  package static let noInterrupt: UInt16 = 1
}
