// SPDX-License-Identifier: Apache-2.0
//
// Writes to a disk image until it is killed, and says after each flush which operation it was: a
// test looks at what is left.
//
// usage: martlet-image-writer FILE SEED

import Devices
import Glibc
import GuestMemory
import Host
import TestRandom

let arguments = CommandLine.arguments
guard arguments.count == 3, let seed = UInt64(arguments[2]),
  let image = try? DiskImage.open(path: arguments[1], ImageOptions()),
  let memory = try? GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
else {
  writeText(STDERR_FILENO, "usage: martlet-image-writer FILE SEED\n")
  exit(64)
}
let sectors = Int(image.size) / DiskOperations.sectorSize
for operation in DiskOperations(seed: seed, sectors: sectors) {
  let offset = UInt64(operation.sectors.lowerBound * DiskOperations.sectorSize)
  let count = operation.sectors.count * DiskOperations.sectorSize
  do {
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
  } catch {
    writeText(STDERR_FILENO, "operation \(operation.number): \(error)\n")
    exit(1)
  }
}
