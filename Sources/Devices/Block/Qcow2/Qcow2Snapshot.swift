// SPDX-License-Identifier: Apache-2.0
//
// The table of internal snapshots (QEMU's specification of qcow2, "Snapshots"): each has an L1
// table of its own, whose clusters it shares with the disk until the disk writes to them.

import Host
import SystemPackage

struct Qcow2Snapshot: Sendable {
  let l1Offset: UInt64
  let l1Count: Int
  let identifier: String
  let name: String
  /// The disk's size at the time, if the image has it.
  let size: UInt64?
  /// Size of the entry.
  let byteCount: Int

  private enum Field {
    static let l1Offset = 0
    static let l1Count = 8
    static let identifierSize = 12
    static let nameSize = 14
    static let extraSize = 36
    static let diskSize = 48
  }
  private static let fixedSize = 40
  private static let extraLimit: UInt32 = 1024
  /// Limit of the whole table in bytes.
  private static let tableLimit = 16 << 20

  /// Reads the table.
  static func all(_ file: DiskFile, _ header: Qcow2Header) throws -> [Qcow2Snapshot] {
    guard header.snapshotCount > 0 else { return [] }
    let behind = file.size > header.snapshotOffset ? file.size &- header.snapshotOffset : 0
    let bytes = try file.bytes(
      at: header.snapshotOffset, count: Int(truncatingIfNeeded: min(behind, UInt64(tableLimit))))
    var snapshots: [Qcow2Snapshot] = []
    var position = 0
    for _ in 0..<header.snapshotCount {
      guard let snapshot = Qcow2Snapshot(bytes, position) else {
        throw Qcow2Header.damaged("snapshot table")
      }
      snapshots.append(snapshot)
      position &+= snapshot.byteCount
    }
    return snapshots
  }

  private init?(_ bytes: [UInt8], _ start: Int) {
    guard let offset = bytes.load(big: UInt64.self, at: start &+ Field.l1Offset),
      let count = bytes.load(big: UInt32.self, at: start &+ Field.l1Count),
      let identifierSize = bytes.load(big: UInt16.self, at: start &+ Field.identifierSize),
      let nameSize = bytes.load(big: UInt16.self, at: start &+ Field.nameSize),
      let extraSize = bytes.load(big: UInt32.self, at: start &+ Field.extraSize),
      extraSize <= Self.extraLimit
    else { return nil }
    let texts = start &+ Self.fixedSize &+ Int(truncatingIfNeeded: extraSize)
    let (first, second) = (Int(identifierSize), Int(nameSize))
    guard texts &+ first &+ second <= bytes.count else { return nil }
    l1Offset = offset
    l1Count = Int(truncatingIfNeeded: count)
    identifier = String(decoding: bytes[texts...].prefix(first), as: UTF8.self)
    name = String(decoding: bytes[texts...].dropFirst(first).prefix(second), as: UTF8.self)
    size = extraSize >= 16 ? bytes.load(big: UInt64.self, at: start &+ Field.diskSize) : nil
    byteCount = (texts &+ first &+ second &- start &+ 7) & ~7
  }

  /// Size of a table in bytes.
  static func bytes(_ snapshots: [Qcow2Snapshot]) -> UInt64 {
    snapshots.reduce(0) { $0 &+ UInt64(truncatingIfNeeded: $1.byteCount) }
  }

  /// By identifier, then by name.
  static func find(_ text: String, _ snapshots: [Qcow2Snapshot]) -> Qcow2Snapshot? {
    snapshots.first { $0.identifier == text } ?? snapshots.first { $0.name == text }
  }

  /// Checks that its L1 table is valid for the disk.
  func check(_ geometry: Qcow2Geometry, _ size: UInt64) throws(ImageError) {
    guard size > 0, size % BlockSector.size == 0, size <= UInt64(1) << 62, isUsable(geometry),
      geometry.l1Count(forSize: size) <= UInt64(truncatingIfNeeded: l1Count)
    else { throw Qcow2Header.damaged("snapshot \(name)") }
  }

  func isUsable(_ geometry: Qcow2Geometry) -> Bool {
    l1Count << 3 <= Qcow2Header.l1Limit && geometry.isAligned(l1Offset)
      && l1Offset < Qcow2Geometry.offsetLimit
  }
}
