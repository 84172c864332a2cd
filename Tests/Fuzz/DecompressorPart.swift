// SPDX-License-Identifier: Apache-2.0
//
// Decompressors of kernels on the fuzzer's bytes: guards at both ends of the output show a byte
// too many.

import Glibc
import Host
import LinuxBoot

/// Compressed data of any format, into memory of which the ends are guarded.
enum DecompressorPart {
  private static let room = 64 << 10

  static func run(_ input: UnsafeRawBufferPointer) {
    loadLibraries
    guard let format = PayloadFormat(input.bytes),
      let memory = try? Mapping(anonymous: room, guards: true)
    else { return }
    // With all of the memory, and with the last byte of it.
    for count in [room, 1] {
      let start = memory.address + (room - count)
      var output = MutableRawSpan(_unsafeStart: start, byteCount: count)
      guard let written = format.decompress(input.bytes, into: &output) else { continue }
      check(written >= 0 && written <= count, "\(format): \(written) bytes into \(count)")
    }
  }

  /// Otherwise they are loaded for each input.
  private static let loadLibraries: Void = {
    for format in PayloadFormat.allCases { _ = dlopen(format.library, RTLD_NOW) }
  }()

  /// "martlet martlet martlet martlet" by gzip, xz, lz4 -l and zstd.
  static let seeds: [[UInt8]] = [
    [
      0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 3, 0xCB, 0x4D, 0x2C, 0x2A, 0xC9, 0x49, 0x2D, 0x51, 0xC8,
      0xC5, 0x4E, 3, 0, 0xCB, 0x1B, 0x0A, 0x0A, 0x1F, 0, 0, 0,
    ],
    [
      0xFD, 0x37, 0x7A, 0x58, 0x5A, 0, 0, 1, 0x69, 0x22, 0xDE, 0x36, 2, 1, 4, 0, 0x21, 1, 8, 0,
      0xD2, 0xB9, 0x74, 0xCB, 0xE0, 0, 0x1E, 0, 0x0F, 0x5D, 0, 0x36, 0x98, 0x4A, 0xAC, 0x21,
      0x4E, 0xCF, 0x43, 0xF3, 0x8F, 0xD4, 0xC1, 0x7E, 0, 0, 0, 0, 0xCB, 0x1B, 0x0A, 0x0A, 0, 1,
      0x27, 0x1F, 0xBB, 0x0A, 0x4B, 0x77, 0x90, 0x42, 0x99, 0x0D, 1, 0, 0, 0, 0, 1, 0x59, 0x5A,
    ],
    [
      2, 0x21, 0x4C, 0x18, 0x11, 0, 0, 0, 0x8E, 0x6D, 0x61, 0x72, 0x74, 0x6C, 0x65, 0x74, 0x20,
      8, 0, 0x50, 0x72, 0x74, 0x6C, 0x65, 0x74,
    ],
    [
      0x28, 0xB5, 0x2F, 0xFD, 0x24, 0x1F, 0x75, 0, 0, 0x40, 0x6D, 0x61, 0x72, 0x74, 0x6C, 0x65,
      0x74, 0x20, 1, 0, 0xEB, 0xCB, 5, 0x54, 0x64, 0x87, 0x2B,
    ],
  ]
}
