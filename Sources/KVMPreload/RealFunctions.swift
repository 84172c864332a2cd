// SPDX-License-Identifier: Apache-2.0
//
// The C library's functions that this library exports under the same names: the next definitions in
// the dynamic linker's search order. Code here that needs one of them must call it this way,
// because its plain name is the exported function.

import CHost
import Glibc

enum Real {
  typealias Path = UnsafePointer<CChar>
  typealias Open = @convention(c) (Path?, Int32, UInt32) -> Int32
  typealias Open2 = @convention(c) (Path?, Int32) -> Int32
  typealias OpenAt = @convention(c) (Int32, Path?, Int32, UInt32) -> Int32
  typealias OpenAt2 = @convention(c) (Int32, Path?, Int32) -> Int32
  typealias Ioctl = @convention(c) (Int32, UInt, UInt) -> Int32
  typealias Descriptor = @convention(c) (Int32) -> Int32
  typealias TwoDescriptors = @convention(c) (Int32, Int32) -> Int32
  typealias ThreeIntegers = @convention(c) (Int32, Int32, Int32) -> Int32
  typealias CloseRange = @convention(c) (UInt32, UInt32, Int32) -> Int32
  typealias CloseFrom = @convention(c) (Int32) -> Void
  typealias Fcntl = @convention(c) (Int32, Int32, UInt) -> Int32
  typealias Access = @convention(c) (Path?, Int32) -> Int32
  typealias AccessAt = @convention(c) (Int32, Path?, Int32, Int32) -> Int32
  typealias Stat = @convention(c) (Path?, UnsafeMutablePointer<stat>?) -> Int32
  typealias FStat = @convention(c) (Int32, UnsafeMutablePointer<stat>?) -> Int32
  typealias StatAt = @convention(c) (Int32, Path?, UnsafeMutablePointer<stat>?, Int32) -> Int32
  typealias XStat = @convention(c) (Int32, Path?, UnsafeMutablePointer<stat>?) -> Int32
  typealias FXStat = @convention(c) (Int32, Int32, UnsafeMutablePointer<stat>?) -> Int32
  typealias XStatAt =
    @convention(c) (Int32, Int32, Path?, UnsafeMutablePointer<stat>?, Int32) -> Int32
  typealias StatX =
    @convention(c) (Int32, Path?, Int32, UInt32, UnsafeMutableRawPointer?) -> Int32
  typealias Chown = @convention(c) (Path?, UInt32, UInt32) -> Int32
  typealias ChownAt = @convention(c) (Int32, Path?, UInt32, UInt32, Int32) -> Int32
  typealias Chmod = @convention(c) (Path?, UInt32) -> Int32
  typealias ChmodAt = @convention(c) (Int32, Path?, UInt32, Int32) -> Int32
  typealias GetXAttr = @convention(c) (Path?, Path?, UnsafeMutableRawPointer?, Int) -> Int
  typealias SetXAttr = @convention(c) (Path?, Path?, UnsafeRawPointer?, Int, Int32) -> Int32
  typealias Cancel = @convention(c) (pthread_t) -> Int32
  typealias SigMask =
    @convention(c) (Int32, UnsafePointer<sigset_t>?, UnsafeMutablePointer<sigset_t>?) -> Int32
  typealias SigAction =
    @convention(c) (Int32, UnsafePointer<sigaction>?, UnsafeMutablePointer<sigaction>?) -> Int32

  static let open = unsafe find("open", Open.self)
  static let open64 = unsafe find("open64", Open.self)
  static let open2 = unsafe find("__open_2", Open2.self)
  static let open642 = unsafe find("__open64_2", Open2.self)
  static let openat = unsafe find("openat", OpenAt.self)
  static let openat64 = unsafe find("openat64", OpenAt.self)
  static let openat2 = unsafe find("__openat_2", OpenAt2.self)
  static let openat642 = unsafe find("__openat64_2", OpenAt2.self)
  static let ioctl = find("ioctl", Ioctl.self)
  static let close = find("close", Descriptor.self)
  static let closeRange = find("close_range", CloseRange.self)
  static let closefrom = find("closefrom", CloseFrom.self)
  static let dup = find("dup", Descriptor.self)
  static let dup2 = find("dup2", TwoDescriptors.self)
  static let dup3 = find("dup3", ThreeIntegers.self)
  static let fcntl = find("fcntl", Fcntl.self)
  static let fcntl64 = find("fcntl64", Fcntl.self)
  static let access = unsafe find("access", Access.self)
  static let eaccess = unsafe find("eaccess", Access.self)
  static let euidaccess = unsafe find("euidaccess", Access.self)
  static let faccessat = unsafe find("faccessat", AccessAt.self)
  static let stat = unsafe find("stat", Stat.self)
  static let stat64 = unsafe find("stat64", Stat.self)
  static let lstat = unsafe find("lstat", Stat.self)
  static let lstat64 = unsafe find("lstat64", Stat.self)
  static let fstat = unsafe find("fstat", FStat.self)
  static let fstat64 = unsafe find("fstat64", FStat.self)
  static let fstatat = unsafe find("fstatat", StatAt.self)
  static let fstatat64 = unsafe find("fstatat64", StatAt.self)
  static let xstat = unsafe find("__xstat", XStat.self)
  static let xstat64 = unsafe find("__xstat64", XStat.self)
  static let lxstat = unsafe find("__lxstat", XStat.self)
  static let lxstat64 = unsafe find("__lxstat64", XStat.self)
  static let fxstat = unsafe find("__fxstat", FXStat.self)
  static let fxstat64 = unsafe find("__fxstat64", FXStat.self)
  static let fxstatat = unsafe find("__fxstatat", XStatAt.self)
  static let fxstatat64 = unsafe find("__fxstatat64", XStatAt.self)
  static let statx = unsafe find("statx", StatX.self)
  static let chown = unsafe find("chown", Chown.self)
  static let lchown = unsafe find("lchown", Chown.self)
  static let fchownat = unsafe find("fchownat", ChownAt.self)
  static let chmod = unsafe find("chmod", Chmod.self)
  static let fchmodat = unsafe find("fchmodat", ChmodAt.self)
  static let getxattr = unsafe find("getxattr", GetXAttr.self)
  static let lgetxattr = unsafe find("lgetxattr", GetXAttr.self)
  static let setxattr = unsafe find("setxattr", SetXAttr.self)
  static let lsetxattr = unsafe find("lsetxattr", SetXAttr.self)
  static let cancel = find("pthread_cancel", Cancel.self)
  static let sigmask = unsafe find("pthread_sigmask", SigMask.self)
  static let sigaction = unsafe find("sigaction", SigAction.self)

  /// The next definition of a C function; nil if the C library lacks it.
  private static func find<Function>(_ name: StaticString, _ type: Function.Type) -> Function? {
    let next = unsafe UnsafeMutableRawPointer(bitPattern: -1)  // RTLD_NEXT
    let text = unsafe UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self)
    guard let address = unsafe dlsym(next, text) else { return nil }
    return unsafe unsafeBitCast(address, to: Function.self)
  }
}

/// -1 with errno.
func fail(_ number: Int32) -> Int32 {
  errno = number
  return -1
}
