// SPDX-License-Identifier: Apache-2.0
//
// A library of the host that is loaded when something needs it, so that the program neither depends
// on it nor pays for it at its start.
//
//     guard let library = SharedLibrary("liblz4.so.1") else { return nil }
//     let version = library.function("LZ4_versionNumber", as: (@convention(c) () -> Int32).self)

#if canImport(Glibc)
  import Glibc
#endif

@safe package struct SharedLibrary: ~Copyable {
  private let handle: UnsafeMutableRawPointer

  /// - Parameter name: as the loader looks for it, with the number of its interface.
  package init?(_ name: String) {
    guard let handle = unsafe dlopen(name, RTLD_NOW | RTLD_LOCAL) else { return nil }
    unsafe self.handle = unsafe handle
  }

  deinit { unsafe dlclose(handle) }

  /// Leaves the library loaded as long as the program runs.
  package consuming func keep() { discard self }

  /// A function, valid as long as the library lives; nil where the library has none of this name.
  ///
  /// - Parameter type: its type in C; nothing checks it.
  package func function<Function>(_ name: String, as type: Function.Type) -> Function? {
    guard let address = unsafe dlsym(handle, name),
      unsafe MemoryLayout<Function>.size == MemoryLayout<UnsafeMutableRawPointer>.size
    else { return nil }
    return unsafe unsafeBitCast(address, to: type)
  }
}
