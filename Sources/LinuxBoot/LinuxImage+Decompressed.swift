// SPDX-License-Identifier: Apache-2.0
//
// A bzImage whose payload the loader decompresses: the guest starts in the kernel proper. Like the
// kernel's own decompressor, this chooses random physical and virtual addresses.

import GuestMemory
import Host

/// A kernel in memory.
struct LoadedKernel {
  var entry: EntryPoint
  /// Physical addresses that nothing else may use.
  var range: Range<UInt64>
  /// Its addresses were chosen at random.
  var isRandomized = false
}

/// Chooses a kernel's addresses. Physical ones are below 4 GiB, the limit of the boot page tables.
struct KernelPlacement: Equatable {
  var address: UInt64
  var virtualOffset: UInt64 = 0

  /// KERNEL_IMAGE_SIZE of relocatable kernels: their part of the virtual addresses.
  private static let virtualSize: UInt64 = 1 << 30

  /// - Parameters:
  ///   - size: bytes of memory that the kernel needs.
  ///   - preferred: the lowest address, and the address of a kernel that is not relocatable.
  ///   - ceiling: the first address after the memory that may be used.
  ///   - random: a number below its argument; nil for a kernel that is not relocatable.
  /// - Returns: nil if it does not fit.
  init?(
    size: UInt64, preferred: UInt64, alignment: UInt64, ceiling: UInt64,
    random: ((UInt64) -> UInt64)?
  ) {
    guard preferred <= ceiling, size <= ceiling - preferred else { return nil }
    address = preferred
    guard let random else { return }
    address += random((ceiling - preferred - size) / alignment + 1) * alignment
    let (used, overflow) = preferred.addingReportingOverflow(size)
    if !overflow && used < Self.virtualSize {
      virtualOffset = random((Self.virtualSize - used) / alignment + 1) * alignment
    }
  }
}

extension LinuxImage {
  /// Large pages, as in the kernel's first page tables.
  private static let leastAlignment: UInt32 = 2 << 20

  /// Decompresses the kernel into memory.
  ///
  /// - Parameters:
  ///   - ceiling: the first address after the memory that may be used.
  ///   - random: a number below its argument, for the kernel's addresses; nil loads it at its
  ///     preferred address.
  /// - Returns: nil if the image is not understood or does not fit. The guest may still be able
  ///   to decompress it.
  func loadDecompressed(
    into memory: GuestMemory, below ceiling: UInt64, random: ((UInt64) -> UInt64)?
  ) -> LoadedKernel? {
    guard let payload, let alignment = file.load(UInt32.self, at: Field.alignment),
      alignment >= Self.leastAlignment, alignment.nonzeroBitCount == 1,
      loadAddress >= GuestMap.highLoadAddress, loadAddress % UInt64(alignment) == 0
    else { return nil }
    guard let bytes = file.bytes.part(payload),
      let kernel = KernelPayload(bytes, linkedAddress: loadAddress, limit: memory.size),
      let placement = KernelPlacement(
        size: kernel.memorySize, preferred: loadAddress, alignment: UInt64(alignment),
        ceiling: min(ceiling, memory.lowEnd), random: kernel.isRelocatable ? random : nil),
      kernel.load(into: memory, at: placement.address, virtualOffset: placement.virtualOffset)
    else { return nil }
    return LoadedKernel(
      entry: .linux64(address: placement.address + kernel.entryOffset),
      range: placement.address..<placement.address + kernel.memorySize,
      isRandomized: kernel.isRelocatable && random != nil)
  }

  /// The compressed kernel's range in the file.
  private var payload: Range<Int>? {
    guard let offset = file.load(UInt32.self, at: Field.payloadOffset),
      let size = file.load(UInt32.self, at: Field.payloadSize), size > 0
    else { return nil }
    let start = setupSize + Int(offset)
    guard start + Int(size) <= setupSize + systemSize else { return nil }
    return start..<start + Int(size)
  }
}
