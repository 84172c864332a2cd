// SPDX-License-Identifier: Apache-2.0
//
// Little-endian and big-endian values in byte arrays, with bounds checks for offsets from files or
// guests.

extension Array where Element == UInt8 {
  /// The value at an offset; nil if the array is too short.
  package func load<Value: FixedWidthInteger>(_ type: Value.Type, at offset: Int) -> Value? {
    guard offset >= 0, offset <= count - MemoryLayout<Value>.size else { return nil }
    var value: Value = 0
    for index in (0..<MemoryLayout<Value>.size).reversed() {
      value = value << 8 | Value(truncatingIfNeeded: self[offset + index])
    }
    return value
  }

  /// Overwrites the bytes at a valid offset.
  package mutating func store<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
    for index in 0..<MemoryLayout<Value>.size {
      self[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
    }
  }

  /// Appends a value.
  package mutating func append<Value: FixedWidthInteger>(little value: Value) {
    for index in 0..<MemoryLayout<Value>.size {
      append(UInt8(truncatingIfNeeded: value >> (8 * index)))
    }
  }

  /// The big-endian value at an offset; nil if the array is too short.
  package func load<Value: FixedWidthInteger>(big type: Value.Type, at offset: Int) -> Value? {
    load(type, at: offset).map(\.byteSwapped)
  }

  /// Overwrites the bytes at a valid offset with a big-endian value.
  package mutating func store<Value: FixedWidthInteger>(big value: Value, at offset: Int) {
    store(value.byteSwapped, at: offset)
  }

  package mutating func append<Value: FixedWidthInteger>(big value: Value) {
    append(little: value.byteSwapped)
  }
}
