// SPDX-License-Identifier: Apache-2.0
//
// Points of a run at which a program may run code of its own.

import SystemPackage

/// A program's callbacks during a machine's run.
@safe package struct RunHooks: Sendable {
  /// Called when all threads exist and no guest code has run: drops the privileges of the event
  /// loop's thread.
  package var confine: (@Sendable () throws(Errno) -> Void)?
  /// Called after that, in the same thread.
  package var confined: (@Sendable () -> Void)?
  /// Called in a vCPU's thread at its first exit, with the guest's memory from address 0 on.
  package var firstExit: (@Sendable (UnsafeMutableRawBufferPointer) -> Void)?

  package init() {}
}
