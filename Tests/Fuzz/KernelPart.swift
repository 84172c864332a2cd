// SPDX-License-Identifier: Apache-2.0
//
// Kernels of the fuzzer's bytes on their way into guest memory, whose guards show what is
// written outside.

import GuestMemory
import KernelFiles
import LinuxBoot

/// Kernels on their way into guest memory, which has guards at its ends. It is one memory for all
/// inputs.
enum KernelPart {
  private static let memory = try? GuestMemory(size: 64 << 20)

  /// A file as `martlet run --kernel` gets it.
  static func run(file: UnsafeRawBufferPointer) { load([UInt8](file), random: 0) }

  /// The first 8 bytes choose addresses, the others are what is compressed in a bzImage.
  static func run(payload: UnsafeRawBufferPointer) {
    var reader = Reader(payload)
    let random = reader.word(UInt64.self)
    guard payload.count > 8 + 15 else { return }
    load(PackedKernel.image(PackedKernel.stored([UInt8](payload[8...]))), random: random)
  }

  private static func load(_ kernel: [UInt8], random: UInt64) {
    guard let memory else { return }
    let loader = BootLoader(memory: memory, processors: 2) { random % max($0, 1) }
    _ = try? loader.load(
      kernel: kernel, kernelName: "K", initrd: .init(bytes: [1, 2, 3], name: "I"),
      commandLine: "quiet")
  }

  static let files: [[UInt8]] = [
    TinyKernel([0xF4]).bytes, ELFKernel.bytes,
    PackedKernel.image(PackedKernel.stored(PackedKernel.elf() + PackedKernel.relocations())),
  ]

  static let payloads: [[UInt8]] = [
    PackedKernel.relocations(), PackedKernel.relocations(shrinking: false), [],
  ].map { [UInt8](repeating: 0, count: 8) + PackedKernel.elf() + $0 }
}
