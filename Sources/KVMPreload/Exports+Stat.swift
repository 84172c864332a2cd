// SPDX-License-Identifier: Apache-2.0
//
// stat(2) and its variants, under their names in all versions of the C library.

import Glibc
import Host

public typealias Status = UnsafeMutablePointer<stat>

/// `fstat` describes the memory file; the client expects a device.
private func describeOwn(_ descriptor: Int32, _ result: Status?, _ done: Int32) -> Int32 {
  if done == 0, let result = unsafe result,
    case .system? = DescriptorTable.shared.known(descriptor)?.kind
  {
    unsafe DevicePath.describe(result)
  }
  return done
}

@_cdecl("stat") public func exported_stat(_ path: Path?, _ result: Status?) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.stat?(path, result) ?? fail(ENOSYS)
}

@_cdecl("stat64") public func exported_stat64(_ path: Path?, _ result: Status?) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.stat64?(path, result) ?? fail(ENOSYS)
}

@_cdecl("lstat") public func exported_lstat(_ path: Path?, _ result: Status?) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.lstat?(path, result) ?? fail(ENOSYS)
}

@_cdecl("lstat64") public func exported_lstat64(_ path: Path?, _ result: Status?) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.lstat64?(path, result) ?? fail(ENOSYS)
}

@_cdecl("fstat") public func exported_fstat(_ descriptor: Int32, _ result: Status?) -> Int32 {
  unsafe describeOwn(descriptor, result, Real.fstat?(descriptor, result) ?? fail(ENOSYS))
}

@_cdecl("fstat64") public func exported_fstat64(_ descriptor: Int32, _ result: Status?) -> Int32 {
  unsafe describeOwn(descriptor, result, Real.fstat64?(descriptor, result) ?? fail(ENOSYS))
}

@_cdecl("fstatat") public func exported_fstatat(
  _ directory: Int32, _ path: Path?, _ result: Status?, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.fstatat?(directory, path, result, flags) ?? fail(ENOSYS)
}

@_cdecl("fstatat64") public func exported_fstatat64(
  _ directory: Int32, _ path: Path?, _ result: Status?, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.fstatat64?(directory, path, result, flags) ?? fail(ENOSYS)
}

@_cdecl("__xstat") public func exported_xstat(
  _ version: Int32, _ path: Path?, _ result: Status?
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.xstat?(version, path, result) ?? fail(ENOSYS)
}

@_cdecl("__xstat64") public func exported_xstat64(
  _ version: Int32, _ path: Path?, _ result: Status?
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.xstat64?(version, path, result) ?? fail(ENOSYS)
}

@_cdecl("__lxstat") public func exported_lxstat(
  _ version: Int32, _ path: Path?, _ result: Status?
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.lxstat?(version, path, result) ?? fail(ENOSYS)
}

@_cdecl("__lxstat64") public func exported_lxstat64(
  _ version: Int32, _ path: Path?, _ result: Status?
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.lxstat64?(version, path, result) ?? fail(ENOSYS)
}

@_cdecl("__fxstat") public func exported_fxstat(
  _ version: Int32, _ descriptor: Int32, _ result: Status?
) -> Int32 {
  unsafe describeOwn(descriptor, result, Real.fxstat?(version, descriptor, result) ?? fail(ENOSYS))
}

@_cdecl("__fxstat64") public func exported_fxstat64(
  _ version: Int32, _ descriptor: Int32, _ result: Status?
) -> Int32 {
  unsafe describeOwn(
    descriptor, result, Real.fxstat64?(version, descriptor, result) ?? fail(ENOSYS))
}

@_cdecl("__fxstatat") public func exported_fxstatat(
  _ version: Int32, _ directory: Int32, _ path: Path?, _ result: Status?, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.fxstatat?(version, directory, path, result, flags) ?? fail(ENOSYS)
}

@_cdecl("__fxstatat64") public func exported_fxstatat64(
  _ version: Int32, _ directory: Int32, _ path: Path?, _ result: Status?, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.status(result) }
  return unsafe Real.fxstatat64?(version, directory, path, result, flags) ?? fail(ENOSYS)
}

@_cdecl("statx") public func exported_statx(
  _ directory: Int32, _ path: Path?, _ flags: Int32, _ mask: UInt32,
  _ result: UnsafeMutableRawPointer?
) -> Int32 {
  if unsafe DevicePath.matches(path) { return unsafe DevicePath.extendedStatus(result) }
  return unsafe Real.statx?(directory, path, flags, mask, result) ?? fail(ENOSYS)
}
