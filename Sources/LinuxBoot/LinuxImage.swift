// SPDX-License-Identifier: Apache-2.0
//
// A bzImage and its set-up header (Linux, "The Linux/x86 Boot Protocol"). The header is at 0x1F1 in
// the file; after it and the real-mode code comes the protected-mode kernel, which decompresses
// itself.

import GuestMemory
import Host

/// A checked bzImage.
package struct LinuxImage: Sendable {
  /// Offsets in the file, which are also offsets in the zero page.
  enum Field {
    static let setupSectors = 0x1F1
    static let systemSize = 0x1F4
    static let bootFlag = 0x1FE
    static let jump = 0x200
    static let magic = 0x202
    static let version = 0x206
    static let loaderType = 0x210
    static let loadFlags = 0x211
    static let code32Start = 0x214
    static let initrdAddress = 0x218
    static let initrdSize = 0x21C
    static let commandLine = 0x228
    static let initrdMaximum = 0x22C
    static let alignment = 0x230
    static let relocatable = 0x234
    static let extendedLoadFlags = 0x236
    static let commandLineSize = 0x238
    static let payloadOffset = 0x248
    static let payloadSize = 0x24C
    static let preferredAddress = 0x258
    static let initSize = 0x260
  }

  private static let bootFlag: UInt16 = 0xAA55
  private static let magic: UInt32 = 0x5372_6448  // "HdrS"
  /// The first version with `extendedLoadFlags`.
  private static let oldestVersion: UInt16 = 0x020C
  private static let has64BitEntry: UInt16 = 1
  private static let sector = 512
  private static let paragraph = 16
  /// The 64-bit entry point's distance from the kernel's start.
  private static let entryOffset: UInt64 = 0x200

  let file: [UInt8]
  let setupSize: Int
  let systemSize: Int
  /// The kernel's preferred load address.
  package let loadAddress: UInt64
  /// Bytes from its load address on that the kernel needs before it knows its memory.
  package let initSize: UInt64
  /// The highest address that an initrd may touch.
  package let initrdMaximum: UInt64
  /// The longest command line, without its terminator.
  package let commandLineSize: Int

  /// Whether a file looks like a bzImage.
  package static func recognizes(_ file: [UInt8]) -> Bool {
    file.load(UInt16.self, at: Field.bootFlag) == bootFlag
      && file.load(UInt32.self, at: Field.magic) == magic
  }

  /// Checks the header and that the file is complete.
  package init(_ file: [UInt8], name: String) throws(LoadError) {
    func field<Value: FixedWidthInteger & BitwiseCopyable>(
      _ type: Value.Type, _ offset: Int
    ) throws(LoadError) -> Value {
      guard let value = file.load(type, at: offset) else {
        throw LoadError("\(name): truncated in its set-up header; fetch the kernel again")
      }
      return value
    }
    let version = try field(UInt16.self, Field.version)
    let flags = try field(UInt16.self, Field.extendedLoadFlags)
    guard version >= Self.oldestVersion, flags & Self.has64BitEntry != 0 else {
      throw LoadError("\(name): has no 64-bit entry point; use an x86-64 kernel of 3.8 or later")
    }
    let sectors = try field(UInt8.self, Field.setupSectors)
    setupSize = (sectors == 0 ? 5 : Int(sectors) + 1) * Self.sector
    systemSize = Int(try field(UInt32.self, Field.systemSize)) * Self.paragraph
    let needed = setupSize + systemSize
    guard file.count >= needed, systemSize > Int(Self.entryOffset) else {
      throw LoadError(
        "\(name): truncated, has \(file.count) of \(needed) bytes; fetch the kernel again")
    }
    let relocatable = try field(UInt8.self, Field.relocatable) != 0
    let preferred = try field(UInt64.self, Field.preferredAddress)
    loadAddress = relocatable ? max(preferred, GuestMap.highLoadAddress) : preferred
    initSize = max(UInt64(try field(UInt32.self, Field.initSize)), UInt64(systemSize))
    initrdMaximum = UInt64(try field(UInt32.self, Field.initrdMaximum))
    commandLineSize = Int(try field(UInt32.self, Field.commandLineSize))
    self.file = file
  }

  /// Copies the protected-mode kernel, which decompresses itself, to memory.
  ///
  /// - Returns: the kernel with the memory that it needs until it knows the machine's.
  func load(into memory: GuestMemory, name: String) throws(LoadError) -> LoadedKernel {
    let (end, overflow) = loadAddress.addingReportingOverflow(initSize)
    guard !overflow, loadAddress >= GuestMap.highLoadAddress, end <= memory.lowEnd,
      memory.write(file[setupSize..<setupSize + systemSize], at: loadAddress)
    else {
      let need = overflow ? "more" : "\((end >> 20) + 1)M"
      throw LoadError(
        "\(name): does not fit into \(memory.size >> 20)M of memory; give --memory \(need)")
    }
    return LoadedKernel(
      entry: .linux64(address: loadAddress + Self.entryOffset), range: loadAddress..<end)
  }

  /// The set-up header in an otherwise empty zero page. The jump before the magic has its length.
  func zeroPage() -> [UInt8] {
    var page = [UInt8](repeating: 0, count: 4096)
    let end = min(Field.magic + Int(file[Field.jump + 1]), 0x290, file.count)
    for offset in Field.setupSectors..<max(end, Field.setupSectors) {
      page[offset] = file[offset]
    }
    return page
  }
}

/// The zero page: the boot loader's information for Linux.
enum ZeroPage {
  private static let rsdp = 0x70
  private static let initrdAddressHigh = 0xC0
  private static let initrdSizeHigh = 0xC4
  private static let mapCount = 0x1E8
  private static let map = 0x2D0
  private static let unknownLoader: UInt8 = 0xFF

  /// KASLR_FLAG of `loadFlags`: the kernel may place its data at random, too.
  private static let isRandomized: UInt8 = 1 << 1

  static func write(
    image: LinuxImage, kernel: LoadedKernel, initrd: Range<UInt64>?, map: MemoryMap, rsdp: UInt64,
    to memory: GuestMemory
  ) -> Bool {
    typealias Field = LinuxImage.Field
    var page = image.zeroPage()
    page[Field.loaderType] = unknownLoader
    if kernel.isRandomized { page[Field.loadFlags] |= isRandomized }
    page.store(UInt32(truncatingIfNeeded: kernel.range.lowerBound), at: Field.code32Start)
    page.store(UInt32(GuestMap.commandLine), at: Field.commandLine)
    page.store(rsdp, at: self.rsdp)
    if let initrd {
      let size = initrd.upperBound - initrd.lowerBound
      page.store(UInt32(truncatingIfNeeded: initrd.lowerBound), at: Field.initrdAddress)
      page.store(UInt32(truncatingIfNeeded: initrd.lowerBound >> 32), at: initrdAddressHigh)
      page.store(UInt32(truncatingIfNeeded: size), at: Field.initrdSize)
      page.store(UInt32(truncatingIfNeeded: size >> 32), at: initrdSizeHigh)
    }
    page[mapCount] = UInt8(map.entries.count)
    for (index, entry) in map.entries.enumerated() {
      let offset = self.map + index * 20
      page.store(entry.start, at: offset)
      page.store(entry.size, at: offset + 8)
      page.store(entry.kind, at: offset + 16)
    }
    return memory.write(page, at: GuestMap.zeroPage)
  }
}
