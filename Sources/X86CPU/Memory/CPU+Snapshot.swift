// SPDX-License-Identifier: Apache-2.0
//
// Operands that are checked before use, or used more than once: another CPU may change them at any
// time, so they are copied first, and only the copy is read.
//
//     let header = try c.snapshot(address, size: 64)
//
// Operands of up to 8 bytes need no copy: `load` reads them once into a register.

import X86

extension CPU {
  /// A copy of `size` (up to 4096) bytes of guest memory, in a buffer that is valid until the next
  /// access without a host pointer.
  func snapshot(_ linear: UInt64, size: Int) throws(GuestException) -> UnsafeRawPointer {
    let source = try pointerForRead(linear, size: size)
    let buffer = owner.bounce
    if source != UnsafeRawPointer(buffer) {
      Self.copyOnce(from: source, to: buffer, byteCount: size)
    }
    return UnsafeRawPointer(buffer)
  }

  /// Copies memory that others may be writing. Not inlined: an optimizer that sees through a copy
  /// may read its source again instead.
  @inline(never) static func copyOnce(
    from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int
  ) {
    target.copyMemory(from: source, byteCount: byteCount)
  }
}
