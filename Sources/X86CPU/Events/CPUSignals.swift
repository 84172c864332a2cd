// SPDX-License-Identifier: Apache-2.0
//
// Interrupts, NMIs, INIT signals and start-up IPIs from other threads to a physical CPU, and their
// effect on a guest. (A kick is this process's own interrupt: it exits whatever the guest's
// controls say.)
//
//     processor.interrupt(0x41)      // from any thread: exits, is the guest's, or is posted
//     processor.raiseNMI(); processor.raiseINIT(); processor.startUp(0x10)
//     processor.acknowledgeInterrupt()    // by the host, of one that exited unacknowledged

import Synchronization
import X86

/// Pending signals. All of it is atomic.
final class CPUSignals: Sendable {
  private let low = Atomic<UInt64>(0)
  private let second = Atomic<UInt64>(0)
  private let third = Atomic<UInt64>(0)
  private let high = Atomic<UInt64>(0)
  /// Bits `nmi` and `initSignal`, and a start-up IPI's vector with bit 8.
  private let others = Atomic<UInt64>(0)

  static let startUpBit: UInt64 = 1 << 8
  static let nmi: UInt64 = 1 << 9
  static let initSignal: UInt64 = 1 << 10

  func raise(_ vector: UInt8) {
    let bit: UInt64 = 1 << UInt64(vector & 63)
    switch vector >> 6 {
    case 0: low.bitwiseOr(bit, ordering: .sequentiallyConsistent)
    case 1: second.bitwiseOr(bit, ordering: .sequentiallyConsistent)
    case 2: third.bitwiseOr(bit, ordering: .sequentiallyConsistent)
    default: high.bitwiseOr(bit, ordering: .sequentiallyConsistent)
    }
  }

  func clear(_ vector: UInt8) {
    let mask = ~((1 as UInt64) << UInt64(vector & 63))
    switch vector >> 6 {
    case 0: low.bitwiseAnd(mask, ordering: .sequentiallyConsistent)
    case 1: second.bitwiseAnd(mask, ordering: .sequentiallyConsistent)
    case 2: third.bitwiseAnd(mask, ordering: .sequentiallyConsistent)
    default: high.bitwiseAnd(mask, ordering: .sequentiallyConsistent)
    }
  }

  /// The vector of the highest priority.
  var highest: UInt8? {
    let words: InlineArray<4, UInt64> = [
      low.load(ordering: .sequentiallyConsistent), second.load(ordering: .sequentiallyConsistent),
      third.load(ordering: .sequentiallyConsistent), high.load(ordering: .sequentiallyConsistent),
    ]
    for n in (0..<4).reversed() where words[n] != 0 {
      return UInt8(n) << 6 | UInt8(63 &- words[n].leadingZeroBitCount)
    }
    return nil
  }

  func raiseOther(_ bits: UInt64) { others.bitwiseOr(bits, ordering: .sequentiallyConsistent) }

  /// A start-up IPI replaces a pending one.
  func startUp(_ vector: UInt8) {
    others.bitwiseAnd(~0xFF, ordering: .sequentiallyConsistent)
    raiseOther(UInt64(vector) | Self.startUpBit)
  }

  func takeOther(_ bits: UInt64) -> UInt64 {
    others.bitwiseAnd(~bits, ordering: .sequentiallyConsistent).oldValue & bits
  }

  var isEmpty: Bool { highest == nil && others.load(ordering: .sequentiallyConsistent) == 0 }
}

extension PhysicalCPU {
  /// The vector of a kick if the exit acknowledges interrupts.
  package static let kickVector: UInt8 = 0xFD

  /// Raises an external interrupt. From any thread.
  package func interrupt(_ vector: UInt8) {
    signals.raise(vector)
    request(CPURequest.signal)
  }

  /// Raises a non-maskable interrupt. From any thread.
  package func raiseNMI() { raiseOther(CPUSignals.nmi) }

  /// Raises an INIT signal. From any thread.
  package func raiseINIT() { raiseOther(CPUSignals.initSignal) }

  /// Sends a start-up IPI, which is lost unless the guest waits for one. From any thread.
  package func startUp(_ vector: UInt8) {
    signals.startUp(vector)
    request(CPURequest.signal)
  }

  private func raiseOther(_ bits: UInt64) {
    signals.raiseOther(bits)
    request(CPURequest.signal)
  }

  /// Takes a pending external interrupt and returns its vector.
  package func acknowledgeInterrupt() -> UInt8? {
    guard let vector = signals.highest else { return nil }
    signals.clear(vector)
    settleSignals()
    return vector
  }

  /// Clears the request when nothing is pending.
  func settleSignals() {
    if !signals.isEmpty { return }
    _ = takeRequest(CPURequest.signal)
    if !signals.isEmpty { request(CPURequest.signal) }
  }
}

extension CPU {
  /// Takes INIT signals and start-up IPIs, which precede all else.
  ///
  /// - Returns: false on an exit.
  func takeStartSignals() -> Bool {
    let signals = owner.signals
    let waits = s.pointee.activity == ActivityState.waitForSIPI
    // INIT is blocked while the processor waits for a start-up IPI; otherwise the IPI is lost.
    let startUp = signals.takeOther(CPUSignals.startUpBit | 0xFF)
    if waits {
      if startUp & CPUSignals.startUpBit == 0 { return true }
      owner.settleSignals()
      _ = exit(.startupIPI, value: startUp & 0xFF)
      return false
    }
    let isINIT = signals.takeOther(CPUSignals.initSignal) != 0
    owner.settleSignals()
    if !isINIT { return true }
    _ = exit(.initSignal)
    return false
  }

  /// - Returns: false on an exit.
  func takeNMI() -> Bool {
    if s.pointee.activity == ActivityState.waitForSIPI { return true }
    let blocking = Interruptibility.blockingByNMI | Interruptibility.blockingByMovSS
    let exits = intercepts(.nmi)
    if !exits && s.pointee.interruptibility & blocking != 0 { return true }
    guard owner.signals.takeOther(CPUSignals.nmi) != 0 else { return true }
    owner.settleSignals()
    if exits {
      _ = exit(.nmi)
      s.pointee.exit.event = .nmi
      return false
    }
    s.pointee.activity = ActivityState.active
    return deliverWaiting(.nmi)
  }

  /// - Returns: false on an exit.
  func takeInterrupt() -> Bool {
    let signals = owner.signals
    while s.pointee.activity <= ActivityState.hlt, let vector = signals.highest {
      if intercepts(.externalInterrupt) || s.pointee.intercepts.mode == .svm {
        if UInt16(vector) == s.pointee.virtualAPIC.postedVector {
          signals.clear(vector)
          takePostedInterrupts()
          continue
        }
        if !s.pointee.virtualAPIC.features.contains(.acknowledges) {
          _ = exit(.externalInterrupt)
          return false
        }
        signals.clear(vector)
        owner.settleSignals()
        _ = exit(.externalInterrupt)
        s.pointee.exit.event = GuestEvent(.externalInterrupt, vector: vector)
        return false
      }
      let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
      let isOpen =
        s.pointee.rflags & RFLAGS.if.rawValue != 0 && s.pointee.interruptibility & shadows == 0
      if !isOpen { return true }
      signals.clear(vector)
      s.pointee.activity = ActivityState.active
      if !deliverWaiting(GuestEvent(.externalInterrupt, vector: vector)) { return false }
    }
    owner.settleSignals()
    return true
  }
}
