// SPDX-License-Identifier: Apache-2.0
//
// Tells the user why VM entries fail. A client can provoke failures without limit, in as many ways
// as there are rules: each kind is reported once, up to a limit.

import Synchronization
import X86CPU

package final class EntryFailureReports: Sendable {
  private let warn: @Sendable ([String]) -> Void
  private let save: @Sendable ([UInt8]) -> Void
  private let told = Mutex<Set<String>>([])

  /// The limit of reported kinds.
  package static let limit = 16

  /// - Parameters:
  ///   - warn: prints the lines of one warning.
  ///   - save: saves the first rejected control block, as a file for `martlet doctor`.
  package init(
    warn: @escaping @Sendable ([String]) -> Void,
    save: @escaping @Sendable ([UInt8]) -> Void = { _ in }
  ) {
    self.warn = warn
    self.save = save
  }

  /// Reports nothing.
  package static let silent = EntryFailureReports(warn: { _ in })

  /// - Parameters:
  ///   - cpu: the vCPU's identifier.
  ///   - saved: the control block as a file.
  func report(_ explanation: EntryExplanation, cpu: UInt32, saved: @autoclosure () -> [UInt8]) {
    let count = told.withLock { told -> Int? in
      guard told.count < Self.limit, told.insert(explanation.kind).inserted else { return nil }
      return told.count
    }
    guard let count else { return }
    var lines = explanation.lines
    if let first = lines.first { lines[0] = "CPU \(cpu): \(first)" }
    if count == Self.limit { lines.append("further failures of VM entries are not shown") }
    warn(lines)
    if count == 1 { save(saved()) }
  }
}
