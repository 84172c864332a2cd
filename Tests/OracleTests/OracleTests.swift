// SPDX-License-Identifier: Apache-2.0

import HostTestSupport
import Testing

/// The oracle's program, in processes of its own (Tests/Oracle/Workers.swift says why).
@Suite(.serialized) struct OracleTests {
  /// Seconds until a run has failed: it takes a minute of two idle CPUs.
  static let limit: UInt64 = 1200

  @Test func hostInterpreterAndTranslatorAgree() throws {
    try run(["instructions"])
  }

  @Test func blocksAgree() throws {
    try run(["blocks"])
  }

  private func run(_ arguments: [String]) throws {
    let result = try Command.run(arguments, program: "martlet-oracle", limit: Self.limit)
    print(result.output, terminator: "")
    #expect(result.status == 0, "\(result.output)\(result.errors)")
  }
}
