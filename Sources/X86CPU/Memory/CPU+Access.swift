// SPDX-License-Identifier: Apache-2.0
//
// Loads and stores at linear addresses. The fast path is one TLB compare; all other cases (misses,
// page crossings, MMIO, code pages, breakpoints) are in CPU+SlowAccess.

import X86

extension CPU {
  @inline(__always) func tlbEntry(_ linear: UInt64) -> UnsafeMutablePointer<TLBEntry> {
    s.pointee.tlb + Int((linear >> Page.shift) & TLB.indexMask)
  }

  /// The tag that an access of `size` bytes at `linear` must match: an access that crosses into the
  /// next page compares that page's tag with this page's entry and never matches.
  @inline(__always) func tag(_ linear: UInt64, _ size: Int) -> UInt64 {
    (linear &+ UInt64(truncatingIfNeeded: size &- 1)) & Page.mask | s.pointee.tlbContext
  }

  /// The host address that a TLB entry gives for `linear` if its tag matches (`difference` is 0);
  /// else a harmless one. The host speculates past an access's check, so the address must depend on
  /// the check by arithmetic: the compiler turns a conditional expression into a branch. `matches`
  /// is the check's branch. It is written so that the compiler cannot infer that the difference is
  /// 0, because it would then drop the arithmetic. After any change here, inspect the machine code.
  @inline(__always) func guarded(
    _ linear: UInt64, _ entry: UnsafeMutablePointer<TLBEntry>, _ difference: UInt64
  ) -> UInt {
    let host = linear &+ entry.pointee.addend
    // The top bit of this is 1 only for 0.
    let isSame = (difference &- s.pointee.one) & ~difference
    let mask = 0 &- (isSame >> 63 & s.pointee.ones)
    return UInt((host ^ Self.harmlessAddress) & mask ^ Self.harmlessAddress)
  }

  @inline(__always) func matches(_ difference: UInt64) -> Bool {
    difference & s.pointee.ones == 0
  }

  /// In the first page, which no program maps.
  private static var harmlessAddress: UInt64 { 64 }

  /// Loads a little-endian integer with the privilege of the current CPL.
  @inline(__always) package func load<T: FixedWidthInteger & UnsignedInteger>(
    _ linear: UInt64, as type: T.Type = T.self
  ) throws(GuestException) -> T {
    let entry = tlbEntry(linear)
    let difference = entry.pointee.readTag ^ tag(linear, MemoryLayout<T>.size)
    let host = UnsafeRawPointer(bitPattern: guarded(linear, entry, difference))
    if matches(difference) {
      return host.unsafelyUnwrapped.loadUnaligned(as: T.self)
    }
    return T(truncatingIfNeeded: try loadSlow(linear, MemoryLayout<T>.size))
  }

  /// Stores a little-endian integer with the privilege of the current CPL.
  @inline(__always) package func store<T: FixedWidthInteger & UnsignedInteger>(
    _ value: T, at linear: UInt64
  ) throws(GuestException) {
    let entry = tlbEntry(linear)
    let difference = entry.pointee.writeTag ^ tag(linear, MemoryLayout<T>.size)
    let host = UnsafeMutableRawPointer(bitPattern: guarded(linear, entry, difference))
    if matches(difference) {
      host.unsafelyUnwrapped.storeBytes(of: value, as: T.self)
      return
    }
    try storeSlow(linear, UInt64(truncatingIfNeeded: value), MemoryLayout<T>.size)
  }

  /// A host pointer to `size` bytes of writable guest RAM, or nil if there is none (MMIO, a page
  /// crossing, a code page, a breakpoint): then use `load` and `store`. Faults as a write does.
  @inline(__always) package func pointerForModify(
    _ linear: UInt64, size: Int
  ) throws(GuestException) -> UnsafeMutableRawPointer? {
    let entry = tlbEntry(linear)
    let difference = entry.pointee.writeTag ^ tag(linear, size)
    let host = UnsafeMutableRawPointer(bitPattern: guarded(linear, entry, difference))
    if matches(difference) { return host }
    return try pointerForModifySlow(linear, size: size)
  }

  /// A host pointer to read `size` (up to 4096) bytes from; page crossings and MMIO use a bounce
  /// buffer that is valid until the next access.
  @inline(__always) package func pointerForRead(
    _ linear: UInt64, size: Int
  ) throws(GuestException) -> UnsafeRawPointer {
    let entry = tlbEntry(linear)
    let difference = entry.pointee.readTag ^ tag(linear, size)
    let host = UnsafeRawPointer(bitPattern: guarded(linear, entry, difference))
    if matches(difference) { return host.unsafelyUnwrapped }
    return try pointerForReadSlow(linear, size: size)
  }
}
