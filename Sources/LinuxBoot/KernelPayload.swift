// SPDX-License-Identifier: Apache-2.0
//
// The kernel proper of a bzImage, decompressed by the loader: a 64-bit ELF file, followed by a
// relocation table for running the kernel at other virtual addresses than those it was linked for.
// Linux's own decompressor does the same (see "KASLR" in its documentation).
//
// The table, backwards from the end of the payload: addresses of 32-bit values to increase by the
// virtual offset, ended by 0; in kernels before 6.15 addresses of 32-bit values to decrease, ended
// by 0; addresses of 64-bit values to increase, ended by 0 at the end of the ELF file. Addresses
// are the low 32 bits of virtual ones.
//
//     if let kernel = KernelPayload(file: bytes, setup: header) {
//       kernel.load(into: memory, at: address, virtualOffset: offset)
//     }

import GuestMemory
import Host

/// A decompressed kernel. All accesses stay inside its bounds, whatever its file contains.
struct KernelPayload: ~Copyable {
  struct Segment {
    var fileOffset: Int
    var fileSize: Int
    /// Distance from the kernel's start.
    var offset: UInt64
  }

  /// Entry numbers of one kind in the table.
  private struct Relocations {
    var grow32: Range<Int>
    var shrink32: Range<Int>
    var grow64: Range<Int>
  }

  private enum Header {
    static let size = 64
    static let programSize = 56
    static let sectionSize = 64
    static let identification: UInt32 = 0x464C_457F
    static let wideClass: UInt8 = 2
    static let machineX86: UInt16 = 62
    static let loadable: UInt32 = 1
  }

  /// The kernel's first virtual address: __START_KERNEL_map.
  private static let virtualBase: UInt64 = 0xFFFF_FFFF_8000_0000
  private static let sizeBytes = 4

  private let data: Mapping
  /// Bytes of the mapping that are the payload's.
  private let count: Int
  private let segments: [Segment]
  /// The physical address that the kernel was linked for.
  private let linkedAddress: UInt64
  /// Nil if the kernel only runs at the addresses it was linked for.
  private let relocations: Relocations?
  /// Bytes of memory from the kernel's start to the end of its last segment.
  let memorySize: UInt64
  /// The entry point's distance from the kernel's start.
  let entryOffset: UInt64

  /// Whether it can run at other virtual addresses.
  var isRelocatable: Bool { relocations != nil }

  /// Decompresses a payload; nil if it, or the result, is not understood.
  ///
  /// - Parameter linkedAddress: the address that the header says the kernel prefers.
  init?(_ payload: RawSpan, linkedAddress: UInt64, limit: Int) {
    let body = payload.byteCount - Self.sizeBytes
    guard let format = PayloadFormat(payload),
      let size = payload.load(UInt32.self, at: body).map({ Int($0) }), size > Header.size,
      size <= limit, var data = try? Mapping(anonymous: size, hugePages: true)
    else { return nil }
    // The size is part of a gzip file, and behind a file of the other formats.
    let input = payload.extracting(first: format == .gzip ? body + 4 : body)
    let written = data.withMutableBytes { all in
      var output = all.part(..<size)
      return format.decompress(input, into: &output)
    }
    guard written == size,
      let (file, relocations) = Self.examine(data.bytes.extracting(first: size), linkedAddress)
    else { return nil }
    self.init(data, size, file, relocations, linkedAddress)
  }

  private static func examine(
    _ bytes: RawSpan, _ linkedAddress: UInt64
  ) -> (ELFFile, Relocations?)? {
    guard let file = ELFFile(bytes, linkedAddress: linkedAddress) else { return nil }
    let relocations = findRelocations(bytes, from: file.end)
    // Without the table the kernel was built to stay where it was linked for.
    return relocations == nil && file.end < bytes.byteCount ? nil : (file, relocations)
  }

  private init(
    _ data: consuming Mapping, _ count: Int, _ file: ELFFile, _ relocations: Relocations?,
    _ linkedAddress: UInt64
  ) {
    self.data = data
    self.count = count
    self.relocations = relocations
    self.linkedAddress = linkedAddress
    segments = file.segments
    memorySize = file.memorySize
    entryOffset = file.entryOffset
  }

  private var bytes: RawSpan {
    @_lifetime(borrow self) get { data.bytes.extracting(first: count) }
  }

  // MARK: The ELF file

  private struct ELFFile {
    var segments: [Segment] = []
    var memorySize: UInt64 = 0
    var entryOffset: UInt64
    /// End of the ELF file in the payload.
    var end: Int

    init?(_ bytes: RawSpan, linkedAddress: UInt64) {
      guard bytes.load(UInt32.self, at: 0) == Header.identification,
        bytes.load(UInt8.self, at: 4) == Header.wideClass,
        bytes.load(UInt16.self, at: 18) == Header.machineX86,
        let entry = bytes.load(UInt64.self, at: 24), let programs = bytes.load(UInt64.self, at: 32),
        let sections = bytes.load(UInt64.self, at: 40),
        let programCount = bytes.load(UInt16.self, at: 56).map({ Int($0) }),
        let sectionCount = bytes.load(UInt16.self, at: 60)
      else { return nil }
      let sectionBytes = UInt64(sectionCount) * UInt64(Header.sectionSize)
      let room = UInt64(bytes.byteCount)
      guard programs <= room, room - programs >= UInt64(programCount * Header.programSize),
        sections <= room, room - sections >= sectionBytes, entry >= linkedAddress
      else { return nil }
      entryOffset = entry - linkedAddress
      end = Int(sections + sectionBytes)
      for n in 0..<programCount {
        let header = Int(programs) + n * Header.programSize
        guard bytes.load(UInt32.self, at: header) == Header.loadable else { continue }
        guard add(header, bytes, linkedAddress) else { return nil }
      }
      guard !segments.isEmpty, entryOffset < memorySize else { return nil }
    }

    private mutating func add(
      _ header: Int, _ bytes: RawSpan, _ linkedAddress: UInt64
    ) -> Bool {
      let room = UInt64(bytes.byteCount)
      guard let fileOffset = bytes.load(UInt64.self, at: header + 8),
        let address = bytes.load(UInt64.self, at: header + 24),
        let fileSize = bytes.load(UInt64.self, at: header + 32),
        let size = bytes.load(UInt64.self, at: header + 40), fileOffset <= room,
        fileSize <= room - fileOffset, fileSize <= size, address >= linkedAddress,
        size <= UInt64(1) << 32, address < UInt64(1) << 40
      else { return false }
      segments.append(
        Segment(
          fileOffset: Int(fileOffset), fileSize: Int(fileSize), offset: address - linkedAddress))
      memorySize = max(memorySize, address - linkedAddress + size)
      end = max(end, Int(fileOffset + fileSize))
      return true
    }
  }

  // MARK: Relocations

  /// The table between the end of the ELF file and that of the payload; nil where it has another
  /// form.
  private static func findRelocations(_ bytes: RawSpan, from end: Int) -> Relocations? {
    // Its first word is the 0 that ends the last list.
    let words = (bytes.byteCount - end) / 4
    guard words > 0, (bytes.byteCount - end) % 4 == 0, word(bytes, words) == 0 else { return nil }
    var zeros: [Int] = []
    for n in 1...words where word(bytes, n) == 0 { zeros.append(n) }
    // Counted from the end: the lists of 32-bit values come first.
    switch zeros.count {
    case 2:
      return Relocations(
        grow32: 1..<zeros[0], shrink32: zeros[0]..<zeros[0], grow64: zeros[0] + 1..<zeros[1])
    case 3:
      return Relocations(
        grow32: 1..<zeros[0], shrink32: zeros[0] + 1..<zeros[1], grow64: zeros[1] + 1..<zeros[2])
    default: return nil
    }
  }

  /// Word `n` of the table, counted from the end from 1.
  private static func word(_ bytes: RawSpan, _ n: Int) -> UInt32? {
    bytes.load(UInt32.self, at: bytes.byteCount - n * 4)
  }

  // MARK: Loading

  /// Copies the kernel to zeroed memory.
  ///
  /// - Parameters:
  ///   - address: physical, of the kernel's start.
  ///   - virtualOffset: added to all virtual addresses; 0 for a kernel that is not relocatable.
  /// - Returns: false if something does not fit. Then the memory is zero again.
  func load(into memory: GuestMemory, at address: UInt64, virtualOffset: UInt64) -> Bool {
    guard let start = unsafe memory.host(address, count: Int(clamping: memorySize)) else {
      return false
    }
    // No guest runs yet.
    var target = unsafe MutableRawSpan(_unsafeStart: start, byteCount: Int(memorySize))
    for segment in segments { copy(segment, &target) }
    if virtualOffset == 0 || relocate(&target, by: virtualOffset) { return true }
    target.fill(0)
    return false
  }

  private static let page = 4096

  /// Pages of zeros are not touched: the kernel's .bss is in the file.
  private func copy(_ segment: Segment, _ target: inout MutableRawSpan) {
    var position = 0
    while position < segment.fileSize {
      let size = min(Self.page, segment.fileSize - position)
      let from = segment.fileOffset + position
      let source = bytes.extracting(from..<from + size)
      if !Self.isZero(source) {
        let start = Int(segment.offset) + position
        target.copy(from: source, at: start)
      }
      position += size
    }
  }

  private static func isZero(_ bytes: RawSpan) -> Bool {
    var offset = 0
    while let word = bytes.load(UInt64.self, at: offset) {
      if word != 0 { return false }
      offset += 8
    }
    while let byte = bytes.load(UInt8.self, at: offset) {
      if byte != 0 { return false }
      offset += 1
    }
    return true
  }

  private func relocate(_ target: inout MutableRawSpan, by offset: UInt64) -> Bool {
    guard let relocations else { return false }
    let small = UInt32(truncatingIfNeeded: offset)
    return add(small, at: relocations.grow32, &target)
      && add(0 &- small, at: relocations.shrink32, &target)
      && add(offset, at: relocations.grow64, &target)
  }

  /// Adds to the values that entries of the table name; false where one does not lie in the kernel.
  private func add<Value: FixedWidthInteger & BitwiseCopyable>(
    _ value: Value, at entries: Range<Int>, _ target: inout MutableRawSpan
  ) -> Bool {
    for n in entries {
      guard let word = Self.word(bytes, n) else { return false }
      let virtual = UInt64(bitPattern: Int64(Int32(bitPattern: word)))
      guard let place = Int(exactly: virtual &- Self.virtualBase &- linkedAddress),
        let old = target.bytes.load(Value.self, at: place)
      else { return false }
      target.storeBytes(of: old &+ value, toByteOffset: place, as: Value.self)
    }
    return true
  }
}
