// SPDX-License-Identifier: Apache-2.0
//
// Threads that run one body at the same time, for tests of what threads share.

import Host
import SystemPackage

extension HostThread {
  /// Runs a body in a number of threads at once, with 1 and up, and waits for all.
  package static func all(
    _ count: Int, _ body: @escaping @Sendable (Int) -> Void
  ) throws(Errno) {
    guard count > 0 else { return }
    let thread = try HostThread(name: "test\(count)") { body(count) }
    do throws(Errno) {
      try all(count - 1, body)
    } catch {
      thread.join()
      throw error
    }
    thread.join()
  }
}
