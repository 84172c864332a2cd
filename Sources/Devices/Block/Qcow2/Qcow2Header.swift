// SPDX-License-Identifier: Apache-2.0
//
// The header of a qcow2 image, versions 2 and 3, and its extensions (QEMU's specification of qcow2,
// "Header", "Header extensions"). All numbers in an image are big-endian and untrusted: the limits
// checked here are what the rest of the code relies on.

import Host

/// The decoded header.
struct Qcow2Header: Sendable {
  static let magic: [UInt8] = [0x51, 0x46, 0x49, 0xFB]

  /// Offsets of fields.
  enum Field {
    static let version = 4
    static let backingOffset = 8
    static let backingSize = 16
    static let clusterBits = 20
    static let size = 24
    static let encryption = 32
    static let l1Count = 36
    static let l1Offset = 40
    static let refcountOffset = 48
    static let refcountClusters = 56
    static let snapshotCount = 60
    static let snapshotOffset = 64
    static let incompatible = 72
    static let compatible = 80
    static let autoclear = 88
    static let refcountOrder = 96
    static let headerSize = 100
    static let compression = 104
  }

  /// Size of version 2's header, and minimum of version 3's.
  static let oldSize = 72
  static let newSize = 104

  enum Incompatible {
    static let dirty: UInt64 = 1 << 0
    static let corrupt: UInt64 = 1 << 1
    static let externalData: UInt64 = 1 << 2
    static let compression: UInt64 = 1 << 3
    static let extendedL2: UInt64 = 1 << 4
    static let known = dirty | corrupt | compression | extendedL2
  }

  enum Extension {
    static let end: UInt32 = 0
    static let backingFormat: UInt32 = 0xE279_2ACA
    static let featureNames: UInt32 = 0x6803_F857
  }

  /// How much of a file is read for its header: more than the smallest cluster.
  static let readSize = 64 << 10
  private static let clusterBits: ClosedRange<UInt32> = 9...21
  /// Limits of tables in memory, in bytes.
  static let l1Limit = 32 << 20
  static let refcountTableLimit = 8 << 20
  static let snapshotLimit: UInt32 = 65_536
  private static let nameLimit: UInt32 = 1023

  var version: UInt32
  var clusterBits: UInt64
  /// Bytes of the disk.
  var size: UInt64
  var l1Count: Int
  var l1Offset: UInt64
  var refcountOffset: UInt64
  var refcountClusters: Int
  var snapshotCount: Int
  var snapshotOffset: UInt64
  var incompatible: UInt64 = 0
  var autoclear: UInt64 = 0
  /// log2 of the bits of a reference count.
  var refcountOrder: UInt64 = 4
  var compression = Qcow2Compression.zlib
  var backingFile: String?
  var backingFormat: String?

  /// Decodes the start of a file, which may be shorter than a header.
  init(_ bytes: [UInt8]) throws(ImageError) {
    func number<Value: FixedWidthInteger & BitwiseCopyable>(
      _ type: Value.Type, _ offset: Int
    ) -> Value {
      bytes.load(big: type, at: offset) ?? 0
    }
    guard bytes.count >= Self.newSize, bytes.starts(with: Self.magic) else {
      throw .unusable("not a qcow2 image; give format=raw for a raw one")
    }
    version = number(UInt32.self, Field.version)
    guard version == 2 || version == 3 else {
      throw .unusable("qcow2 version \(version); versions 2 and 3 can be used")
    }
    let bits = number(UInt32.self, Field.clusterBits)
    guard Self.clusterBits.contains(bits) else { throw Self.damaged("cluster size") }
    clusterBits = UInt64(bits)
    size = number(UInt64.self, Field.size)
    l1Count = Int(truncatingIfNeeded: number(UInt32.self, Field.l1Count))
    l1Offset = number(UInt64.self, Field.l1Offset)
    refcountOffset = number(UInt64.self, Field.refcountOffset)
    refcountClusters = Int(truncatingIfNeeded: number(UInt32.self, Field.refcountClusters))
    snapshotCount = Int(truncatingIfNeeded: number(UInt32.self, Field.snapshotCount))
    snapshotOffset = number(UInt64.self, Field.snapshotOffset)
    guard number(UInt32.self, Field.encryption) == 0 else {
      throw .unusable("encrypted; decrypt it with qemu-img convert")
    }
    let headerSize = try readNewFields(bytes)
    try checkSizes()
    try readBacking(bytes, headerSize)
  }

  static func damaged(_ what: String) -> ImageError {
    .unusable("damaged: bad \(what); try qemu-img check")
  }

  /// Decodes the fields of version 3; returns the size of the header.
  private mutating func readNewFields(_ bytes: [UInt8]) throws(ImageError) -> Int {
    if version == 2 { return Self.oldSize }
    incompatible = bytes.load(big: UInt64.self, at: Field.incompatible) ?? 0
    autoclear = bytes.load(big: UInt64.self, at: Field.autoclear) ?? 0
    let order = bytes.load(big: UInt32.self, at: Field.refcountOrder) ?? 0
    guard order <= 6 else { throw Self.damaged("width of reference counts") }
    refcountOrder = UInt64(order)
    let size = bytes.load(big: UInt32.self, at: Field.headerSize) ?? 0
    guard size >= Self.newSize, size <= UInt32(1) << clusterBits, size <= bytes.count else {
      throw Self.damaged("header size")
    }
    let headerSize = Int(truncatingIfNeeded: size)
    let unknown = incompatible & ~Incompatible.known
    if unknown != 0 {
      let bit = UInt8(truncatingIfNeeded: unknown.trailingZeroBitCount)
      let name = featureName(bit, bytes, headerSize)
      throw .unusable("feature missing here: \(name); convert it with qemu-img convert")
    }
    if incompatible & Incompatible.compression != 0 {
      let kind = headerSize > Field.compression ? bytes[Field.compression] : 0
      guard let compression = Qcow2Compression(rawValue: kind) else {
        throw .unusable("unknown compression \(kind); convert it with qemu-img convert")
      }
      self.compression = compression
    }
    if incompatible & Incompatible.extendedL2 != 0, clusterBits < 14 {
      throw Self.damaged("cluster size for extended L2 entries")
    }
    return headerSize
  }

  private func checkSizes() throws(ImageError) {
    guard size > 0 else { throw .isEmpty }
    guard size % BlockSector.size == 0 else { throw .badSize(size) }
    let geometry = Qcow2Geometry(self)
    guard size <= UInt64(1) << 62, l1Count << 3 <= Self.l1Limit,
      geometry.l1Count(forSize: size) <= UInt64(truncatingIfNeeded: l1Count)
    else { throw Self.damaged("L1 table size") }
    let tables = [("L1 table", l1Offset), ("refcount table", refcountOffset)]
    for (name, offset) in tables
    where offset == 0 || !geometry.isAligned(offset) || offset >= Qcow2Geometry.offsetLimit {
      throw Self.damaged("offset of the \(name)")
    }
    guard refcountClusters > 0,
      refcountClusters <= Self.refcountTableLimit >> Int(clusterBits) || refcountClusters == 1
    else { throw Self.damaged("size of the refcount table") }
    guard snapshotCount <= Self.snapshotLimit,
      snapshotCount == 0
        || snapshotOffset != 0 && geometry.isAligned(snapshotOffset)
          && snapshotOffset < Qcow2Geometry.offsetLimit
    else { throw Self.damaged("snapshot table") }
  }

  // MARK: Extensions

  private mutating func readBacking(_ bytes: [UInt8], _ headerSize: Int) throws(ImageError) {
    let offset = bytes.load(big: UInt64.self, at: Field.backingOffset) ?? 0
    let count = bytes.load(big: UInt32.self, at: Field.backingSize) ?? 0
    guard offset != 0 else { return }
    let room = min(UInt64(1) << clusterBits, UInt64(truncatingIfNeeded: bytes.count))
    guard count > 0, count <= Self.nameLimit, offset <= room, UInt64(count) <= room &- offset else {
      throw Self.damaged("name of the backing file")
    }
    let start = Int(truncatingIfNeeded: offset)
    let name = bytes[start...].prefix(Int(truncatingIfNeeded: count))
    guard !name.contains(0), let text = String(validating: name, as: UTF8.self) else {
      throw Self.damaged("name of the backing file")
    }
    backingFile = text
    let format = try extensionData(Extension.backingFormat, bytes, headerSize)
    backingFormat = format.map { String(decoding: $0, as: UTF8.self) }
  }

  /// The data of the first extension of a kind; nil if there is none.
  private func extensionData(
    _ kind: UInt32, _ bytes: [UInt8], _ headerSize: Int
  ) throws(ImageError) -> ArraySlice<UInt8>? {
    let end = min(bytes.count, 1 << Int(truncatingIfNeeded: clusterBits))
    var position = headerSize
    while position <= end &- 8 {
      let found = bytes.load(big: UInt32.self, at: position) ?? 0
      let size = Int(truncatingIfNeeded: bytes.load(big: UInt32.self, at: position &+ 4) ?? 0)
      if found == Extension.end { return nil }
      position &+= 8
      guard size <= end &- position else { throw Self.damaged("header extension") }
      if found == kind { return bytes[position...].prefix(size) }
      position &+= (size &+ 7) & ~7
    }
    return nil
  }

  /// The image's name of a feature ("Feature name table"): 1 byte of kind, 1 of bit, 46 of name.
  private func featureName(_ bit: UInt8, _ bytes: [UInt8], _ headerSize: Int) -> String {
    if Incompatible.externalData == UInt64(1) << UInt64(bit) { return "external data file" }
    let number = "incompatible bit \(bit)"
    guard let found = try? extensionData(Extension.featureNames, bytes, headerSize) else {
      return number
    }
    var rest = found
    while rest.count >= 48 {
      let row = Array(rest.prefix(48))
      rest = rest.dropFirst(48)
      guard row[0] == 0, row[1] == bit else { continue }
      let name = row.dropFirst(2).prefix { $0 >= 0x20 && $0 < 0x7F }
      return name.isEmpty ? number : String(decoding: name, as: UTF8.self)
    }
    return number
  }
}
