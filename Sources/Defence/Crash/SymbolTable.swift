// SPDX-License-Identifier: Apache-2.0
//
// Names of this program's functions, from the symbol table of its own file (System V ABI, "Symbol
// Table"), which dladdr ignores. The file is mapped in advance; finding a name allocates nothing.

import CHost
import Glibc
import Host
import SystemPackage

@safe struct SymbolTable {
  private static let entrySize = 24

  /// Of the whole file.
  private let map: UnsafeRawBufferPointer
  /// What to subtract from an address.
  private let bias: UInt
  private let symbols: Range<Int>
  private let strings: Range<Int>

  /// - Parameter anchor: an address in the program or library. The mapping is never removed.
  init?(anchor: UnsafeRawPointer) {
    var info = unsafe chost_dl_info()
    guard unsafe chost_dladdr(anchor, &info) != 0, let base = unsafe info.base,
      let name = unsafe info.file
    else {
      return nil
    }
    // For the program itself, the loader has the name that it was called by.
    let isPath = unsafe name[0] == CChar(bitPattern: UInt8(ascii: "/"))
    let descriptor = unsafe open(
      isPath ? String(cString: name) : "/proc/self/exe", O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    let size = Int(lseek(descriptor, 0, SEEK_END))
    guard size > 64, let start = unsafe mmap(nil, size, PROT_READ, MAP_PRIVATE, descriptor, 0),
      unsafe start != MAP_FAILED
    else { return nil }
    let map = unsafe UnsafeRawBufferPointer(start: start, count: size)
    guard let found = unsafe Self.sections(map.bytes) else {
      unsafe munmap(start, size)
      return nil
    }
    (symbols, strings) = found
    unsafe (self.map, bias) = unsafe (map, UInt(bitPattern: base))
  }

  private static func word<T: FixedWidthInteger & BitwiseCopyable>(
    _ file: RawSpan, _ offset: Int, as type: T.Type
  ) -> Int? {
    file.load(type, at: offset).map { Int(truncatingIfNeeded: $0) }
  }

  private static func section(_ file: RawSpan, _ header: Int) -> Range<Int>? {
    let size = file.byteCount
    guard let start = word(file, header + 24, as: UInt64.self),
      let length = word(file, header + 32, as: UInt64.self), start >= 0, length >= 0,
      start <= size, length <= size - start
    else { return nil }
    return start..<(start + length)
  }

  /// The symbol table (type 2) and its string table.
  private static func sections(
    _ file: RawSpan
  ) -> (symbols: Range<Int>, strings: Range<Int>)? {
    guard let table = word(file, 40, as: UInt64.self), let entry = word(file, 58, as: UInt16.self),
      let count = word(file, 60, as: UInt16.self), table > 0, table < file.byteCount
    else { return nil }
    for index in 0..<count {
      let header = table + index * entry
      guard word(file, header + 4, as: UInt32.self) == 2 else { continue }
      guard let link = word(file, header + 40, as: UInt32.self), link < count,
        let symbols = section(file, header), let strings = section(file, table + link * entry)
      else { return nil }
      return (symbols, strings)
    }
    return nil
  }

  /// The function at an address; safe in signal handlers.
  func find(_ address: UInt) -> (name: UnsafePointer<CChar>, offset: UInt)? {
    let wanted = address &- bias
    var best: Int?
    var distance = UInt(1) << 20
    let file = unsafe map.bytes
    var place = symbols.lowerBound
    while place <= symbols.upperBound - Self.entrySize,
      let kind = file.load(UInt8.self, at: place + 4),
      let value = file.load(UInt.self, at: place + 8)
    {
      if kind & 15 == 2, wanted &- value < distance {  // STT_FUNC
        distance = wanted &- value
        best = place
      }
      place += Self.entrySize
    }
    guard let best, let name = file.load(UInt32.self, at: best), name < strings.count,
      let start = unsafe map.baseAddress
    else { return nil }
    let text = unsafe start + strings.lowerBound + Int(name)
    return unsafe (text.assumingMemoryBound(to: CChar.self), distance)
  }
}
