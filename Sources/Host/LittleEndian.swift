// SPDX-License-Identifier: Apache-2.0
//
// Little-endian and big-endian values in bytes of files, clients and guests: the one reader of such
// bytes. They come as spans, and each access is checked against the span's bounds, as whoever wrote
// the bytes also chooses the offsets.
//
//     guard let size = file.bytes.load(UInt32.self, at: 24) else { throw ... }

extension RawSpan {
  /// The value at an offset; nil where the bytes end before.
  @inlinable @inline(__always)
  package func load<Value: FixedWidthInteger & BitwiseCopyable>(
    _ type: Value.Type, at offset: Int
  ) -> Value? {
    guard offset >= 0, offset <= byteCount &- MemoryLayout<Value>.size else { return nil }
    return unsafe Value(
      littleEndian: unsafeLoadUnaligned(fromUncheckedByteOffset: offset, as: Value.self))
  }

  /// The big-endian value at an offset; nil where the bytes end before.
  @inlinable @inline(__always)
  package func load<Value: FixedWidthInteger & BitwiseCopyable>(
    big type: Value.Type, at offset: Int
  ) -> Value? {
    load(type, at: offset).map(\.byteSwapped)
  }

  /// The bytes of a range; nil where they do not all lie inside.
  @_lifetime(copy self)
  package func part(_ range: Range<Int>) -> RawSpan? {
    guard range.lowerBound >= 0, range.upperBound <= byteCount else { return nil }
    return extracting(range)
  }

  /// Whether these are the first bytes.
  package func starts(with prefix: [UInt8]) -> Bool {
    prefix.indices.allSatisfy { load(UInt8.self, at: $0) == prefix[$0] }
  }

  /// A copy.
  package var array: [UInt8] { unsafe withUnsafeBytes { unsafe [UInt8]($0) } }
}

extension MutableRawSpan {
  /// The bytes of a range, which must lie inside.
  @_lifetime(&self)
  package mutating func part(_ range: some RangeExpression<Int>) -> MutableRawSpan {
    _mutatingExtracting(range)
  }

  /// Overwrites the bytes from an offset on, where the source must fit.
  @_lifetime(self: copy self)
  package mutating func copy(from source: RawSpan, at offset: Int = 0) {
    var place = part(offset..<offset + source.byteCount)
    unsafe source.withUnsafeBytes { source in
      unsafe place.withUnsafeMutableBytes { unsafe $0.copyMemory(from: source) }
    }
  }

  /// Moves bytes, which must lie inside, to the start.
  @_lifetime(self: copy self)
  package mutating func moveToStart(_ part: Range<Int>) {
    unsafe withUnsafeMutableBytes {
      unsafe $0.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[part]))
    }
  }

  /// Makes all bytes the same.
  @_lifetime(self: copy self)
  package mutating func fill(_ value: UInt8) {
    unsafe withUnsafeMutableBytes { bytes in
      _ = unsafe bytes.initializeMemory(as: UInt8.self, repeating: value)
    }
  }
}

/// Calls a function with the bytes of a value: of a struct of the kernel that Swift sees as another
/// than it is.
package func withBytes<Value: BitwiseCopyable, Result>(
  of value: Value, _ body: (RawSpan) -> Result
) -> Result {
  unsafe withUnsafeBytes(of: value) { unsafe body($0.bytes) }
}

/// Calls a function with the bytes of a value, to be overwritten. Any bytes make a value: it has
/// numbers alone.
package func withMutableBytes<Value: BitwiseCopyable, Result>(
  of value: inout Value, _ body: (inout MutableRawSpan) -> Result
) -> Result {
  unsafe withUnsafeMutableBytes(of: &value) {
    var bytes = unsafe $0.mutableBytes
    return body(&bytes)
  }
}

extension Array where Element == UInt8 {
  /// The elements, to be read as other values.
  package var bytes: RawSpan { @_lifetime(borrow self) get { RawSpan(_elements: span) } }

  /// Calls a function with the elements, to be overwritten.
  package mutating func withMutableBytes<Result, Failure: Error>(
    _ body: (inout MutableRawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    var elements = mutableSpan
    var bytes = MutableRawSpan(_elements: &elements)
    return try body(&bytes)
  }

  /// The value at an offset; nil where the array is too short.
  package func load<Value: FixedWidthInteger & BitwiseCopyable>(
    _ type: Value.Type, at offset: Int
  ) -> Value? { bytes.load(type, at: offset) }

  /// The big-endian value at an offset; nil where the array is too short.
  package func load<Value: FixedWidthInteger & BitwiseCopyable>(
    big type: Value.Type, at offset: Int
  ) -> Value? { bytes.load(big: type, at: offset) }

  /// Adds bytes at the end.
  package mutating func append(_ bytes: RawSpan) {
    unsafe bytes.withUnsafeBytes { unsafe append(contentsOf: $0) }
  }

  /// Overwrites the bytes at a valid offset.
  package mutating func store<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
    for index in 0..<MemoryLayout<Value>.size {
      self[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
    }
  }

  /// Overwrites the bytes at an offset, which must lie inside, with a big-endian value.
  package mutating func store<Value: FixedWidthInteger>(big value: Value, at offset: Int) {
    store(value.byteSwapped, at: offset)
  }

  /// Adds a value at the end.
  package mutating func append<Value: FixedWidthInteger>(little value: Value) {
    for index in 0..<MemoryLayout<Value>.size {
      append(UInt8(truncatingIfNeeded: value >> (8 * index)))
    }
  }

  package mutating func append<Value: FixedWidthInteger>(big value: Value) {
    append(little: value.byteSwapped)
  }
}
