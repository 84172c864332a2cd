// SPDX-License-Identifier: Apache-2.0
//
// The process drops privileges before a guest runs, so that a guest that takes it over gains little
// but the guest's own memory and terminal: no new privileges, system calls by a thread's role, no
// files, no network, no other processes, limits. docs/security.md has the details.
//
//     let sandbox = try Sandbox(settings)     // one thread, files can be opened
//     HostThread.atStart { sandbox.confineThread($0) }
//     ... open files, make the machine, start its threads ...
//     try sandbox.confineMain()               // files cannot be opened any more
//
// Filters belong to threads, so no thread may be started before `atStart`.

import CHost
import Glibc
import Host
import SystemPackage

package final class Sandbox: Sendable {
  private let settings: SandboxSettings
  private let filter: SystemCallFilter?
  private let files: FileAccess?

  /// What this host lacks, one line each, with a remedy.
  package let missing: [String]

  /// Prepares everything, and sets `no_new_privs`.
  package init(_ settings: SandboxSettings) throws(Errno) {
    var settings = settings
    var missing: [String] = []
    let files = try FileAccess(directory: settings.reportDirectory)
    if files == nil {
      missing.append("Landlock is missing: boot a kernel with lsm=landlock,...")
      // Otherwise files could be created anywhere.
      settings.reportDirectory = nil
      unsafe CrashReporter.reportDirectory = nil
    }
    _ = try systemCall { () -> Int in
      chost_syscall(Int(SYS_prctl), Int(PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0, 0)
    }
    let filter = try SystemCallFilter(settings)
    if filter == nil { missing.append("libseccomp is missing: apt-get install libseccomp2") }
    self.settings = settings
    self.filter = filter
    self.files = files
    self.missing = missing
  }

  /// Called by every new thread before it does anything else (`HostThread.atStart`).
  package func confineThread(_ name: String) {
    ThreadRunDelay.prepare()
    do throws(Errno) {
      try confine(ThreadRole(threadName: name))
    } catch {
      // An unconfined thread would be a way out of the sandbox.
      writeText(STDERR_FILENO, "martlet: sandbox: thread \(name) cannot be confined: \(error)\n")
      _exit(10)
    }
  }

  /// Confines the calling thread and limits the process. All threads that do not wait for this are
  /// already confined.
  package func confineMain() throws(Errno) {
    ResourceLimits.apply(
      mapped: ResourceLimits.mappedBytes(), reserve: settings.addressReserve)
    try confine(.main)
  }

  private func confine(_ role: ThreadRole) throws(Errno) {
    if files != nil { try files!.confine() }
    try filter?.confine(role)
  }

  /// The host's support, for `martlet doctor`.
  package static var offers: [String] {
    let version = FileAccess.version
    return [
      "sandbox: system call filters "
        + (SystemCallFilter.isAvailable ? "yes" : "no; apt-get install libseccomp2"),
      "sandbox: Landlock "
        + (version > 0 ? "yes, version \(version)" : "no; boot with lsm=landlock,..."),
    ]
  }
}
