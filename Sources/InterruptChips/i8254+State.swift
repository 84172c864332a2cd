// SPDX-License-Identifier: Apache-2.0
//
// The state in KVM's format: the fields of `kvm_pit_state2` (Linux, "KVM_GET_PIT2"). It has no
// fields for a pending count and for the ticks counted before the gate fell: the state shows the
// pending count as loaded, and a load time that matches the count.

extension PIT8254 {
  /// `kvm_pit_channel_state`.
  package struct ChannelState: Sendable, Hashable {
    package var count: UInt32 = 0
    package var latchedCount: UInt16 = 0
    package var countLatched: UInt8 = 0
    package var statusLatched: UInt8 = 0
    package var status: UInt8 = 0
    package var readState: UInt8 = 0
    package var writeState: UInt8 = 0
    package var writeLatch: UInt8 = 0
    package var rwMode: UInt8 = 0
    package var mode: UInt8 = 0
    package var bcd: UInt8 = 0
    package var gate: UInt8 = 0
    /// Nanoseconds on the injected clock.
    package var countLoadTime: Int64 = 0
    package init() {}
  }

  /// `kvm_pit_state2` without its flags, except for the speaker's.
  package struct State: Sendable {
    package var channels: InlineArray<3, ChannelState> = InlineArray(repeating: ChannelState())
    /// KVM_PIT_FLAGS_SPEAKER_DATA_ON.
    package var isSpeakerDataOn = false
    package init() {}
  }

  package func state(at nanoseconds: UInt64) -> State {
    let tick = Self.ticks(at: nanoseconds)
    var state = State()
    for index in 0..<3 { state.channels[index] = channels[index].state(at: tick) }
    state.isSpeakerDataOn = port61 & 2 != 0
    return state
  }

  /// Restores a state. Edges of channel 0 before `nanoseconds` count as reported.
  package mutating func load(_ state: State, at nanoseconds: UInt64) {
    let tick = Self.ticks(at: nanoseconds)
    for index in 0..<3 { channels[index] = Channel(state.channels[index], at: tick) }
    port61 = (state.isSpeakerDataOn ? 2 : 0) | (channels[2].gate ? 1 : 0)
  }
}

extension PIT8254.Channel {
  func state(at tick: UInt64) -> PIT8254.ChannelState {
    var copy = self
    copy.settle(at: tick)
    var state = PIT8254.ChannelState()
    state.count = copy.pendingCount ?? copy.count
    state.latchedCount = latchedCount
    state.countLatched = latchState.rawValue
    state.statusLatched = latchedStatus == nil ? 0 : 1
    state.status = latchedStatus ?? 0
    state.readState = readState.rawValue
    state.writeState = writeState.rawValue
    state.writeLatch = writeLatch
    state.rwMode = access.rawValue
    state.mode = mode
    state.bcd = isBCD ? 1 : 0
    state.gate = gate ? 1 : 0
    let isFrozen = !gate && (mode == 0 || mode == 4)
    let start = isFrozen ? tick &- min(tick, frozenTicks) : copy.loadTick
    state.countLoadTime = Int64(clamping: PIT8254.nanoseconds(at: start))
    return state
  }

  init(_ state: PIT8254.ChannelState, at tick: UInt64) {
    self.init()
    count = state.count == 0 ? 0x1_0000 : min(state.count, 0x1_0000)
    latchedCount = state.latchedCount
    latchState = ByteState(rawValue: state.countLatched) ?? .none
    latchedStatus = state.statusLatched == 0 ? nil : state.status
    access = ByteState(rawValue: state.rwMode & 3) ?? .lowThenHigh
    readState = ByteState(rawValue: state.readState) ?? access
    writeState = ByteState(rawValue: state.writeState) ?? access
    writeLatch = state.writeLatch
    mode = state.mode <= 5 ? state.mode : Self.unprogrammed
    isBCD = state.bcd != 0
    gate = state.gate != 0
    isLoaded = mode != Self.unprogrammed
    isTriggered = isLoaded && gate
    loadTick = PIT8254.ticks(at: UInt64(clamping: state.countLoadTime))
    if !gate { frozenTicks = tick > loadTick ? tick &- loadTick : 0 }
    _ = takeEdges(at: tick)
  }
}
