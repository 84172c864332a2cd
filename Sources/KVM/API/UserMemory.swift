// SPDX-License-Identifier: Apache-2.0
//
// What an ioctl's argument points at. The client is in this process, so its pointers are used as
// they are; only a null pointer is EFAULT.

import SystemPackage

/// The argument of an ioctl: a value, or the address of a struct.
struct Argument {
  let value: UInt

  /// The address that the argument is.
  func pointer() throws(Errno) -> UnsafeMutableRawPointer {
    guard let pointer = UnsafeMutableRawPointer(bitPattern: value) else { throw .badAddress }
    return pointer
  }

  /// Copies the struct in.
  func read<T>(_ type: T.Type = T.self) throws(Errno) -> T {
    try pointer().loadUnaligned(as: T.self)
  }

  /// Copies a struct out.
  func write<T>(_ value: T) throws(Errno) {
    let pointer = try pointer()
    withUnsafeBytes(of: value) { pointer.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
  }

  /// Reads element `index` of the array that starts `offset` bytes into the struct.
  func element<T>(_ index: Int, at offset: Int, as type: T.Type = T.self) throws(Errno) -> T {
    try pointer().loadUnaligned(
      fromByteOffset: offset &+ index &* MemoryLayout<T>.stride, as: T.self)
  }

  /// Writes element `index` of the array that starts `offset` bytes into the struct.
  func setElement<T>(_ index: Int, at offset: Int, to value: T) throws(Errno) {
    let place = try pointer() + (offset &+ index &* MemoryLayout<T>.stride)
    withUnsafeBytes(of: value) { place.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
  }
}

/// The methods of one kind of object by ioctl number.
struct IoctlTable<Object>: Sendable {
  typealias Method = @Sendable (Object, Argument) throws(Errno) -> Int32
  private var methods: [UInt32: Method] = [:]
  /// What Linux answers to a number that this kind of object does not have.
  private let missing: Errno

  /// Joins the families of an object's ioctls.
  init(_ families: [[(UInt32, Method)]], missing: Errno) {
    self.missing = missing
    for family in families {
      for (request, method) in family { methods[request] = method }
    }
  }

  /// Calls the method of `request`, compared by its low 32 bits as Linux does.
  ///
  /// - Throws: `missing` where there is none.
  func call(_ object: Object, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
    guard let method = methods[request] else { throw missing }
    return try method(object, Argument(value: argument))
  }
}
