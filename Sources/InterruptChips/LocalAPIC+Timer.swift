// SPDX-License-Identifier: Apache-2.0
//
// The timer: one-shot and periodic on the bus clock, and TSC deadline. The owner arms a host timer
// for `nextDeadline`, and calls `expireTimer` when it fires; the current count is computed on
// reads. SDM volume 3: "APIC Timer", "TSC-Deadline Mode".

import X86

extension LocalAPIC {
  package enum TimerMode: UInt32, Sendable {
    case oneShot = 0
    case periodic = 1
    case tscDeadline = 2
    /// Encoding 3: nothing counts.
    case reserved = 3
  }

  /// When to call `expireTimer`, on the clock that the timer counts.
  package enum Deadline: Sendable, Hashable {
    case nanoseconds(UInt64)
    case tsc(UInt64)
  }

  package var timerMode: TimerMode {
    let bits = (self[APICRegister.lvtTimer] & APICLVT.timerModeMask) >> APICLVT.timerModeShift
    return TimerMode(rawValue: bits) ?? .reserved
  }

  /// The next expiry; nil when the timer is stopped.
  package var nextDeadline: Deadline? {
    switch timerMode {
    case .oneShot, .periodic: timerExpiry.map { .nanoseconds($0) }
    case .tscDeadline: tscDeadlineValue == 0 ? nil : .tsc(tscDeadlineValue)
    case .reserved: nil
    }
  }

  /// Delivers the timer's interrupt if its time has come, and re-arms a periodic timer for the
  /// first expiry after `time` (missed expiries merge into one interrupt).
  @discardableResult
  package mutating func expireTimer(at time: Time) -> Delivery {
    switch timerMode {
    case .tscDeadline:
      guard tscDeadlineValue != 0, time.tsc >= tscDeadlineValue else { return .ignored }
      tscDeadlineValue = 0
    case .oneShot, .periodic:
      guard let expiry = timerExpiry, time.nanoseconds >= expiry else { return .ignored }
      timerExpiry = timerMode == .periodic ? nextPeriod(after: time.nanoseconds, from: expiry) : nil
    case .reserved: return .ignored
    }
    return raiseLocal(APICRegister.lvtTimer)
  }

  /// RDMSR of IA32_TSC_DEADLINE: 0 outside TSC-deadline mode and once expired.
  package func readTSCDeadline() -> UInt64 { timerMode == .tscDeadline ? tscDeadlineValue : 0 }

  /// WRMSR of IA32_TSC_DEADLINE: arms the timer for an absolute TSC, or disarms it with 0;
  /// ignored outside TSC-deadline mode.
  @discardableResult
  package mutating func writeTSCDeadline(_ value: UInt64) -> Effect {
    guard timerMode == .tscDeadline else { return .none }
    tscDeadlineValue = value
    return .timerChanged
  }

  /// The current-count register.
  package func currentCount(at time: Time) -> UInt32 {
    guard let expiry = timerExpiry, timerMode == .oneShot || timerMode == .periodic else {
      return 0
    }
    var remaining: UInt64
    if time.nanoseconds < expiry {
      remaining = expiry &- time.nanoseconds
    } else {
      guard timerMode == .periodic else { return 0 }
      remaining = nextPeriod(after: time.nanoseconds, from: expiry) &- time.nanoseconds
    }
    // A count lasts until the end of its tick, so round up.
    remaining = (remaining &+ tick &- 1) / tick
    return UInt32(truncatingIfNeeded: min(remaining, 0xFFFF_FFFF))
  }

  // MARK: Register writes

  mutating func startTimer(count: UInt32, at time: Time) -> Effect {
    guard timerMode != .tscDeadline else { return .none }
    self[APICRegister.initialCount] = count
    timerExpiry = count == 0 ? nil : time.nanoseconds &+ UInt64(count) &* tick
    return .timerChanged
  }

  mutating func setDivider(_ value: UInt32, at time: Time) -> Effect {
    let count = currentCount(at: time)
    self[APICRegister.divideConfiguration] = value
    if timerExpiry != nil, count != 0 {
      timerExpiry = time.nanoseconds &+ UInt64(count) &* tick
    }
    return .timerChanged
  }

  /// A change between TSC deadline and the counting modes disarms the timer.
  mutating func setTimerEntry(_ value: UInt32) -> Effect {
    let old = timerMode
    self[APICRegister.lvtTimer] = value
    if (old == .tscDeadline) != (timerMode == .tscDeadline) {
      self[APICRegister.initialCount] = 0
      timerExpiry = nil
      tscDeadlineValue = 0
    }
    return .timerChanged
  }

  /// Restarts the count from a restored register page.
  mutating func restoreTimer(at time: Time) {
    timerExpiry = nil
    guard timerMode == .oneShot || timerMode == .periodic else { return }
    let initial = self[APICRegister.initialCount]
    let current = min(self[APICRegister.currentCount], initial)
    guard initial != 0 else { return }
    // An expired one-shot timer may not have been reported yet: it expires now, as in Linux.
    let count = current == 0 && timerMode == .periodic ? initial : current
    timerExpiry = time.nanoseconds &+ UInt64(count) &* tick
  }

  // MARK: Units

  /// Nanoseconds of one count: the bus cycle times the divider (2, 4, ... 128, 1).
  private var tick: UInt64 {
    let configuration = self[APICRegister.divideConfiguration]
    let code = configuration & 3 | (configuration & 8) >> 1
    // With this limit of the cycle no product with a count overflows, nor its sum with the time.
    let cycle = UInt64(max(1, min(busCycleNanoseconds, 1 << 24)))
    return cycle &<< UInt64((code &+ 1) & 7)
  }

  private func nextPeriod(after now: UInt64, from expiry: UInt64) -> UInt64 {
    let period = max(1, UInt64(self[APICRegister.initialCount]) &* tick)
    return expiry &+ ((now &- expiry) / period &+ 1) &* period
  }
}
