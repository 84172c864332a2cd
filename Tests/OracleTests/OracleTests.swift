// SPDX-License-Identifier: Apache-2.0
//
// The oracle's program, in processes of its own (Tests/Oracle/Workers.swift says why): host,
// interpreter and translator must agree on each instruction and block.

import HostTestSupport
import Testing

@Suite(.serialized) struct OracleTests {
  /// Seconds until a run has failed: it takes a minute of two idle CPUs.
  static let limit: UInt64 = 1200

  /// Seeds that do not change: that a test fails is due to what was changed, or to the host. Fresh
  /// ones are `make soak`'s.
  @Test func hostInterpreterAndTranslatorAgree() throws {
    try run(["instructions", "1"])
  }

  /// With a large code memory, and with one so small that all code is dropped again and again.
  @Test(arguments: [1, 4]) func blocksAgree(seed: Int) throws {
    try run(["blocks", "\(seed)", "100000"])
  }

  private func run(_ arguments: [String]) throws {
    let result = try Command.run(arguments, program: "martlet-oracle", limit: Self.limit)
    print(result.output, terminator: "")
    #expect(result.status == 0, "\(result.output)\(result.errors)")
  }
}
