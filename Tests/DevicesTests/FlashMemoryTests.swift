// SPDX-License-Identifier: Apache-2.0
//
// The flash chip against Intel's command set, with what it says of its visibility and what it
// keeps; and which boot loaders a disk's tables show.

import Devices
import Synchronization
import SystemPackage
import TestRandom
import Testing

@Suite struct FlashMemoryTests {
  private typealias Command = FlashMemory.Command
  private typealias Status = FlashMemory.Status
  private static let size = 4 * FlashMemory.blockSize

  /// A chip, and what it has said of itself.
  private final class Chip: Sendable {
    let visibility = Mutex<[Bool]>([])
    let kept = Mutex<[Int: Int]>([:])
    let error = Mutex<Errno?>(nil)

    func make(_ bytes: [UInt8]) throws -> FlashMemory {
      try FlashMemory(
        bytes, visibility: { [self] isMemory in visibility.withLock { $0.append(isMemory) } },
        keep: { [self] (start, bytes) throws(Errno) in
          if let error = error.withLock({ $0 }) { throw error }
          kept.withLock { $0[start] = bytes.byteCount }
        })
    }
  }

  private func write(_ chip: FlashMemory, _ offset: UInt64, _ values: UInt8...) {
    for value in values { chip.write(offset: offset, width: 1, value: UInt64(value)) }
  }

  @Test func programmingClearsBitsAndErasingSetsThem() throws {
    let log = Chip()
    let chip = try log.make([UInt8](repeating: 0x0F, count: Self.size))
    #expect(chip.read(offset: 1, width: 4) == 0x0F0F_0F0F)
    write(chip, 5000, Command.program, 0xF5)
    #expect(chip.read(offset: 5000, width: 1) == UInt64(Status.ready))
    #expect(log.visibility.withLock { $0 } == [false] && log.kept.withLock { $0 } == [5000: 1])
    write(chip, 5000, Command.readArray)
    #expect(log.visibility.withLock { $0 } == [false, true])
    #expect(chip.read(offset: 5000, width: 1) == 0x05)
    write(chip, 5000, Command.erase, Command.eraseConfirm, Command.readArray)
    #expect(chip.read(offset: 4096, width: 8) == .max && chip.read(offset: 8191, width: 1) == 0xFF)
    #expect(chip.read(offset: 4095, width: 1) == 0x0F && chip.read(offset: 8192, width: 1) == 0x0F)
    #expect(log.kept.withLock { $0 } == [5000: 1, 4096: 4096])
  }

  /// As OVMF finds out that there is a chip, and neither memory nor nothing.
  @Test func theStatusCanBeCleared() throws {
    let chip = try Chip().make([UInt8](repeating: 0xAA, count: Self.size))
    write(chip, 0, Command.clearStatus)
    #expect(chip.read(offset: 0, width: 1) == 0xAA)
    write(chip, 0, Command.readStatus)
    #expect(chip.read(offset: 0, width: 1) == 0)
    write(chip, 0, Command.query)
    #expect(chip.read(offset: 0x10, width: 4) & 0xFF_FFFF == 0x59_5251)
    write(chip, 0, Command.readIdentifier)
    #expect(chip.read(offset: 0, width: 1) == 0x89)
  }

  @Test func failuresAreInTheStatus() throws {
    let log = Chip()
    let chip = try log.make([UInt8](repeating: 0xFF, count: Self.size))
    write(chip, 0, Command.clearStatus, Command.erase, 0)
    let sequence = Status.ready | Status.eraseError | Status.programError
    #expect(chip.read(offset: 0, width: 1) == UInt64(sequence))
    log.error.withLock { $0 = .noSpace }
    write(chip, 0, Command.clearStatus, Command.program, 1)
    #expect(chip.read(offset: 0, width: 1) == UInt64(Status.ready | Status.programError))
    write(chip, 0, Command.clearStatus, Command.erase, Command.eraseConfirm)
    #expect(chip.read(offset: 0, width: 1) == UInt64(Status.ready | Status.eraseError))
    // A program of bytes that are not all there.
    log.error.withLock { $0 = nil }
    let end = UInt64(Self.size)
    chip.write(offset: end - 2, width: 1, value: UInt64(Command.program))
    chip.write(offset: end - 2, width: 4, value: 0)
    write(chip, 0, Command.readArray)
    #expect(chip.read(offset: end - 2, width: 4) == 0xFFFF_FFFF)
  }

  @Test func aResetReadsAsMemory() throws {
    let log = Chip()
    let chip = try log.make([UInt8](repeating: 1, count: Self.size))
    chip.resetWithMachine()
    write(chip, 0, Command.program)
    chip.resetWithMachine()
    #expect(log.visibility.withLock { $0 } == [false, true] && chip.read(offset: 0, width: 1) == 1)
  }

  @Test func randomAccesses() throws {
    var random = SplitMix(seed: 0xF1A5)
    let chip = try Chip().make([UInt8](repeating: 0xFF, count: Self.size))
    for _ in 0..<100_000 {
      let offset = random.oneIn(8) ? random.next() : UInt64(random.below(Self.size + 16))
      let width = 1 << random.below(4)
      if random.oneIn(2) {
        _ = chip.read(offset: offset, width: width)
      } else {
        chip.write(offset: offset, width: width, value: random.next() >> 1 & random.next())
      }
    }
    chip.write(offset: 0, width: 1, value: UInt64(Command.readArray))
  }
}

@Suite struct BootLoaderTests {
  private static let efiType: [UInt8] = [
    0x28, 0x73, 0x2A, 0xC1, 0x1F, 0xF8, 0xD2, 0x11, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B,
  ]

  /// A disk with a table of an EFI system partition as the second.
  private func disk(code: UInt8, kind: UInt8, table: Bool) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 34 * 512)
    bytes[0] = code
    bytes[446 + 4] = kind
    (bytes[510], bytes[511]) = (0x55, 0xAA)
    if table {
      bytes.replaceSubrange(512..<520, with: Array("EFI PART".utf8))
      (bytes[512 + 72], bytes[512 + 80], bytes[512 + 84]) = (2, 128, 128)
      bytes.replaceSubrange(1024 + 128..<1024 + 144, with: Self.efiType)
    }
    return bytes
  }

  @Test func theTablesSayWhatBoots() {
    let old = BootLoaders(start: disk(code: 0xEB, kind: 0x83, table: false))
    #expect(old.hasBIOS && !old.hasEFI)
    let efi = BootLoaders(start: disk(code: 0, kind: 0xEF, table: false))
    #expect(!efi.hasBIOS && efi.hasEFI)
    let gpt = BootLoaders(start: disk(code: 0, kind: 0xEE, table: true))
    #expect(!gpt.hasBIOS && gpt.hasEFI)
    let both = BootLoaders(start: disk(code: 1, kind: 0xEE, table: true))
    #expect(both.hasBIOS && both.hasEFI)
    // A table without a protective record is left over from something else.
    let stale = BootLoaders(start: disk(code: 1, kind: 0x83, table: true))
    #expect(stale.hasBIOS && !stale.hasEFI)
    for bytes in [[], [UInt8](repeating: 0, count: 512), [UInt8](repeating: 0xFF, count: 600)] {
      #expect(BootLoaders(start: bytes) == BootLoaders(start: []))
    }
  }

  @Test func damagedTablesAreNone() {
    var random = SplitMix(seed: 7)
    for _ in 0..<20_000 {
      var bytes = disk(code: 1, kind: 0xEE, table: true)
      bytes = Array(bytes.prefix(Int(random.next() % UInt64(bytes.count + 1))))
      for _ in 0..<4 where bytes.count > 600 {
        bytes[512 + Int(random.next() % 88)] = UInt8(truncatingIfNeeded: random.next())
      }
      _ = BootLoaders(start: bytes)
    }
  }
}
