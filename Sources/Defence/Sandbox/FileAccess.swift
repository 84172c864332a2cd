// SPDX-License-Identifier: Apache-2.0
//
// Denies a thread access to the file system, the network and other processes (landlock(7)). The
// files of a run are already open. The only exception is the folder of crash reports, where files
// can be created, not read.

import CHost
import Glibc
import Host
import SystemPackage

package struct FileAccess: ~Copyable, Sendable {
  private let ruleset: OwnedFileDescriptor

  private enum Call {
    static let createRuleset = 444
    static let addRule = 445
    static let restrictSelf = 446
  }

  private enum Right {
    static let writeFile: UInt64 = 1 << 1
    static let makeRegular: UInt64 = 1 << 8
  }

  /// The only scope is abstract sockets: that of signals would, on some kernels, stop threads that
  /// confine themselves from interrupting each other; the system call filter does it instead.
  ///
  /// Access rights, by the version of the interface that added them (landlock(7), "Landlock ABI
  /// versions").
  private static let rights: [(version: Int, files: UInt64, network: UInt64, scopes: UInt64)] = [
    (1, 0x1FFF, 0, 0), (2, 0x2000, 0, 0), (3, 0x4000, 0, 0), (4, 0, 3, 0), (5, 0x8000, 0, 0),
    (6, 0, 0, 1),
  ]

  /// The kernel's version of the interface; 0 without it.
  package static var version: Int {
    max(0, chost_syscall(Call.createRuleset, 0, 0, 1, 0, 0, 0))
  }

  /// - Parameter directory: where files may be created.
  /// - Returns: nil if the kernel has no Landlock, or it is disabled.
  package init?(directory: Int32?) throws(Errno) {
    let version = Self.version
    if version == 0 { return nil }
    var attributes = chost_landlock_ruleset()
    for row in Self.rights where row.version <= version {
      attributes.handled_access_fs |= row.files
      attributes.handled_access_net |= row.network
      attributes.scoped |= row.scopes
    }
    let size = version < 4 ? 8 : version < 6 ? 16 : 24
    let raw = try systemCall { () -> Int in
      unsafe withUnsafePointer(to: &attributes) {
        chost_syscall(Call.createRuleset, Int(bitPattern: $0), size, 0, 0, 0, 0)
      }
    }
    let owner = OwnedFileDescriptor(owning: Int32(truncatingIfNeeded: raw))
    if let directory {
      var rule = chost_landlock_path(
        allowed_access: Right.writeFile | Right.makeRegular, parent_fd: directory)
      _ = try systemCall { () -> Int in
        unsafe withUnsafePointer(to: &rule) {
          chost_syscall(Call.addRule, raw, 1, Int(bitPattern: $0), 0, 0, 0)
        }
      }
    }
    ruleset = owner
  }

  /// Permanently removes the rights from the calling thread and those that it starts. Call it after
  /// `no_new_privs`.
  package func confine() throws(Errno) {
    let raw = Int(ruleset.rawValue)
    _ = try systemCall { () -> Int in chost_syscall(Call.restrictSelf, raw, 0, 0, 0, 0, 0) }
  }
}
