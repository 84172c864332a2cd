// SPDX-License-Identifier: Apache-2.0
//
// The name `/dev/kvm`, and the results of path-based calls for it.

import CHost
import Glibc

/// `/dev/kvm` as a name in the file system, whether or not the host has one.
enum DevicePath {
  /// Whether a path names the device: exactly, apart from repeated slashes.
  static func matches(_ path: UnsafePointer<CChar>?) -> Bool {
    guard var place = unsafe path, unsafe place[0] == slash else { return false }
    while unsafe place[1] == slash { unsafe place += 1 }
    let text: StaticString = "/dev/kvm"
    for index in 0...8 where unsafe place[index] != CChar(bitPattern: text.utf8Start[index]) {
      // A shorter path differs at its end.
      return false
    }
    return true
  }

  private static let slash = CChar(bitPattern: UInt8(ascii: "/"))

  /// The result of `access`.
  static func access(_ mode: Int32) -> Int32 { mode & Int32(X_OK) == 0 ? 0 : fail(EACCES) }

  /// The device's numbers: misc, kvm.
  private static let major: UInt32 = 10
  private static let minor: UInt32 = 232
  private static let mode: UInt32 = S_IFCHR | 0o666

  /// The result of `stat` and its variants.
  static func status(_ result: UnsafeMutablePointer<stat>?) -> Int32 {
    guard let result = unsafe result else { return fail(EFAULT) }
    guard let real = unsafe Real.stat else { return fail(ENOSYS) }
    if unsafe real("/dev", result) != 0 { return -1 }
    unsafe describe(result)
    return 0
  }

  /// The result of `fstat` for an open device.
  static func describe(_ result: UnsafeMutablePointer<stat>) {
    unsafe result.pointee.st_mode = mode
    unsafe result.pointee.st_rdev = UInt(major) << 8 | UInt(minor & 0xFF)
    unsafe result.pointee.st_size = 0
    unsafe result.pointee.st_blocks = 0
    unsafe result.pointee.st_nlink = 1
  }

  /// The result of `statx`; fields by offset, because Swift's Glibc lacks the struct.
  static func extendedStatus(_ result: UnsafeMutableRawPointer?) -> Int32 {
    guard let result = unsafe result else { return fail(EFAULT) }
    guard let real = unsafe Real.statx else { return fail(ENOSYS) }
    if unsafe real(AT_FDCWD, "/dev", 0, 0x7FF, result) != 0 { return -1 }
    unsafe result.storeBytes(of: UInt32(1), toByteOffset: 16, as: UInt32.self)  // stx_nlink
    unsafe result.storeBytes(of: UInt16(mode), toByteOffset: 28, as: UInt16.self)  // stx_mode
    unsafe result.storeBytes(of: UInt64(0), toByteOffset: 40, as: UInt64.self)  // stx_size
    unsafe result.storeBytes(of: UInt64(0), toByteOffset: 48, as: UInt64.self)  // stx_blocks
    unsafe result.storeBytes(of: major, toByteOffset: 128, as: UInt32.self)  // stx_rdev_major
    unsafe result.storeBytes(of: minor, toByteOffset: 132, as: UInt32.self)  // stx_rdev_minor
    return 0
  }
}
