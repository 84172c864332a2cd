// SPDX-License-Identifier: Apache-2.0
//
// Memory that an ioctl's argument points to. The client is in this process. Unmapped memory yields
// EFAULT if the program handles SIGSEGV and SIGBUS (`GuardedCopy`).

import Host
import SystemPackage

/// The argument of an ioctl: a value, or the address of a struct.
struct Argument {
  let value: UInt

  /// The argument as an address.
  func pointer() throws(Errno) -> UnsafeMutableRawPointer {
    guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: value) else { throw .badAddress }
    return unsafe pointer
  }

  /// Copies the struct in.
  func read<T>(_ type: T.Type = T.self) throws(Errno) -> T { try load(0) }

  /// Copies a struct out.
  func write<T>(_ value: T) throws(Errno) { try store(value, 0) }

  /// Reads element `index` of the array that starts `offset` bytes into the struct.
  func element<T>(_ index: Int, at offset: Int, as type: T.Type = T.self) throws(Errno) -> T {
    try load(offset &+ index &* MemoryLayout<T>.stride)
  }

  /// Writes element `index` of the array that starts `offset` bytes into the struct.
  func setElement<T>(_ index: Int, at offset: Int, to value: T) throws(Errno) {
    try store(value, offset &+ index &* MemoryLayout<T>.stride)
  }

  /// Copies in the array that the argument points to.
  func elements<T: FixedWidthInteger>(_ count: Int) throws(Errno) -> [T] {
    let source = try unsafe pointer()
    var copied = false
    let all = unsafe [T](unsafeUninitializedCapacity: count) { buffer, initialized in
      let bytes = UnsafeMutableRawBufferPointer(buffer)
      unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
      copied = unsafe GuardedCopy.copy(from: source, to: bytes.baseAddress, count: bytes.count)
      initialized = count
    }
    guard copied else { throw .badAddress }
    return all
  }

  /// Copies as many bytes in as there is room for.
  func read(into room: inout MutableRawSpan) throws(Errno) {
    let source = try unsafe pointer()
    let copied = unsafe room.withUnsafeMutableBytes {
      unsafe GuardedCopy.copy(from: source, to: $0.baseAddress, count: $0.count)
    }
    guard copied else { throw .badAddress }
  }

  /// Copies bytes out to where the argument points.
  func write(_ bytes: RawSpan) throws(Errno) {
    let target = try unsafe pointer()
    let copied = unsafe bytes.withUnsafeBytes {
      unsafe GuardedCopy.copy(from: $0.baseAddress, to: target, count: $0.count)
    }
    guard copied else { throw .badAddress }
  }

  private func load<T>(_ offset: Int) throws(Errno) -> T {
    let source = unsafe UnsafeRawPointer(try pointer()) + offset
    return try unsafe withUnsafeTemporaryAllocation(of: T.self, capacity: 1) {
      (place) throws(Errno) in
      let base = UnsafeMutableRawPointer(place.baseAddress)
      guard let base = unsafe base,
        unsafe GuardedCopy.copy(from: source, to: base, count: MemoryLayout<T>.size)
      else {
        throw .badAddress
      }
      return unsafe base.load(as: T.self)
    }
  }

  private func store<T>(_ value: T, _ offset: Int) throws(Errno) {
    let place = try unsafe pointer() + offset
    let done = unsafe withUnsafeBytes(of: value) {
      unsafe GuardedCopy.copy(from: $0.baseAddress, to: place, count: $0.count)
    }
    guard done else { throw .badAddress }
  }
}

/// The ioctl methods of one kind of object, by number.
struct IoctlTable<Object>: Sendable {
  typealias Method = @Sendable (Object, Argument) throws(Errno) -> Int32
  private var methods: [UInt32: Method] = [:]
  /// Linux's error for a number that this kind of object does not have.
  private let missing: Errno

  /// Joins an object's families of ioctls.
  init(_ families: [[(UInt32, Method)]], missing: Errno) {
    self.missing = missing
    for family in families {
      for (request, method) in family { methods[request] = method }
    }
  }

  /// Calls the method of `request`; like Linux, compares the low 32 bits.
  ///
  /// - Throws: `missing` if there is none.
  func call(_ object: Object, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
    guard let method = methods[request] else { throw missing }
    return try method(object, Argument(value: argument))
  }
}
