// SPDX-License-Identifier: Apache-2.0
//
// open(2) and its variants. The variadic ones declare their optional argument as a register that
// may hold anything: x86-64 passes variadic integers like plain ones.

import Glibc

public typealias Path = UnsafePointer<CChar>

@_cdecl("open") public func exportedOpen(_ path: Path?, _ flags: Int32, _ mode: UInt32) -> Int32 {
  if unsafe DevicePath.matches(path) { return Library.openDevice(flags) }
  return unsafe Real.open?(path, flags, mode) ?? fail(ENOSYS)
}

@_cdecl("open64") public func exportedOpen64(
  _ path: Path?, _ flags: Int32, _ mode: UInt32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return Library.openDevice(flags) }
  return unsafe Real.open64?(path, flags, mode) ?? fail(ENOSYS)
}

@_cdecl("__open_2") public func exportedOpen2(_ path: Path?, _ flags: Int32) -> Int32 {
  if unsafe DevicePath.matches(path) { return Library.openDevice(flags) }
  return unsafe Real.open2?(path, flags) ?? fail(ENOSYS)
}

@_cdecl("__open64_2") public func exportedOpen642(_ path: Path?, _ flags: Int32) -> Int32 {
  if unsafe DevicePath.matches(path) { return Library.openDevice(flags) }
  return unsafe Real.open642?(path, flags) ?? fail(ENOSYS)
}

@_cdecl("openat") public func exportedOpenAt(
  _ directory: Int32, _ path: Path?, _ flags: Int32, _ mode: UInt32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return Library.openDevice(flags) }
  return unsafe Real.openat?(directory, path, flags, mode) ?? fail(ENOSYS)
}

@_cdecl("openat64") public func exportedOpenAt64(
  _ directory: Int32, _ path: Path?, _ flags: Int32, _ mode: UInt32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return Library.openDevice(flags) }
  return unsafe Real.openat64?(directory, path, flags, mode) ?? fail(ENOSYS)
}

@_cdecl("__openat_2") public func exportedOpenAt2(
  _ directory: Int32, _ path: Path?, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return Library.openDevice(flags) }
  return unsafe Real.openat2?(directory, path, flags) ?? fail(ENOSYS)
}

@_cdecl("__openat64_2") public func exportedOpenAt642(
  _ directory: Int32, _ path: Path?, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return Library.openDevice(flags) }
  return unsafe Real.openat642?(directory, path, flags) ?? fail(ENOSYS)
}

// MARK: access(2)

@_cdecl("access") public func exportedAccess(_ path: Path?, _ mode: Int32) -> Int32 {
  if unsafe DevicePath.matches(path) { return DevicePath.access(mode) }
  return unsafe Real.access?(path, mode) ?? fail(ENOSYS)
}

@_cdecl("eaccess") public func exportedEAccess(_ path: Path?, _ mode: Int32) -> Int32 {
  if unsafe DevicePath.matches(path) { return DevicePath.access(mode) }
  return unsafe Real.eaccess?(path, mode) ?? fail(ENOSYS)
}

@_cdecl("euidaccess") public func exportedEUIDAccess(_ path: Path?, _ mode: Int32) -> Int32 {
  if unsafe DevicePath.matches(path) { return DevicePath.access(mode) }
  return unsafe Real.euidaccess?(path, mode) ?? fail(ENOSYS)
}

@_cdecl("faccessat") public func exportedAccessAt(
  _ directory: Int32, _ path: Path?, _ mode: Int32, _ flags: Int32
) -> Int32 {
  if unsafe DevicePath.matches(path) { return DevicePath.access(mode) }
  return unsafe Real.faccessat?(directory, path, mode, flags) ?? fail(ENOSYS)
}
