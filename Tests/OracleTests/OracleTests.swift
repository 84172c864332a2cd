// SPDX-License-Identifier: Apache-2.0

import Oracle
import Testing

/// One at a time: the native executor's addresses and signal handlers are the process's.
@Suite(.serialized) struct OracleTests {
  @Test func hostAndInterpreterAgree() throws {
    let command = OracleCommand()
    let report = try command.run()
    #expect(report.mismatches.isEmpty, "seed \(command.seed)")
    if command.isWhole {
      #expect(report.pairs >= command.pairs)
      #expect(report.uncovered == [], "rows that were not compared, without a reason")
    }
  }
}
