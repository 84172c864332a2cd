// SPDX-License-Identifier: Apache-2.0
//
// Pauses the machine while the host's disk is full: its CPUs stop, and its writes are retried from
// time to time.

import Devices
import Glibc
import Host
import Logging
import Synchronization
import SystemPackage

/// Counts the disks that want the CPUs stopped. Disk threads count; the main thread stops the CPUs.
final class MachineHold: Sendable {
  private let event: EventFile
  private let holders = Mutex(0)
  private let hints = Atomic<UInt64>(0)

  init() throws(Errno) { event = try EventFile() }

  /// Readable when `isHeld` may have changed.
  var descriptor: Int32 { event.descriptor.rawValue }
  func consume() { event.consume() }

  var isHeld: Bool { holders.withLock { $0 > 0 } }

  func begin() {
    holders.withLock { $0 &+= 1 }
    event.signal()
  }

  func end() {
    holders.withLock { $0 &-= 1 }
    event.signal()
  }

  /// There may be room now: disks retry at once.
  func hint() { hints.add(1, ordering: .releasing) }
  var hintCount: UInt64 { hints.load(ordering: .acquiring) }
}

/// Stops the machine while a disk has no room, and tells the user.
final class DiskRoomWatch: RoomWatch {
  private let name: String
  private let disk: DiskConfiguration
  private let hold: MachineHold
  private let waiting = Mutex(0)

  init(_ name: String, _ disk: DiskConfiguration, _ hold: MachineHold) {
    (self.name, self.disk, self.hold) = (name, disk, hold)
  }

  var hints: UInt64 { hold.hintCount }

  func beginWaiting(_ error: Errno) {
    // Under the lock, so that lines come in order.
    waiting.withLock { waiting in
      waiting &+= 1
      guard waiting == 1 else { return }
      hold.begin()
      log.warning(
        "\(name): \(Self.problem(error, disk.written)); the guest is paused until then (kill -CONT \(getpid()) tries again at once)"
      )
    }
  }

  func endWaiting(isDone: Bool) {
    waiting.withLock { waiting in
      waiting &-= 1
      guard waiting == 0 else { return }
      if isDone { log.warning("\(name): written; the guest goes on") }
      hold.end()
    }
  }

  private static func problem(_ error: Errno, _ file: String) -> String {
    switch error {
    case .diskQuotaExceeded: "no quota left for \(file): free some"
    case .fileTooLarge:
      "\(file) is as large as the limit of this process: raise it (prlimit --pid \(getpid()) --fsize=...)"
    default: "no space left for \(file): free some"
    }
  }
}
