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

  private let file: UnsafeRawPointer
  private let fileSize: Int
  /// The difference between run-time and file addresses.
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
    guard size > 64, let map = unsafe mmap(nil, size, PROT_READ, MAP_PRIVATE, descriptor, 0),
      unsafe map != MAP_FAILED
    else { return nil }
    unsafe (file, fileSize, bias) = (UnsafeRawPointer(map), size, UInt(bitPattern: base))
    guard let found = unsafe Self.sections(file, size) else {
      unsafe munmap(map, size)
      return nil
    }
    (symbols, strings) = found
  }

  private static func word<T: FixedWidthInteger>(
    _ file: UnsafeRawPointer, _ size: Int, _ offset: Int, as type: T.Type
  ) -> Int? {
    guard offset >= 0, offset <= size - MemoryLayout<T>.size else { return nil }
    return unsafe Int(truncatingIfNeeded: file.loadUnaligned(fromByteOffset: offset, as: T.self))
  }

  /// The symbol table (type 2) and its string table.
  private static func sections(
    _ file: UnsafeRawPointer, _ size: Int
  ) -> (symbols: Range<Int>, strings: Range<Int>)? {
    guard let table = unsafe word(file, size, 40, as: UInt64.self),
      let entry = unsafe word(file, size, 58, as: UInt16.self),
      let count = unsafe word(file, size, 60, as: UInt16.self), table > 0, table < size
    else { return nil }
    func range(_ header: Int) -> Range<Int>? {
      guard let start = unsafe word(file, size, header + 24, as: UInt64.self),
        let length = unsafe word(file, size, header + 32, as: UInt64.self), start >= 0, length >= 0,
        start <= size, length <= size - start
      else { return nil }
      return start..<(start + length)
    }
    for index in 0..<count {
      let header = table + index * entry
      guard unsafe word(file, size, header + 4, as: UInt32.self) == 2 else { continue }
      guard let link = unsafe word(file, size, header + 40, as: UInt32.self), link < count,
        let symbols = range(header), let strings = range(table + link * entry)
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
    var place = symbols.lowerBound
    while place <= symbols.upperBound - Self.entrySize {
      let value = unsafe file.loadUnaligned(fromByteOffset: place + 8, as: UInt.self)
      let kind = unsafe file.loadUnaligned(fromByteOffset: place + 4, as: UInt8.self) & 15
      if kind == 2, wanted &- value < distance {  // STT_FUNC
        distance = wanted &- value
        best = place
      }
      place += Self.entrySize
    }
    guard let best else { return nil }
    let name = unsafe Int(file.loadUnaligned(fromByteOffset: best, as: UInt32.self))
    guard name < strings.count, fileSize > 0 else { return nil }
    return unsafe ((file + strings.lowerBound + name).assumingMemoryBound(to: CChar.self), distance)
  }
}
