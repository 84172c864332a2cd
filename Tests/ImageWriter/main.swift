// SPDX-License-Identifier: Apache-2.0
//
// Writes to a disk image until it is killed, and says after each flush which operation it was: a
// test looks at what is left.
//
// usage: martlet-image-writer FILE SEED [COUNT]
//
// With COUNT it ends by itself after as many operations, and has a limit for the size of files that
// it raises by a little each time that there is no room; then it does what has failed once more.

import Devices
import Glibc
import GuestMemory
import Host
import SystemPackage
import TestRandom

let arguments = CommandLine.arguments
guard arguments.count == 3 || arguments.count == 4, let seed = UInt64(arguments[2]),
  let image = try? DiskImage.open(path: arguments[1], ImageOptions()),
  let memory = try? GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
else {
  writeText(STDERR_FILENO, "usage: martlet-image-writer FILE SEED [COUNT]\n")
  exit(64)
}
let limit = arguments.count == 4 ? Int(arguments[3]) ?? 0 : Int.max
let sectors = Int(image.size) / DiskOperations.sectorSize

func perform(_ operation: DiskOperations.Operation) throws {
  let offset = UInt64(operation.sectors.lowerBound * DiskOperations.sectorSize)
  let count = operation.sectors.count * DiskOperations.sectorSize
  switch operation.kind {
  case .flush:
    try image.flush()
    writeText(STDOUT_FILENO, "\(operation.number)\n")
  case .zero: try image.writeZeroes(at: offset, count: UInt64(count), mayDiscard: true)
  case .write:
    var buffers = GuestBuffers(memory)
    guard memory.write(DiskOperations.bytes(operation), at: 0),
      buffers.append(0, count: UInt32(count))
    else { exit(1) }
    try image.write(at: offset, from: buffers)
  }
}

/// A limit for the size of files, which goes up each time that it is in the way.
struct Room {
  private var size = rlim_t(16 << 10)
  private(set) var failures = 0

  init() { set() }

  private func set() {
    var limits = rlimit()
    getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limits)
    limits.rlim_cur = min(size, limits.rlim_max)
    setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limits)
  }

  /// Does something until there is room for it.
  mutating func insist(_ body: () throws -> Void) throws {
    while true {
      do {
        return try body()
      } catch let error as Errno where error.isLackOfRoom {
        failures += 1
        size += rlim_t(1 + failures % 7) * 700
        set()
      }
    }
  }
}

signal(SIGXFSZ, SIG_IGN)
var room = limit == Int.max ? nil : Room()
for operation in DiskOperations(seed: seed, sectors: sectors) {
  do {
    if operation.number > limit {
      try room?.insist { try image.finish() }
      writeText(STDERR_FILENO, "failures: \(room?.failures ?? 0)\n")
      exit(0)
    }
    if room != nil {
      try room?.insist { try perform(operation) }
    } else {
      try perform(operation)
    }
  } catch {
    writeText(STDERR_FILENO, "operation \(operation.number): \(error)\n")
    exit(1)
  }
}
