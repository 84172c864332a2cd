// SPDX-License-Identifier: Apache-2.0
//
// The 1 KiB register page of a local APIC, allocated separately. An InlineArray in the struct would
// be simpler, but the compiler copies all of it for each indexed read, which costs more than any
// operation of the chip.
//
// Invariant: only this value uses the memory, and every access is at an index below 256.

/// Sendable because it is not copied: the owner of the local APIC has the page.
@safe struct RegisterPage: ~Copyable, @unchecked Sendable {
  /// Size of the page.
  static let size = 1024

  private let words: UnsafeMutablePointer<UInt32>

  init() {
    unsafe words = .allocate(capacity: Self.size / 4)
    unsafe words.initialize(repeating: 0, count: Self.size / 4)
  }

  deinit { unsafe words.deallocate() }

  /// The register at byte `offset`.
  subscript(_ offset: Int) -> UInt32 {
    @inline(__always) get { unsafe words[(offset >> 2) & 0xFF] }
    @inline(__always) nonmutating set { unsafe words[(offset >> 2) & 0xFF] = newValue }
  }

  func clear() { unsafe words.update(repeating: 0, count: Self.size / 4) }
}
