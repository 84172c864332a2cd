// SPDX-License-Identifier: Apache-2.0
//
// A 64-bit ELF kernel with a PVH note (Xen's "x86/HVM direct boot ABI"): its segments are loaded at
// their physical addresses, and it starts in 32-bit protected mode with a start info.

import GuestMemory
import Host

/// A checked ELF kernel.
package struct ELFImage: Sendable {
  private struct Segment {
    let fileOffset: Int
    let fileSize: Int
    let address: UInt64
    let memorySize: UInt64
  }

  private enum Header {
    static let magic: UInt32 = 0x464C_457F
    static let size = 64
    static let programSize = 56
    static let class64: UInt8 = 2
    static let machineX86: UInt16 = 62
  }
  private static let loadable: UInt32 = 1
  private static let note: UInt32 = 4
  /// XEN_ELFNOTE_PHYS32_ENTRY.
  private static let entryNote: UInt32 = 18

  private let file: [UInt8]
  private let segments: [Segment]
  private let entry: UInt32
  /// The first address after all segments.
  package let end: UInt64

  /// Whether a file is an ELF file.
  package static func recognizes(_ file: [UInt8]) -> Bool {
    file.load(UInt32.self, at: 0) == Header.magic
  }

  package init(_ file: [UInt8], name: String) throws(LoadError) {
    let truncated = LoadError("\(name): truncated ELF file; fetch the kernel again")
    guard file.count >= Header.size else { throw truncated }
    guard file[4] == Header.class64, file.load(UInt16.self, at: 18) == Header.machineX86 else {
      throw LoadError("\(name): not an ELF file for x86-64; use an x86-64 kernel")
    }
    guard let table = file.load(UInt64.self, at: 32), let count = file.load(UInt16.self, at: 56),
      table <= UInt64(file.count), count > 0
    else { throw truncated }
    var segments: [Segment] = []
    var entry: UInt32?
    for index in 0..<Int(count) {
      let header = Int(table) + index * Header.programSize
      guard let kind = file.load(UInt32.self, at: header),
        let offset = file.load(UInt64.self, at: header + 8),
        let address = file.load(UInt64.self, at: header + 24),
        let fileSize = file.load(UInt64.self, at: header + 32),
        let memorySize = file.load(UInt64.self, at: header + 40)
      else { throw truncated }
      guard kind == Self.loadable || kind == Self.note else { continue }
      guard offset <= UInt64(file.count), fileSize <= UInt64(file.count) - offset else {
        throw truncated
      }
      let segment = Segment(
        fileOffset: Int(offset), fileSize: Int(fileSize), address: address,
        memorySize: max(memorySize, fileSize))
      if kind == Self.loadable { segments.append(segment) }
      if kind == Self.note { entry = entry ?? Self.findEntry(file, segment) }
    }
    guard let entry else {
      throw LoadError(
        "\(name): has no PVH entry point; use a bzImage, or a vmlinux built with CONFIG_PVH")
    }
    (self.file, self.segments, self.entry) = (file, segments, entry)
    end = segments.map { $0.address.addingReportingOverflow($0.memorySize).partialValue }.max() ?? 0
  }

  /// Finds Xen's note with the 32-bit entry point in a segment.
  private static func findEntry(_ file: [UInt8], _ notes: Segment) -> UInt32? {
    var position = notes.fileOffset
    let end = notes.fileOffset + notes.fileSize
    while position + 12 <= end {
      guard let nameSize = file.load(UInt32.self, at: position),
        let size = file.load(UInt32.self, at: position + 4),
        let kind = file.load(UInt32.self, at: position + 8)
      else { return nil }
      let name = position + 12
      let content = name + (Int(nameSize) + 3) & ~3
      if kind == entryNote, nameSize == 4,
        file[name..<min(name + 4, end)].elementsEqual(Array("Xen\0".utf8))
      {
        return file.load(UInt32.self, at: content)
      }
      position = content + (Int(size) + 3) & ~3
    }
    return nil
  }

  /// Copies the segments to memory, which is zero where the file has no bytes for them.
  package func load(into memory: GuestMemory, name: String) throws(LoadError) -> EntryPoint {
    for segment in segments {
      let bytes = file[segment.fileOffset..<segment.fileOffset + segment.fileSize]
      let (last, overflow) = segment.address.addingReportingOverflow(segment.memorySize)
      guard !overflow, last <= memory.lowEnd, segment.address >= GuestMap.highLoadAddress,
        memory.write(bytes, at: segment.address)
      else {
        throw LoadError(
          "\(name): a segment at 0x\(String(segment.address, radix: 16)) does not fit into "
            + "\(memory.size >> 20)M of memory; give more with --memory")
      }
    }
    return .pvh(address: entry)
  }
}

/// The start info of the PVH protocol, followed by the memory map and the initrd.
enum StartInfo {
  private static let magic: UInt32 = 0x336E_C578
  private static let size: UInt64 = 56

  static func write(
    initrd: Range<UInt64>?, map: MemoryMap, rsdp: UInt64, to memory: GuestMemory
  ) -> Bool {
    let module = GuestMap.startInfo + size
    let entries = module + 32
    var bytes: [UInt8] = []
    bytes.append(little: magic)
    bytes.append(little: UInt32(1))  // version
    bytes.append(little: UInt32(0))  // flags
    bytes.append(little: UInt32(initrd == nil ? 0 : 1))
    bytes.append(little: initrd == nil ? 0 : module)
    bytes.append(little: GuestMap.commandLine)
    bytes.append(little: rsdp)
    bytes.append(little: entries)
    bytes.append(little: UInt32(map.entries.count))
    bytes.append(little: UInt32(0))
    bytes.append(little: initrd?.lowerBound ?? 0)
    bytes.append(little: initrd.map { $0.upperBound - $0.lowerBound } ?? 0)
    bytes.append(little: UInt64(0))
    bytes.append(little: UInt64(0))
    for entry in map.entries {
      bytes.append(little: entry.start)
      bytes.append(little: entry.size)
      bytes.append(little: entry.kind)
      bytes.append(little: UInt32(0))
    }
    return memory.write(bytes, at: GuestMap.startInfo)
  }
}
