// SPDX-License-Identifier: Apache-2.0
//
// A folder whose files only this user can have written: their contents are trusted like the program
// itself. Owner and mode are checked on descriptors, so that what was checked is what is used, and
// symbolic links are never followed.
//
//     let folder = try PrivateFolder(opening: path, creates: true)
//     let file = try folder.open("figures", flags: O_RDWR)

import CHost
import Glibc
import SystemPackage

/// Why a folder or a file in it is rejected.
package enum PrivateFolderError: Error, Equatable, CustomStringConvertible {
  case system(Errno)
  /// Another user owns it.
  case foreign
  /// Other users may read or write it.
  case open(mode: UInt32)
  /// It is not a folder, or not a regular file with one name.
  case wrongKind

  package var description: String {
    switch self {
    case .system(let error): "\(error)"
    case .foreign: "another user owns it; choose another folder"
    case .open(let mode): "others may use it (mode \(String(mode, radix: 8))); chmod go= it"
    case .wrongKind: "not a folder, or not an ordinary file; remove it"
    }
  }
}

package struct PrivateFolder: ~Copyable, Sendable {
  package let path: String
  private let descriptor: OwnedFileDescriptor

  /// - Parameter creates: create the folder, and its parents, if missing.
  package init(opening path: String, creates: Bool) throws(PrivateFolderError) {
    descriptor = try Self.openFolder(path, creates: creates)
    self.path = path
  }

  private static func openFolder(
    _ path: String, creates: Bool
  ) throws(PrivateFolderError) -> OwnedFileDescriptor {
    if creates {
      makeParents(of: path)
      if unsafe mkdir(path, 0o700) != 0, errno != EEXIST { throw .system(Errno(rawValue: errno)) }
    }
    let number = unsafe Glibc.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    if number < 0 {
      let error = Errno(rawValue: errno)
      throw error == .notDirectory || error == .tooManySymbolicLinkLevels
        ? .wrongKind : .system(error)
    }
    let folder = OwnedFileDescriptor(owning: number)
    try check(folder.rawValue, kind: S_IFDIR)
    return folder
  }

  private static func makeParents(of path: String) {
    var end = path.startIndex
    while let slash = path[end...].dropFirst().firstIndex(of: "/") {
      unsafe mkdir(String(path[..<slash]), 0o700)
      end = slash
    }
  }

  /// Throws unless an open file belongs to this user only, and is of the kind.
  private static func check(_ descriptor: Int32, kind: mode_t) throws(PrivateFolderError) {
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else { throw .system(Errno(rawValue: errno)) }
    guard status.st_mode & S_IFMT == kind else { throw .wrongKind }
    guard status.st_uid == geteuid() else { throw .foreign }
    guard status.st_mode & 0o077 == 0 else { throw .open(mode: status.st_mode & 0o777) }
    if kind == S_IFREG, status.st_nlink > 1 { throw .wrongKind }
  }

  /// Opens a file of the folder; with O_CREAT, 0600.
  package func open(
    _ name: String, flags: Int32
  ) throws(PrivateFolderError) -> OwnedFileDescriptor {
    let number = unsafe openat(
      descriptor.rawValue, name, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0o600)
    if number < 0 {
      throw errno == ELOOP ? .wrongKind : .system(Errno(rawValue: errno))
    }
    let file = OwnedFileDescriptor(owning: number)
    try Self.check(file.rawValue, kind: S_IFREG)
    return file
  }

  package struct Entry: Sendable, Equatable {
    package var name: String
    package var size: Int
    /// Seconds since 1970.
    package var modified: Int
  }

  /// The regular files, by name.
  package func entries() -> [Entry] {
    let copy = fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 0)
    guard copy >= 0, let stream = unsafe fdopendir(copy) else { return [] }
    defer { unsafe closedir(stream) }
    unsafe rewinddir(stream)
    var result: [Entry] = []
    while let entry = unsafe readdir(stream) {
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
        unsafe $0.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
      }
      var status = stat()
      guard unsafe fstatat(descriptor.rawValue, name, &status, AT_SYMLINK_NOFOLLOW) == 0,
        status.st_mode & S_IFMT == S_IFREG
      else { continue }
      result.append(
        Entry(name: name, size: Int(status.st_size), modified: status.st_mtim.tv_sec))
    }
    return result.sorted { $0.name < $1.name }
  }

  /// Renames a file and replaces the target.
  package func rename(_ old: String, to new: String) throws(PrivateFolderError) {
    if unsafe renameat(descriptor.rawValue, old, descriptor.rawValue, new) != 0 {
      throw .system(Errno(rawValue: errno))
    }
  }

  /// The same if the target does not exist; false if it does.
  package func renameIfFree(_ old: String, to new: String) throws(PrivateFolderError) -> Bool {
    if unsafe linkat(descriptor.rawValue, old, descriptor.rawValue, new, 0) == 0 {
      remove(old)
      return true
    }
    guard errno == EEXIST else { throw .system(Errno(rawValue: errno)) }
    remove(old)
    return false
  }

  @discardableResult
  package func remove(_ name: String) -> Bool {
    unsafe unlinkat(descriptor.rawValue, name, 0) == 0
  }
}
