// SPDX-License-Identifier: Apache-2.0
//
// A vCPU's performance counters: architectural performance monitoring, version 2 (SDM volume 3,
// "Performance Monitoring"). The processor counts instructions, branches and time by ring
// (`EventCounts`); this adds them to the counters that are enabled for them.
//
//     registers change -> plan(): which counters count what (`active`)
//     counts arrive    -> add(): into the counters; overflows into IA32_PERF_GLOBAL_STATUS
//
// Cycles are TSC ticks at the guest's rate while a vCPU has a physical CPU for KVM_RUN: time in
// halts, in the client or without a CPU does not count.
//
// Invariant: while `isRunning`, the physical CPU's counts since the last `add` are not in the
// counters yet; code that reads or changes a register adds them first (VirtualCPU.syncCounters).

import X86
import X86CPU

/// Only the thread in an ioctl of the vCPU uses it.
struct PerformanceMonitor: Sendable {
  /// An enabled counter.
  private struct Active: Sendable {
    enum Source: Sendable { case instructions, branches, ticks }
    enum Rings: Sendable { case supervisor, user, both }
    /// General counters from 0, fixed ones from 8.
    var number = 0
    var source = Source.ticks
    var rings = Rings.both
    var interrupts = false
  }

  private(set) var model = PerformanceModel.none
  /// IA32_PERF_CAPABILITIES.
  var capabilities = PerformanceCapabilities.fullWidthWrites
  private(set) var eventSelects = InlineArray<8, UInt64>(repeating: 0)
  /// General, then fixed counters.
  private var counters = InlineArray<11, UInt64>(repeating: 0)
  private(set) var fixedControl: UInt64 = 0
  private(set) var globalControl: UInt64 = 0
  private(set) var globalStatus: UInt64 = 0
  private var active = InlineArray<11, Active>(repeating: Active())
  private var activeCount = 0
  /// Some counter is enabled.
  private(set) var isActive = false
  /// Some counter counts events that only the interpreter counts.
  private(set) var countsInstructions = false
  /// The physical CPU counts for this vCPU.
  var isRunning = false

  /// Resets the counters for a new CPUID, as at power-up.
  mutating func configure(_ model: PerformanceModel) {
    guard model != self.model else { return }
    let capabilities = capabilities
    self = PerformanceMonitor()
    self.capabilities = capabilities
    self.model = model
    if model.version > 1 { globalControl = 1 << UInt64(model.generalCount) - 1 }
  }

  /// IA32_MISC_ENABLE's bit that counters exist.
  var hasMiscEnableBit: Bool { model.version != 0 && !model.isAMD }

  // MARK: Registers

  func has(_ register: PerformanceRegister) -> Bool {
    switch register {
    case .eventSelect(let n), .counter(let n): !model.isAMD && n < model.generalCount
    case .amdEventSelect, .amdCounter: model.isAMD
    case .fullWidthCounter(let n):
      !model.isAMD && n < model.generalCount
        && capabilities & PerformanceCapabilities.fullWidthWrites != 0
    case .fixedCounter(let n): n < model.fixedCount
    case .fixedControl, .globalStatus, .globalControl, .globalOverflowControl: model.version > 1
    }
  }

  /// The value of an existing register.
  func read(_ register: PerformanceRegister) -> UInt64 {
    switch register {
    case .eventSelect(let n), .amdEventSelect(let n): eventSelects[n]
    case .counter(let n), .fullWidthCounter(let n), .amdCounter(let n): counters[n]
    case .fixedCounter(let n): counters[PerformanceModel.maxGeneral + n]
    case .fixedControl: fixedControl
    case .globalStatus: globalStatus
    case .globalControl: globalControl
    case .globalOverflowControl: 0
    }
  }

  /// Writes an existing register; false if the value is invalid.
  mutating func write(_ register: PerformanceRegister, _ value: UInt64, byHost: Bool) -> Bool {
    switch register {
    case .eventSelect(let n):
      guard value & PerformanceEventSelect.reserved == 0 else { return false }
      eventSelects[n] = value
    case .counter(let n):
      // Bits 31:0, sign-extended.
      let extended = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value)))
      counters[n] = (byHost ? value : extended) & model.generalMask
    case .fullWidthCounter(let n):
      guard value & ~model.generalMask == 0 else { return false }
      counters[n] = value
    case .fixedCounter(let n): counters[PerformanceModel.maxGeneral + n] = value & model.fixedMask
    case .amdEventSelect(let n): eventSelects[n] = value & ~PerformanceEventSelect.amdReserved
    case .amdCounter(let n): counters[n] = value & model.generalMask
    case .fixedControl:
      guard value & ~model.fixedControlBits == 0 else { return false }
      fixedControl = value
    case .globalStatus:
      guard byHost else { return false }
      globalStatus = value
    case .globalControl:
      guard value & ~model.counterBits == 0 else { return false }
      globalControl = value
    case .globalOverflowControl:
      let others = PerformanceGlobalStatus.bufferOverflow | PerformanceGlobalStatus.conditionChanged
      guard value & ~(model.counterBits | others) == 0 else { return false }
      if !byHost { globalStatus &= ~value }
    }
    return true
  }

  /// RDPMC's value: bit 30 of the number selects fixed counters, bit 31 the low 32 bits. Nil if
  /// there is no such counter.
  func read(counter number: UInt32) -> UInt64? {
    let index = Int(number & 0x3FFF_FFFF)
    let isFixed = number & 1 << 30 != 0
    guard index < (isFixed ? model.fixedCount : model.generalCount) else { return nil }
    let value = read(isFixed ? .fixedCounter(index) : .counter(index))
    return number & 1 << 31 != 0 ? value & 0xFFFF_FFFF : value
  }

  // MARK: Planning

  /// Called after a change of registers or of the filter.
  mutating func plan(_ filter: PerformanceEventFilter?) {
    activeCount = 0
    countsInstructions = false
    for n in 0..<model.generalCount where isEnabled(bit: UInt64(n)) {
      let select = PerformanceEventSelect(rawValue: eventSelects[n])
      let unsupported =
        PerformanceEventSelect.edge | PerformanceEventSelect.invert
        | PerformanceEventSelect.counterMask
      guard select.contains(PerformanceEventSelect.enable), !select.contains(unsupported),
        filter?.allows(event: select.event) ?? true,
        let event = model.event(select)
      else { continue }
      activate(
        n, event, supervisor: select.contains(PerformanceEventSelect.operatingSystem),
        user: select.contains(PerformanceEventSelect.user),
        interrupts: select.contains(PerformanceEventSelect.interrupt))
    }
    for n in 0..<model.fixedCount
    where isEnabled(bit: PerformanceGlobalStatus.fixedShift &+ UInt64(n)) {
      let control = fixedControl >> UInt64(n * 4)
      guard filter?.allows(fixedCounter: n) ?? true, model.has(ArchitecturalEvent.fixed[n]) else {
        continue
      }
      activate(
        PerformanceModel.maxGeneral + n, ArchitecturalEvent.fixed[n],
        supervisor: control & FixedCounterControl.operatingSystem != 0,
        user: control & FixedCounterControl.user != 0,
        interrupts: control & FixedCounterControl.interrupt != 0)
    }
    isActive = activeCount != 0
  }

  /// Version 1 has no IA32_PERF_GLOBAL_CTRL.
  private func isEnabled(bit: UInt64) -> Bool {
    model.version == 1 || globalControl & 1 << bit != 0
  }

  private mutating func activate(
    _ number: Int, _ event: ArchitecturalEvent, supervisor: Bool, user: Bool, interrupts: Bool
  ) {
    guard supervisor || user else { return }
    let source: Active.Source
    switch event {
    case .instructionsRetired: source = .instructions
    case .branchesRetired: source = .branches
    case .coreCycles, .referenceCycles: source = .ticks
    case .lastLevelCacheReferences, .lastLevelCacheMisses, .branchMisses: return
    }
    let rings: Active.Rings = supervisor && user ? .both : user ? .user : .supervisor
    if source != .ticks || rings != .both { countsInstructions = true }
    active[activeCount] = Active(
      number: number, source: source, rings: rings, interrupts: interrupts)
    activeCount += 1
  }

  // MARK: Counting

  /// Adds the physical CPU's counts.
  ///
  /// - Returns: whether a counter with an interrupt overflowed.
  mutating func add(_ counts: EventCounts, _ rate: TSCRate) -> Bool {
    var interrupts = false
    for n in 0..<activeCount {
      let counter = active[n]
      var count: UInt64
      switch counter.source {
      case .instructions: count = Self.count(counts.instructions, counter.rings)
      case .branches: count = Self.count(counts.branches, counter.rings)
      case .ticks: count = rate.counts(ofHost: Self.count(counts.ticks, counter.rings))
      }
      let mask = mask(counter.number)
      count &+= counters[counter.number] & mask
      counters[counter.number] = count & mask
      guard count > mask else { continue }
      globalStatus |= 1 << Self.statusBit(counter.number)
      if counter.interrupts { interrupts = true }
    }
    return interrupts
  }

  private static func count(_ counts: RingCounts, _ rings: Active.Rings) -> UInt64 {
    switch rings {
    case .supervisor: counts.supervisor
    case .user: counts.user
    case .both: counts.sum
    }
  }

  private func mask(_ number: Int) -> UInt64 {
    number < PerformanceModel.maxGeneral ? model.generalMask : model.fixedMask
  }

  private static func statusBit(_ number: Int) -> UInt64 {
    let fixed = number - PerformanceModel.maxGeneral
    return fixed < 0 ? UInt64(number) : PerformanceGlobalStatus.fixedShift &+ UInt64(fixed)
  }

  /// How many instructions and branches the guest may execute until a counter with an interrupt
  /// overflows.
  var limits: EventLimits {
    var limits = EventLimits()
    for n in 0..<activeCount where active[n].interrupts {
      let left = remaining(active[n])
      switch active[n].source {
      case .instructions: Self.lower(&limits.instructions, active[n].rings, to: left)
      case .branches: Self.lower(&limits.branches, active[n].rings, to: left)
      case .ticks: break
      }
    }
    return limits
  }

  /// The same for guest TSC ticks; nil if no such counter is enabled.
  var cyclesToOverflow: UInt64? {
    var least: UInt64?
    for n in 0..<activeCount where active[n].interrupts && active[n].source == .ticks {
      least = min(least ?? .max, remaining(active[n]))
    }
    return least
  }

  private func remaining(_ counter: Active) -> UInt64 {
    let mask = mask(counter.number)
    return mask &- counters[counter.number] & mask &+ 1
  }

  private static func lower(_ limits: inout RingLimits, _ rings: Active.Rings, to count: UInt64) {
    switch rings {
    case .supervisor: limits.supervisor = min(limits.supervisor, count)
    case .user: limits.user = min(limits.user, count)
    case .both: limits.both = min(limits.both, count)
    }
  }
}
