// SPDX-License-Identifier: Apache-2.0
//
// One worker's run of the oracle, which ends when its work or its time is over, or when its
// parent has gone.

import Foundation

#if canImport(Glibc)
  import Glibc
#endif

/// One worker's run.
struct OracleRun {
  private let settings: OracleSettings
  private let progress: SharedProgress

  init(_ settings: OracleSettings, progress: SharedProgress) {
    self.settings = settings
    self.progress = progress
  }

  func run() throws -> OracleReport {
    let deadline = settings.seconds.map { Date().addingTimeInterval(TimeInterval($0)) }
    let parent = getppid()
    // Whether to go on with the batch or case of this number.
    func goesOn(_ number: Int) -> Bool {
      progress.current = UInt64(number)
      if getppid() != parent { return false }
      return deadline.map { Date() < $0 } ?? true
    }
    switch settings.mode {
    case .instructions: return try Oracle(settings).run(while: goesOn)
    case .blocks: return try BlockOracle(settings).run(while: goesOn)
    }
  }
}
