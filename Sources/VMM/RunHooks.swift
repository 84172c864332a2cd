// SPDX-License-Identifier: Apache-2.0
//
// Points of a run at which a program may do something of its own.

import SystemPackage

/// What a program does at points of a machine's run.
@safe package struct RunHooks: Sendable {
  /// All threads exist and no guest code has run: gives away what the event loop's thread does not
  /// need.
  package var confine: (@Sendable () throws(Errno) -> Void)?
  /// After that, in the same thread.
  package var confined: (@Sendable () -> Void)?
  /// In a vCPU's thread at its first exit, with the guest's memory from address 0 on.
  package var firstExit: (@Sendable (UnsafeMutableRawBufferPointer) -> Void)?

  package init() {}
}
