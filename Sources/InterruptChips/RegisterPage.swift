// SPDX-License-Identifier: Apache-2.0
//
// The 1 KiB register page of a local APIC, out of line. An InlineArray in the struct would be the
// simpler storage, but the compiler copies all of it for each indexed read, which costs more than
// any operation of the chip.
//
// The page may be borrowed: the virtual-APIC page of a VMCS has the same layout (SDM volume 3,
// "Virtual APIC State"), so one page can serve both.

struct RegisterPage: ~Copyable, @unchecked Sendable {
  /// Bytes of the page that hold registers.
  static let size = 1024

  private let words: UnsafeMutablePointer<UInt32>
  private let isOwned: Bool

  /// A page of its own, or `storage`: at least 1 KiB, aligned to 4, that outlives this value.
  init(storage: UnsafeMutableRawPointer?) {
    let base = storage ?? .allocate(byteCount: Self.size, alignment: 64)
    isOwned = storage == nil
    words = base.bindMemory(to: UInt32.self, capacity: Self.size / 4)
    clear()
  }

  deinit {
    if isOwned { UnsafeMutableRawPointer(words).deallocate() }
  }

  /// The register at byte `offset`.
  subscript(_ offset: Int) -> UInt32 {
    @inline(__always) get { words[(offset >> 2) & 0xFF] }
    @inline(__always) nonmutating set { words[(offset >> 2) & 0xFF] = newValue }
  }

  func clear() { words.update(repeating: 0, count: Self.size / 4) }
}
