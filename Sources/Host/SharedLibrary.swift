// SPDX-License-Identifier: Apache-2.0
//
// A host library loaded on demand, so that the program neither depends on it nor pays for it at
// start.
//
//     guard let library = SharedLibrary("liblz4.so.1") else { return nil }
//     let version = library.function("LZ4_versionNumber", as: (@convention(c) () -> Int32).self)

#if canImport(Glibc)
  import Glibc
#endif

@safe package struct SharedLibrary: ~Copyable {
  private let handle: UnsafeMutableRawPointer

  /// - Parameter name: for the loader, including the interface number.
  package init?(_ name: String) {
    guard let handle = unsafe dlopen(name, RTLD_NOW | RTLD_LOCAL) else { return nil }
    unsafe self.handle = unsafe handle
  }

  deinit { unsafe dlclose(handle) }

  /// Keeps the library loaded for the life of the program.
  package consuming func keep() { discard self }

  /// A function, valid as long as the library lives; nil if the library lacks it.
  ///
  /// - Parameter type: its C type, unchecked.
  package func function<Function>(_ name: String, as type: Function.Type) -> Function? {
    guard let address = unsafe dlsym(handle, name),
      unsafe MemoryLayout<Function>.size == MemoryLayout<UnsafeMutableRawPointer>.size
    else { return nil }
    return unsafe unsafeBitCast(address, to: type)
  }
}
