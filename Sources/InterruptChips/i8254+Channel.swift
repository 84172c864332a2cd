// SPDX-License-Identifier: Apache-2.0
//
// One counter of the 8254: programming and reads. `i8254+Counting.swift` has the counting. 8254
// data sheet: "Programming the 8254", "Read Operations".

extension PIT8254 {
  struct Channel: Sendable {
    /// Which byte of a count comes next (KVM's encoding).
    enum ByteState: UInt8, Sendable {
      case none = 0
      case low = 1
      case high = 2
      case lowThenHigh = 3
      /// The second byte of `lowThenHigh`.
      case highAfterLow = 4
    }

    /// Ticks to count, 1 to 65536.
    var count: UInt32 = 0x1_0000
    /// A count written while another runs: loaded at `reloadTick` (modes 2 and 3) or at the next
    /// trigger (modes 1 and 5).
    var pendingCount: UInt32?
    var reloadTick: UInt64 = 0
    /// A count was written since the control word.
    var isLoaded = false
    /// Modes 1 and 5: the gate has risen since the control word.
    var isTriggered = false
    /// The tick at which `count` began.
    var loadTick: UInt64 = 0
    /// Ticks counted when the gate fell.
    var frozenTicks: UInt64 = 0
    /// Rising edges of OUT reported since `loadTick`; negative: edges before it still due.
    var reportedEdges: Int64 = 0

    /// 0 to 5; `unprogrammed` before the first control word.
    var mode: UInt8 = Channel.unprogrammed
    var access: ByteState = .lowThenHigh
    var isBCD = false
    var gate = true
    var readState: ByteState = .lowThenHigh
    var writeState: ByteState = .lowThenHigh
    var writeLatch: UInt8 = 0
    var latchedCount: UInt16 = 0
    /// `.none`: no count is latched.
    var latchState: ByteState = .none
    var latchedStatus: UInt8?

    static let unprogrammed: UInt8 = 0xFF
  }
}

extension PIT8254.Channel {
  /// A control word for this channel, the counter latch command included.
  mutating func control(_ value: UInt8, at tick: UInt64) {
    guard let newAccess = ByteState(rawValue: value >> 4 & 3), newAccess != .none else {
      latchCount(at: tick)
      return
    }
    access = newAccess
    readState = newAccess
    writeState = newAccess
    // Modes 6 and 7 are 2 and 3: their top bit is ignored.
    let bits = value >> 1 & 7
    mode = bits > 5 ? bits & 3 : bits
    isBCD = value & 1 != 0
    isLoaded = false
    isTriggered = false
    pendingCount = nil
    frozenTicks = 0
    reportedEdges = 0
    latchState = .none
    latchedStatus = nil
  }

  mutating func write(_ value: UInt8, at tick: UInt64) {
    switch writeState {
    case .low: load(UInt16(value), at: tick)
    case .high: load(UInt16(value) << 8, at: tick)
    case .lowThenHigh, .none:
      writeLatch = value
      writeState = .highAfterLow
      // In mode 0 the first byte stops the count.
      if mode == 0 { isLoaded = false }
    case .highAfterLow:
      writeState = .lowThenHigh
      load(UInt16(value) << 8 | UInt16(writeLatch), at: tick)
    }
  }

  mutating func read(at tick: UInt64) -> UInt8 {
    if let status = latchedStatus {
      latchedStatus = nil
      return status
    }
    if latchState != .none {
      let (byte, next) = take(latchState, latchedCount)
      latchState = next == .highAfterLow ? next : .none
      return byte
    }
    let (byte, next) = take(readState, readableCount(at: tick))
    readState = next
    return byte
  }

  /// Latches the count, unless one is latched already.
  mutating func latchCount(at tick: UInt64) {
    guard latchState == .none else { return }
    latchedCount = readableCount(at: tick)
    latchState = access
  }

  /// Latches OUT, the null-count flag and the control word.
  mutating func latchStatus(at tick: UInt64) {
    guard latchedStatus == nil else { return }
    settle(at: tick)
    let out: UInt8 = output(at: tick) ? 0x80 : 0
    let null: UInt8 = isLoaded && pendingCount == nil ? 0 : 0x40
    let modeBits: UInt8 = (mode & 7) << 1
    latchedStatus = out | null | access.rawValue << 4 | modeBits | (isBCD ? 1 : 0)
  }

  /// The byte of `value` for `state`, and the next state.
  private func take(_ state: ByteState, _ value: UInt16) -> (UInt8, ByteState) {
    let low = UInt8(truncatingIfNeeded: value)
    let high = UInt8(truncatingIfNeeded: value >> 8)
    switch state {
    case .low: return (low, .low)
    case .high: return (high, .high)
    case .lowThenHigh, .none: return (low, .highAfterLow)
    case .highAfterLow: return (high, .lowThenHigh)
    }
  }
}
