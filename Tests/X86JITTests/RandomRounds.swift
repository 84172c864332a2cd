// SPDX-License-Identifier: Apache-2.0
//
// Which rounds the random tests of this directory run, where a round's random numbers come from,
// and how to run one again.

import Glibc
import Testing

/// `MARTLET_RANDOM_BLOCKS` is how many rounds each seed has. `MARTLET_RANDOM_ROUND` runs a round
/// again: it and those before it with the same machines. Another `MARTLET_RANDOM_SEED` makes other
/// rounds.
struct RandomRounds {
  /// Machines are new at multiples of this, so that what a round finds in them (memory outside of
  /// what it sets, translations, the TLB) comes from few rounds before it.
  static let withSameMachines = 1000

  let range: Range<Int>

  init(debug: Int, release: Int) {
    if let round = Self.again {
      let first = round - round % Self.withSameMachines
      range = first..<(round + 1)
      return
    }
    #if DEBUG
      let usual = debug
    #else
      let usual = release
    #endif
    range = 0..<(Self.number("MARTLET_RANDOM_BLOCKS") ?? usual)
  }

  /// The round that is run again. Few may be run then.
  static let again = number("MARTLET_RANDOM_ROUND")
  private static let base = number("MARTLET_RANDOM_SEED") ?? 0

  private static func number(_ name: String) -> Int? {
    getenv(name).flatMap { Int(String(cString: $0)) }.flatMap { $0 >= 0 ? $0 : nil }
  }

  static func needsNewMachines(_ round: Int) -> Bool { round % withSameMachines == 0 }

  /// A round's own numbers: those of other rounds are not needed for them.
  static func random(_ seed: UInt64, _ round: Int) -> SplitMix {
    let place = UInt64(round) &* 0xD134_2543_DE82_EF95 &+ UInt64(base) &* 0xDA94_2042_E4DD_58B5
    var mixed = SplitMix(state: seed ^ place)
    return SplitMix(state: mixed.next())
  }

  /// How to run a round of the current test again.
  func again(_ round: Int) -> String {
    let name = Test.current.map { String($0.name.prefix { $0 != "(" }) } ?? ""
    #if DEBUG
      let configuration = ""
    #else
      let configuration = " -c release"
    #endif
    let seed = Self.base == 0 ? "" : " MARTLET_RANDOM_SEED=\(Self.base)"
    return "again: MARTLET_RANDOM_ROUND=\(round)\(seed) swift test\(configuration)"
      + " --disable-xctest --filter \(name)"
  }
}

/// SplitMix64.
struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}
