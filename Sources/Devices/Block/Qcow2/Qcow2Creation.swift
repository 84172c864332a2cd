// SPDX-License-Identifier: Apache-2.0
//
// Creation of qcow2 images, for temporary overlays.

import Host
import SystemPackage

extension Qcow2Image {
  /// log2 of new images' cluster size.
  private static let newClusterBits: UInt64 = 16

  /// An empty image of version 3 over a layer, in an unnamed file that is deleted with the image.
  static func temporary(
    over layer: any BlockImage & ImageLayer, folder: String,
    report: @escaping @Sendable (String) -> Void
  ) throws(ImageError) -> Qcow2Image {
    let file = try DiskFile(temporaryIn: folder)
    do throws(Errno) {
      try create(in: file, size: layer.size)
    } catch {
      throw .unusable("no room for a temporary overlay in \(folder): \(error); set TMPDIR")
    }
    let header = try Qcow2Header(try start(of: file))
    return try Qcow2Image(file, header, backing: layer, isTemporary: true, report: report)
  }

  /// Reads the start of a file, for its header.
  static func start(of file: DiskFile) throws(ImageError) -> [UInt8] {
    do throws(Errno) {
      return try file.bytes(at: 0, count: Qcow2Header.readSize)
    } catch {
      throw .cannotOpen(error)
    }
  }

  /// Writes the header, an L1 table, and reference counts for these.
  private static func create(in file: DiskFile, size: UInt64) throws(Errno) {
    let bits = newClusterBits
    let cluster = UInt64(1) << bits
    let entries = (size >> (bits &+ bits &- 3)) &+ 1
    let l1Clusters = (entries &* 8 &+ cluster &- 1) >> bits
    guard l1Clusters << bits <= UInt64(Qcow2Header.l1Limit) else { throw .fileTooLarge }
    // The header, the refcount table, its block, the L1 table.
    let used = 3 &+ l1Clusters
    typealias Field = Qcow2Header.Field
    var header = [UInt8](repeating: 0, count: Qcow2Header.newSize)
    for (index, byte) in Qcow2Header.magic.enumerated() { header[index] = byte }
    header.store(big: UInt32(3), at: Field.version)
    header.store(big: UInt32(truncatingIfNeeded: bits), at: Field.clusterBits)
    header.store(big: size, at: Field.size)
    header.store(big: UInt32(truncatingIfNeeded: entries), at: Field.l1Count)
    header.store(big: 3 &* cluster, at: Field.l1Offset)
    header.store(big: cluster, at: Field.refcountOffset)
    header.store(big: UInt32(1), at: Field.refcountClusters)
    header.store(big: UInt32(4), at: Field.refcountOrder)
    header.store(big: UInt32(truncatingIfNeeded: Qcow2Header.newSize), at: Field.headerSize)
    try file.write(header, at: 0)
    var entry: [UInt8] = []
    entry.append(big: 2 &* cluster)
    try file.write(entry, at: cluster)
    var counts: [UInt8] = []
    for _ in 0..<used { counts.append(big: UInt16(1)) }
    try file.write(counts, at: 2 &* cluster)
    let end = [UInt8](repeating: 0, count: 8)
    try file.write(end, at: (used << bits) &- 8)
  }
}
