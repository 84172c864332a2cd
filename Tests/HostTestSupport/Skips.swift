// SPDX-License-Identifier: Apache-2.0
//
// What cannot be tested on this host says so. Where a whole test cannot run, its trait
// `.enabled(if:)` does; a part of one, or a run on the kernel's KVM, is noted here. `make test`
// sums both up (Scripts/test.sh), and fails in CI where a skip is not expected.

import Glibc

package enum Skips {
  /// Lines "what: reason" go to the file that this names in the environment.
  private static let variable = "MARTLET_SKIPS"

  /// Notes that `what` was not tested.
  package static func note(_ what: String, _ reason: String) {
    let line = "\(what): \(reason)\n"
    guard let path = getenv(variable) else {
      print("skipped: \(line)", terminator: "")
      return
    }
    let file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
    guard file >= 0 else { return }
    defer { close(file) }
    // In one piece, as tests run side by side.
    _ = line.withCString { write(file, $0, strlen($0)) }
  }
}
