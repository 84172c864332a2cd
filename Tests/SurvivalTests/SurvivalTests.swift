// SPDX-License-Identifier: Apache-2.0
//
// Hostile guests (Tests/Survival/Survival.swift), in processes of their own: nothing that they
// do may end the process that runs them.

import HostTestSupport
import Testing

@Suite(.serialized) struct SurvivalTests {
  /// Seconds until a run has failed.
  private static let limit: UInt64 = 1200
  /// A debug build does a fiftieth in the time.
  #if DEBUG
    private static let blocks = 20_000
  #else
    private static let blocks = 1_000_000
  #endif

  @Test func nothingThatAGuestDoesEndsItsMonitor() throws {
    let result = try Command.run(
      ["--blocks", "\(Self.blocks)", "--seed", "3"], program: "martlet-survive", limit: Self.limit)
    print(result.output, terminator: "")
    #expect(result.status == 0, "\(result.output)\(result.errors.suffix(4000))")
  }
}
