// SPDX-License-Identifier: Apache-2.0
//
// The six modes. With N the count and d the ticks since it began, OUT is (8254 data sheet, "Mode
// Definitions"):
//
//   mode                        OUT                          rises at d =
//   0 interrupt on count        low until d = N              N
//   1 one-shot, by the gate     low until d = N              N
//   2 rate generator            low for d mod N = N - 1      N, 2N, ...
//   3 square wave               low for the second half      N, 2N, ...
//   4 strobe                    low for d = N                N + 1
//   5 strobe, by the gate       low for d = N                N + 1
//
// A count written in mode 2 or 3 while one runs is loaded at the end of the period (in mode 3 the
// chip loads it at the end of the half period).

extension PIT8254.Channel {
  private var isPeriodic: Bool { mode == 2 || mode == 3 }
  private var isGateTriggered: Bool { mode == 1 || mode == 5 }
  private var isCounting: Bool { isLoaded && (!isGateTriggered || isTriggered) }

  /// Loads a complete count.
  mutating func load(_ raw: UInt16, at tick: UInt64) {
    let value = decode(raw)
    settle(at: tick)
    if isLoaded, isPeriodic, gate {
      if pendingCount == nil {
        reloadTick = loadTick &+ (elapsed(at: tick) / UInt64(count) &+ 1) &* UInt64(count)
      }
      pendingCount = value
      return
    }
    if isGateTriggered, isTriggered {
      pendingCount = value
      return
    }
    start(value, at: tick)
    isLoaded = true
  }

  mutating func setGate(_ high: Bool, at tick: UInt64) {
    guard high != gate else { return }
    settle(at: tick)
    let counted = elapsed(at: tick)
    gate = high
    guard high else {
      frozenTicks = counted
      return
    }
    if isPeriodic || isGateTriggered {
      start(pendingCount ?? count, at: tick)
      isTriggered = true
    } else {
      loadTick = tick &- frozenTicks
    }
  }

  /// Loads a pending count once the previous period has ended.
  mutating func settle(at tick: UInt64) {
    guard let next = pendingCount, isPeriodic, gate, tick >= reloadTick else { return }
    let edges = (reloadTick &- loadTick) / UInt64(count)
    let owed = reportedEdges &- Int64(truncatingIfNeeded: edges)
    start(next, at: reloadTick)
    reportedEdges = owed
  }

  mutating func output(at tick: UInt64) -> Bool {
    settle(at: tick)
    guard isCounting else { return mode != 0 }
    let d = elapsed(at: tick)
    let n = UInt64(count)
    switch mode {
    case 0, 1: return d >= n
    case 2: return !gate || d % n != n &- 1
    case 3: return !gate || d % n < (n &+ 1) / 2
    case 4, 5: return d != n
    default: return true
    }
  }

  /// The count that a program reads.
  mutating func readableCount(at tick: UInt64) -> UInt16 {
    settle(at: tick)
    let n = UInt64(count)
    let d = isCounting ? elapsed(at: tick) : 0
    let wrap: UInt64 = isBCD ? 10_000 : 0x1_0000
    let value: UInt64
    switch mode {
    case 2: value = n &- d % n
    case 3:
      let half = (n &+ 1) / 2
      let phase = d % n
      value = (n & ~1) &- 2 &* (phase < half ? phase : phase &- half)
    default: value = n &+ wrap &- d % wrap
    }
    return encode(value % wrap)
  }

  /// The tick at which OUT rises next.
  var nextEdge: UInt64? {
    guard isCounting, gate || isGateTriggered else { return nil }
    if isPeriodic {
      let next = UInt64(max(0, reportedEdges &+ 1))
      return loadTick &+ next &* UInt64(count)
    }
    guard reportedEdges < 1, mode <= 5 else { return nil }
    return loadTick &+ UInt64(count) &+ (mode >= 4 ? 1 : 0)
  }

  /// The unreported rising edges of OUT until `tick`.
  mutating func takeEdges(at tick: UInt64) -> UInt64 {
    settle(at: tick)
    guard isCounting, gate || isGateTriggered else { return 0 }
    let d = elapsed(at: tick)
    let n = UInt64(count)
    let total: Int64
    switch mode {
    case 0, 1: total = d >= n ? 1 : 0
    case 2, 3: total = Int64(truncatingIfNeeded: d / n)
    case 4, 5: total = d > n ? 1 : 0
    default: total = 0
    }
    let due = max(0, total &- reportedEdges)
    reportedEdges = max(total, reportedEdges)
    return UInt64(due)
  }

  /// Ticks counted since the count began.
  private func elapsed(at tick: UInt64) -> UInt64 {
    if !gate, !isGateTriggered { return frozenTicks }
    return tick > loadTick ? tick &- loadTick : 0
  }

  private mutating func start(_ value: UInt32, at tick: UInt64) {
    count = value
    pendingCount = nil
    loadTick = tick
    frozenTicks = 0
    reportedEdges = 0
  }

  private func decode(_ raw: UInt16) -> UInt32 {
    guard isBCD else { return raw == 0 ? 0x1_0000 : UInt32(raw) }
    var value: UInt32 = 0
    for digit in 0..<4 {
      let shift = UInt16(truncatingIfNeeded: 12 &- 4 &* digit)
      value = value &* 10 &+ UInt32(raw &>> shift & 0xF)
    }
    return value == 0 ? 10_000 : min(value, 10_000)
  }

  private func encode(_ value: UInt64) -> UInt16 {
    guard isBCD else { return UInt16(truncatingIfNeeded: value) }
    let digits = value % 10 | (value / 10 % 10) << 4 | (value / 100 % 10) << 8
    return UInt16(truncatingIfNeeded: digits | (value / 1000 % 10) << 12)
  }
}
