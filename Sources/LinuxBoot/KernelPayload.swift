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
    static let machineX86: UInt16 = 62
    static let loadable: UInt32 = 1
  }

  /// The kernel's first virtual address: __START_KERNEL_map.
  private static let virtualBase: UInt64 = 0xFFFF_FFFF_8000_0000
  private static let sizeBytes = 4

  private let data: Mapping
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
  /// - Parameter linkedAddress: the header's preferred address.
  init?(_ payload: UnsafeRawBufferPointer, linkedAddress: UInt64, limit: Int) {
    guard let format = unsafe PayloadFormat(payload) else { return nil }
    let body = payload.count - Self.sizeBytes
    let size = unsafe Int(payload.loadUnaligned(fromByteOffset: body, as: UInt32.self))
    guard size > Header.size, size <= limit,
      let data = try? Mapping(anonymous: size, hugePages: true)
    else { return nil }
    // The size is part of a gzip file, and follows a file of the other formats.
    let input = unsafe UnsafeRawBufferPointer(
      rebasing: payload[..<(format == .gzip ? body + 4 : body)])
    let output = unsafe UnsafeMutableRawBufferPointer(start: data.address, count: size)
    guard unsafe format.decompress(input, into: output) == size else { return nil }
    let bytes = UnsafeRawBufferPointer(output)
    guard let file = unsafe ELFFile(bytes, linkedAddress: linkedAddress) else { return nil }
    let relocations = unsafe Self.findRelocations(bytes, from: file.end)
    // Without the table the kernel must stay where it was linked for.
    if relocations == nil && file.end < size { return nil }
    self.init(data, size, file, relocations, linkedAddress)
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

  private var bytes: UnsafeRawBufferPointer {
    unsafe UnsafeRawBufferPointer(start: data.address, count: count)
  }

  // MARK: The ELF file

  private struct ELFFile {
    var segments: [Segment] = []
    var memorySize: UInt64 = 0
    var entryOffset: UInt64
    /// End of the ELF file in the payload.
    var end: Int

    init?(_ bytes: UnsafeRawBufferPointer, linkedAddress: UInt64) {
      func load<Value: FixedWidthInteger>(_ type: Value.Type, _ offset: Int) -> Value {
        unsafe bytes.loadUnaligned(fromByteOffset: offset, as: type)
      }
      guard load(UInt32.self, 0) == Header.identification, unsafe bytes[4] == 2,
        load(UInt16.self, 18) == Header.machineX86
      else { return nil }
      let entry = load(UInt64.self, 24)
      let programs = load(UInt64.self, 32)
      let sections = load(UInt64.self, 40)
      let programCount = Int(load(UInt16.self, 56))
      let sectionBytes = UInt64(load(UInt16.self, 60)) * UInt64(Header.sectionSize)
      let room = UInt64(bytes.count)
      guard programs <= room, room - programs >= UInt64(programCount * Header.programSize),
        sections <= room, room - sections >= sectionBytes, entry >= linkedAddress
      else { return nil }
      entryOffset = entry - linkedAddress
      end = Int(sections + sectionBytes)
      for n in 0..<programCount {
        let header = Int(programs) + n * Header.programSize
        guard load(UInt32.self, header) == Header.loadable else { continue }
        guard add(header, load, room, linkedAddress) else { return nil }
      }
      guard !segments.isEmpty, entryOffset < memorySize else { return nil }
    }

    private mutating func add(
      _ header: Int, _ load: (UInt64.Type, Int) -> UInt64, _ room: UInt64, _ linkedAddress: UInt64
    ) -> Bool {
      let (fileOffset, address) = (load(UInt64.self, header + 8), load(UInt64.self, header + 24))
      let (fileSize, size) = (load(UInt64.self, header + 32), load(UInt64.self, header + 40))
      guard fileOffset <= room, fileSize <= room - fileOffset, fileSize <= size,
        address >= linkedAddress, size <= UInt64(1) << 32, address < UInt64(1) << 40
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

  /// The table between the end of the ELF file and that of the payload; nil if its format is
  /// unknown.
  private static func findRelocations(
    _ bytes: UnsafeRawBufferPointer, from end: Int
  ) -> Relocations? {
    // Its first word is the 0 that ends the last list.
    let words = (bytes.count - end) / 4
    guard words > 0, (bytes.count - end) % 4 == 0, unsafe word(bytes, words) == 0 else {
      return nil
    }
    var zeros: [Int] = []
    for n in 1...words where unsafe word(bytes, n) == 0 { zeros.append(n) }
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
  private static func word(_ bytes: UnsafeRawBufferPointer, _ n: Int) -> UInt32 {
    unsafe bytes.loadUnaligned(fromByteOffset: bytes.count - n * 4, as: UInt32.self)
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
    let target = unsafe UnsafeMutableRawBufferPointer(start: start, count: Int(memorySize))
    for segment in segments { unsafe copy(segment, target) }
    if unsafe virtualOffset == 0 || relocate(target, by: virtualOffset) { return true }
    unsafe target.initializeMemory(as: UInt8.self, repeating: 0)
    return false
  }

  private static let page = 4096

  /// Pages of zeroes are not touched: the file contains the kernel's .bss.
  private func copy(_ segment: Segment, _ target: UnsafeMutableRawBufferPointer) {
    var position = 0
    while position < segment.fileSize {
      let size = min(Self.page, segment.fileSize - position)
      let from = segment.fileOffset + position
      let source = unsafe UnsafeRawBufferPointer(rebasing: bytes[from..<from + size])
      if unsafe !Self.isZero(source) {
        let place = Int(segment.offset) + position
        unsafe UnsafeMutableRawBufferPointer(rebasing: target[place..<place + size])
          .copyMemory(from: source)
      }
      position += size
    }
  }

  private static func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
    var offset = 0
    while offset + 8 <= bytes.count {
      if unsafe bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self) != 0 { return false }
      offset += 8
    }
    return unsafe bytes[offset...].allSatisfy { $0 == 0 }
  }

  private func relocate(_ target: UnsafeMutableRawBufferPointer, by offset: UInt64) -> Bool {
    guard let relocations else { return false }
    let bytes = unsafe bytes
    /// Offset of a value in the kernel; nil if it is outside.
    func place(_ n: Int, _ size: Int) -> Int? {
      let virtual = unsafe UInt64(bitPattern: Int64(Int32(bitPattern: Self.word(bytes, n))))
      let place = virtual &- Self.virtualBase &- linkedAddress
      return target.count >= size && place <= UInt64(target.count - size) ? Int(place) : nil
    }
    func add<Value: FixedWidthInteger>(_ range: Range<Int>, _ value: Value) -> Bool {
      for n in range {
        guard let place = place(n, MemoryLayout<Value>.size) else { return false }
        let old = unsafe target.loadUnaligned(fromByteOffset: place, as: Value.self)
        unsafe target.storeBytes(of: old &+ value, toByteOffset: place, as: Value.self)
      }
      return true
    }
    let small = UInt32(truncatingIfNeeded: offset)
    return add(relocations.grow32, small) && add(relocations.shrink32, 0 &- small)
      && add(relocations.grow64, offset)
  }
}
