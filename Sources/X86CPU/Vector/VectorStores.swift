// SPDX-License-Identifier: Apache-2.0
//
// Stores of more than 8 bytes, and masked accesses. Every page of a store is checked before the
// first byte changes.

import X86

/// Memory checked to be writable: one or two pieces, each with a host pointer, or without one if
/// bytes must go through `store` (MMIO, code pages, breakpoints).
struct WriteReservation {
  var linear: UInt64
  var size: Int
  /// Bytes in the first page.
  var split: Int
  var first: UnsafeMutableRawPointer?
  var second: UnsafeMutableRawPointer?
}

extension CPU {
  /// Wraps linear addresses at 4 GiB outside 64-bit mode.
  @inline(__always) func wrapped(_ linear: UInt64) -> UInt64 {
    is64Bit ? linear : linear & 0xFFFF_FFFF
  }

  /// Checks that `size` (up to 4096) bytes may be written; faults as the write would.
  func reserveWrite(_ linear: UInt64, size: Int) throws(GuestException) -> WriteReservation {
    try checkAlignment(linear, size)
    let split = min(size, Int(Page.size) - Int(linear & Page.offsetMask))
    var reservation = WriteReservation(linear: linear, size: size, split: split)
    reservation.first = try pointerForModify(linear, size: split)
    if split < size {
      let next = wrapped(linear &+ UInt64(split))
      reservation.second = try pointerForModify(next, size: size - split)
    }
    return reservation
  }

  /// Copies the current content of the reserved bytes, if they have host pointers.
  func prefill(_ target: UnsafeMutableRawPointer, from reservation: WriteReservation) {
    if let first = reservation.first {
      target.copyMemory(from: first, byteCount: reservation.split)
    }
    if let second = reservation.second {
      (target + reservation.split).copyMemory(
        from: second, byteCount: reservation.size - reservation.split)
    }
  }

  /// Writes the reserved bytes.
  func commit(
    _ reservation: WriteReservation, from source: UnsafeRawPointer
  ) throws(GuestException) {
    let split = reservation.split
    if let first = reservation.first {
      first.copyMemory(from: source, byteCount: split)
    } else {
      try storePieces(reservation.linear, source, split)
    }
    guard split < reservation.size else { return }
    let rest = reservation.size - split
    if let second = reservation.second {
      second.copyMemory(from: source + split, byteCount: rest)
    } else {
      try storePieces(wrapped(reservation.linear &+ UInt64(split)), source + split, rest)
    }
  }

  private func storePieces(
    _ linear: UInt64, _ source: UnsafeRawPointer, _ size: Int
  ) throws(GuestException) {
    var done = 0
    while done < size {
      let address = linear &+ UInt64(done)
      let rest = size - done
      if rest >= 8 {
        try store(source.loadUnaligned(fromByteOffset: done, as: UInt64.self), at: address)
        done += 8
      } else if rest >= 4 {
        try store(source.loadUnaligned(fromByteOffset: done, as: UInt32.self), at: address)
        done += 4
      } else if rest >= 2 {
        try store(source.loadUnaligned(fromByteOffset: done, as: UInt16.self), at: address)
        done += 2
      } else {
        try store(source.load(fromByteOffset: done, as: UInt8.self), at: address)
        done += 1
      }
    }
  }

  // MARK: Masked accesses

  /// One bit for each element of the memory operand that the instruction accesses.
  func activeElements(_ mask: ElementMask) -> UInt64 {
    let all = mask.elements >= 64 ? UInt64.max : (1 &<< UInt64(mask.elements)) &- 1
    let bits = opmask[Int(mask.register & 7)] & all
    switch mask.kind {
    case .none: return all
    case .opmask: return bits
    case .any: return bits == 0 ? 0 : 1
    case .repeated:
      var folded: UInt64 = 0
      for element in 0..<UInt64(mask.elements) where bits >> element & 1 != 0 {
        folded |= 1 << (element % UInt64(max(mask.repeats, 1)))
      }
      return folded
    case .count:
      let count = UInt64(bits.nonzeroBitCount)
      return count >= 64 ? .max : (1 &<< count) &- 1
    case .signs: return signs(mask)
    }
  }

  private func signs(_ mask: ElementMask) -> UInt64 {
    let register = vectorRegister(mask.register)
    var bits: UInt64 = 0
    for element in 0..<Int(mask.elements) {
      let last = element * Int(mask.elementSize) + Int(mask.elementSize) - 1
      if register.load(fromByteOffset: last, as: UInt8.self) & 0x80 != 0 { bits |= 1 << element }
    }
    return bits
  }

  /// Reads only the active elements of the memory operand; the others are 0.
  @inline(never) func maskedRead(
    _ linear: UInt64, _ stub: StubPointer
  ) throws(GuestException) -> UnsafeRawPointer {
    let mask = stub.pointee.mask
    let size = Int(mask.elementSize)
    let buffer = bounce
    buffer.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
    var active = activeElements(mask)
    while active != 0 {
      let offset = active.trailingZeroBitCount * size
      let source = try withoutAlignmentChecks { () throws(GuestException) in
        try pointerForRead(wrapped(linear &+ UInt64(offset)), size: size)
      }
      (buffer + offset).copyMemory(from: source, byteCount: size)
      active &= active - 1
    }
    return UnsafeRawPointer(buffer)
  }

  /// Checks that all elements with set bits are writable.
  func reserveElements(
    _ linear: UInt64, _ active: UInt64, size: Int
  ) throws(GuestException) {
    var rest = active
    while rest != 0 {
      let offset = rest.trailingZeroBitCount * size
      _ = try withoutAlignmentChecks { () throws(GuestException) in
        try reserveWrite(wrapped(linear &+ UInt64(offset)), size: size)
      }
      rest &= rest - 1
    }
  }

  /// Writes the elements with set bits.
  func commitElements(
    _ linear: UInt64, _ active: UInt64, size: Int, from source: UnsafeRawPointer
  ) throws(GuestException) {
    var rest = active
    while rest != 0 {
      let offset = rest.trailingZeroBitCount * size
      try withoutAlignmentChecks { () throws(GuestException) in
        try storeBytes(source + offset, at: wrapped(linear &+ UInt64(offset)), size: size)
      }
      rest &= rest - 1
    }
  }
}
