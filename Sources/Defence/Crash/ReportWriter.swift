// SPDX-License-Identifier: Apache-2.0
//
// Text output in signal handlers: no allocation, no lock, no Swift strings except literals.

import CHost
import Glibc
import Host

struct ReportWriter {
  private static let capacity = 4096
  /// Reports are written one at a time.
  nonisolated(unsafe) private static let buffer = UnsafeMutablePointer<UInt8>.allocate(
    capacity: capacity)

  private var used = 0
  private let error: Int32
  /// -1: none.
  private let file: Int32

  /// Allocates what handlers use.
  static func prepare() { unsafe buffer.initialize(repeating: 0, count: capacity) }

  init(error: Int32, file: Int32) {
    self.error = error
    self.file = file
  }

  mutating func put(_ byte: UInt8) {
    if used == Self.capacity { flush() }
    unsafe Self.buffer[used] = byte
    used += 1
  }

  mutating func put(_ text: StaticString) {
    for index in 0..<text.utf8CodeUnitCount { unsafe put(text.utf8Start[index]) }
  }

  /// Writes at most 400 bytes, without control characters. The label prevents calls with literals,
  /// which would convert to pointers.
  mutating func put(cString text: UnsafePointer<CChar>) {
    var index = 0
    while index < 400, unsafe text[index] != 0 {
      let byte = unsafe UInt8(bitPattern: text[index])
      put(byte < 32 ? UInt8(ascii: "?") : byte)
      index += 1
    }
  }

  mutating func put(hex value: UInt64, digits: Int = 1) {
    var shift = 60
    while shift > 0, value >> UInt64(shift) == 0, shift >= digits * 4 { shift -= 4 }
    while shift >= 0 {
      let digit = UInt8(truncatingIfNeeded: value >> UInt64(shift)) & 15
      put(digit < 10 ? 48 + digit : 87 + digit)
      shift -= 4
    }
  }

  mutating func put(decimal value: Int) {
    if value < 0 { put(UInt8(ascii: "-")) }
    let magnitude = value.magnitude
    var divisor: UInt = 1
    while magnitude / divisor >= 10 { divisor *= 10 }
    while divisor > 0 {
      put(48 + UInt8(truncatingIfNeeded: magnitude / divisor % 10))
      divisor /= 10
    }
  }

  mutating func line(_ name: StaticString, hex value: UInt64) {
    put(name)
    put(" 0x")
    put(hex: value)
    put("\n")
  }

  mutating func flush() {
    Self.write(error, used)
    if file >= 0 { Self.write(file, used) }
    used = 0
  }

  private static func write(_ descriptor: Int32, _ count: Int) {
    var done = 0
    while done < count {
      let written = unsafe Glibc.write(descriptor, buffer + done, count - done)
      if written <= 0 { return }
      done += written
    }
  }
}

/// Reads of memory that may be unmapped.
enum CarefulRead {
  /// - Returns: whether all bytes could be read.
  static func copy(_ address: UInt, _ place: UnsafeMutableRawPointer, _ count: Int) -> Bool {
    var local = unsafe iovec(iov_base: place, iov_len: count)
    var remote = unsafe iovec(
      iov_base: UnsafeMutableRawPointer(bitPattern: address), iov_len: count)
    return unsafe withUnsafeMutablePointer(to: &local) { local in
      unsafe withUnsafeMutablePointer(to: &remote) { remote in
        chost_syscall(
          Int(SYS_process_vm_readv), Int(getpid()), Int(bitPattern: local), 1,
          Int(bitPattern: remote), 1, 0) == count
      }
    }
  }

  static func word(_ address: UInt) -> UInt? {
    var value: UInt = 0
    return unsafe copy(address, &value, 8) ? value : nil
  }
}
