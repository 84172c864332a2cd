// SPDX-License-Identifier: Apache-2.0

/// What a program does to a disk and a test expects of it, by a seed. The first bytes of each
/// sector that a write makes say which write it was.
package struct DiskOperations: Sequence, IteratorProtocol {
  package enum Kind: Sendable { case write, zero, flush }

  package struct Operation: Sendable {
    package let number: Int
    package let kind: Kind
    package let sectors: Range<Int>
  }

  package static let sectorSize = 512

  private var random: SplitMix
  private var number = 0
  private let sectors: Int

  package init(seed: UInt64, sectors: Int) {
    random = SplitMix(seed: seed)
    self.sectors = sectors
  }

  package mutating func next() -> Operation? {
    number += 1
    let start = random.below(sectors)
    let count = 1 + random.below(random.oneIn(4) ? 256 : 16)
    let range = start..<Swift.min(start + count, sectors)
    let kind: Kind =
      switch random.below(16) {
      case 0: .flush
      case 1, 2: .zero
      default: .write
      }
    return Operation(number: number, kind: kind, sectors: range)
  }

  /// The contents of sectors after a write.
  package static func bytes(_ operation: Operation) -> [UInt8] {
    operation.sectors.flatMap { sector in
      let words = [UInt64(operation.number), UInt64(sector)]
      let start = words.flatMap { word in
        (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) }
      }
      let byte = UInt8(truncatingIfNeeded: operation.number)
      return start + [UInt8](repeating: byte, count: sectorSize - start.count)
    }
  }
}
