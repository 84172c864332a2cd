// SPDX-License-Identifier: Apache-2.0
//
// Loads a kernel like a boot loader: the image, its command line, the initrd, and the description
// of the machine.
//
//     let loader = BootLoader(memory: memory, processors: 2)
//     let entry = try loader.load(kernel: file, kernelName: path, initrd: nil, commandLine: "...")

import GuestMemory

/// The boot loader of a machine.
package struct BootLoader {
  private let memory: GuestMemory
  private let processors: Int
  private let decompresses: Bool
  private let random: (UInt64) -> UInt64

  /// - Parameters:
  ///   - decompresses: decompress a bzImage, if possible, instead of the guest.
  ///   - random: a number from 0 up to, but not including, its argument, for a kernel's addresses.
  package init(
    memory: GuestMemory, processors: Int, decompresses: Bool = true,
    random: @escaping (UInt64) -> UInt64 = { UInt64.random(in: 0..<max($0, 1)) }
  ) {
    self.memory = memory
    self.processors = processors
    self.decompresses = decompresses
    self.random = random
  }

  /// An initrd's bytes and its name in messages.
  package struct InitialRAMDisk {
    package let bytes: [UInt8]
    package let name: String
    package init(bytes: [UInt8], name: String) {
      self.bytes = bytes
      self.name = name
    }
  }

  /// Loads everything.
  ///
  /// - Returns: the first CPU's entry point.
  package func load(
    kernel: [UInt8], kernelName: String, initrd: InitialRAMDisk?, commandLine: String
  ) throws(LoadError) -> EntryPoint {
    if LinuxImage.recognizes(kernel) {
      return try load(
        try LinuxImage(kernel, name: kernelName), kernelName, initrd, commandLine)
    }
    guard ELFImage.recognizes(kernel) else {
      throw LoadError(
        "\(kernelName): not a Linux kernel; give a bzImage (vmlinuz) or an ELF vmlinux")
    }
    let image = try ELFImage(kernel, name: kernelName)
    let entry = try image.load(into: memory, name: kernelName)
    try writeCommandLine(commandLine, limit: GuestMap.commandLineSize - 1)
    let range = try placeInitrd(initrd, after: image.end, limit: GuestMap.fourGiB - 1)
    let rsdp = try writePlatform()
    try check(
      StartInfo.write(initrd: range, map: MemoryMap(memory), rsdp: rsdp, to: memory))
    return entry
  }

  private func load(
    _ image: LinuxImage, _ name: String, _ initrd: InitialRAMDisk?, _ commandLine: String
  ) throws(LoadError) -> EntryPoint {
    let staysInPlace = commandLine.split(separator: " ").contains("nokaslr")
    let ceiling = initrdStart(initrd, limit: image.initrdMaximum) ?? memory.lowEnd
    let loaded: LoadedKernel
    if decompresses,
      let kernel = image.loadDecompressed(
        into: memory, below: ceiling, random: staysInPlace ? nil : random)
    {
      loaded = kernel
    } else {
      loaded = try image.load(into: memory, name: name)
    }
    try writeCommandLine(commandLine, limit: image.commandLineSize)
    let range = try placeInitrd(
      initrd, after: loaded.range.upperBound, limit: image.initrdMaximum)
    let rsdp = try writePlatform()
    try check(
      ZeroPage.write(
        image: image, kernel: loaded, initrd: range, map: MemoryMap(memory), rsdp: rsdp,
        to: memory))
    return loaded.entry
  }

  /// Writes boot tables of the processor and of the firmware; returns the RSDP's address.
  private func writePlatform() throws(LoadError) -> UInt64 {
    try check(BootDescriptorTable.write(to: memory) && BootPageTables.write(to: memory))
    let tables = ACPITables(processors: processors)
    try check(memory.write(tables.bytes, at: GuestMap.acpiTables))
    return GuestMap.acpiTables
  }

  private func check(_ written: Bool) throws(LoadError) {
    if !written {
      throw LoadError("the boot data does not fit into memory; give more with --memory")
    }
  }

  private func writeCommandLine(_ text: String, limit: Int) throws(LoadError) {
    let bytes = Array(text.utf8) + [0]
    let longest = min(limit, GuestMap.commandLineSize - 1)
    guard bytes.count - 1 <= longest else {
      throw LoadError(
        "the kernel command line has \(bytes.count - 1) bytes, the kernel takes \(longest); "
          + "shorten --append")
    }
    try check(memory.write(bytes, at: GuestMap.commandLine))
  }

  /// The highest page-aligned address for the initrd; nil if there is none or it does not fit.
  private func initrdStart(_ initrd: InitialRAMDisk?, limit: UInt64) -> UInt64? {
    guard let initrd, !initrd.bytes.isEmpty else { return nil }
    let size = UInt64(initrd.bytes.count)
    let top = min(memory.lowEnd, limit &+ 1)
    return size <= top ? (top - size) & ~4095 : nil
  }

  private func placeInitrd(
    _ initrd: InitialRAMDisk?, after kernelEnd: UInt64, limit: UInt64
  ) throws(LoadError) -> Range<UInt64>? {
    guard let initrd, !initrd.bytes.isEmpty else { return nil }
    let size = UInt64(initrd.bytes.count)
    let start = initrdStart(initrd, limit: limit) ?? 0
    guard start >= kernelEnd, memory.write(initrd.bytes, at: start) else {
      let needed = (kernelEnd + size) >> 20 + 2
      throw LoadError(
        "\(initrd.name): an initrd of \(size >> 10)K does not fit beside the kernel into "
          + "\(memory.size >> 20)M; give --memory \(needed)M or more")
    }
    return start..<start + size
  }
}
