// SPDX-License-Identifier: Apache-2.0
//
// The exit statuses of `martlet run`.

/// The exit statuses of `martlet run`. The guest's own statuses from the debug-exit port are always
/// odd, so ours are even; a signal gives 128 plus its number, as shells do.
package enum ExitStatus {
  /// The guest powered off, or the user quit with Ctrl-A X.
  package static let success: Int32 = 0
  /// Invalid input of the user: an option, a kernel, an initrd, an engine.
  package static let badInput: Int32 = 2
  /// The guest crashed (triple fault).
  package static let guestCrashed: Int32 = 4
  /// The guest halted with interrupts off and cannot be woken.
  package static let guestHalted: Int32 = 6
  /// The guest restarted, and the user wanted that to end the machine.
  package static let guestRestarted: Int32 = 8
  /// The hypervisor failed.
  package static let engineFailed: Int32 = 10
  /// Added to the number of the signal that ended the run.
  package static let signalBase: Int32 = 128
}

/// An error that prevents a run or ends it: one line for the user that names the cause and a
/// remedy.
package struct RunError: Error, Hashable, CustomStringConvertible {
  package let description: String
  package let status: Int32

  package init(_ description: String, status: Int32 = ExitStatus.badInput) {
    self.description = description
    self.status = status
  }
}
