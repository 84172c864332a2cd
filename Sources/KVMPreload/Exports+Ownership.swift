// SPDX-License-Identifier: Apache-2.0
//
// Owner, mode and extended attributes of `/dev/kvm`, which libvirt sets before it starts QEMU.
// There is no file behind the name, and a host's real device must stay as it is: owner and mode are
// accepted without effect, and extended attributes fail as on a file system without them. All other
// paths go to the C library.

import Glibc

@_cdecl("chown") public func exported_chown(_ path: Path?, _ user: UInt32, _ group: UInt32) -> Int32
{
  if unsafe DevicePath.matches(path) { return 0 }
  return unsafe Real.chown?(path, user, group) ?? fail(ENOSYS)
}

@_cdecl("lchown") public func exported_lchown(
  _ path: Path?, _ user: UInt32, _ group: UInt32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return 0 }
  return unsafe Real.lchown?(path, user, group) ?? fail(ENOSYS)
}

@_cdecl("fchownat") public func exported_fchownat(
  _ directory: Int32, _ path: Path?, _ user: UInt32, _ group: UInt32, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return 0 }
  return unsafe Real.fchownat?(directory, path, user, group, flags) ?? fail(ENOSYS)
}

@_cdecl("chmod") public func exported_chmod(_ path: Path?, _ mode: UInt32) -> Int32 {
  if unsafe DevicePath.matches(path) { return 0 }
  return unsafe Real.chmod?(path, mode) ?? fail(ENOSYS)
}

@_cdecl("fchmodat") public func exported_fchmodat(
  _ directory: Int32, _ path: Path?, _ mode: UInt32, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return 0 }
  return unsafe Real.fchmodat?(directory, path, mode, flags) ?? fail(ENOSYS)
}

@_cdecl("getxattr") public func exported_getxattr(
  _ path: Path?, _ name: Path?, _ value: UnsafeMutableRawPointer?, _ size: Int
) -> Int {
  if unsafe DevicePath.matches(path) { return Int(fail(ENOTSUP)) }
  return unsafe Real.getxattr?(path, name, value, size) ?? Int(fail(ENOSYS))
}

@_cdecl("lgetxattr") public func exported_lgetxattr(
  _ path: Path?, _ name: Path?, _ value: UnsafeMutableRawPointer?, _ size: Int
) -> Int {
  if unsafe DevicePath.matches(path) { return Int(fail(ENOTSUP)) }
  return unsafe Real.lgetxattr?(path, name, value, size) ?? Int(fail(ENOSYS))
}

@_cdecl("setxattr") public func exported_setxattr(
  _ path: Path?, _ name: Path?, _ value: UnsafeRawPointer?, _ size: Int, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return fail(ENOTSUP) }
  return unsafe Real.setxattr?(path, name, value, size, flags) ?? fail(ENOSYS)
}

@_cdecl("lsetxattr") public func exported_lsetxattr(
  _ path: Path?, _ name: Path?, _ value: UnsafeRawPointer?, _ size: Int, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return fail(ENOTSUP) }
  return unsafe Real.lsetxattr?(path, name, value, size, flags) ?? fail(ENOSYS)
}
