// SPDX-License-Identifier: Apache-2.0
//
// A terminal with both ends in the test, for programs that must find one.

import CHost
import Glibc
import Host
import SystemPackage

/// A terminal whose other end the test holds.
package struct PseudoTerminal: ~Copyable {
  /// What a user's keyboard and screen would be.
  package let user: OwnedFileDescriptor
  /// What a program takes for its terminal.
  package let terminal: OwnedFileDescriptor

  package init() throws(Errno) {
    let user = try OwnedFileDescriptor(opening: "/dev/ptmx", flags: O_RDWR | O_NOCTTY)
    let raw = user.rawValue
    var unlock: Int32 = 0
    _ = try systemCall { () -> Int32 in ioctl(raw, Self.lockRequest, &unlock) }
    var number: Int32 = 0
    _ = try systemCall { () -> Int32 in ioctl(raw, Self.numberRequest, &number) }
    terminal = try OwnedFileDescriptor(opening: "/dev/pts/\(number)", flags: O_RDWR | O_NOCTTY)
    self.user = user
  }

  /// The terminal's mode now.
  package func mode() -> termios {
    var mode = termios()
    tcgetattr(terminal.rawValue, &mode)
    return mode
  }

  private static let lockRequest: UInt = 0x4004_5431  // TIOCSPTLCK
  private static let numberRequest: UInt = 0x8004_5430  // TIOCGPTN
}
