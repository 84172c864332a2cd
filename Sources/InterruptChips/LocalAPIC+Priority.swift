// SPDX-License-Identifier: Apache-2.0
//
// IRR, ISR, TMR and the priorities: which vector the processor may take, taking it, ending it.
// SDM volume 3: "Handling Interrupts", "Task and Processor Priorities", "Signaling Interrupt
// Servicing Completion".

import X86

extension LocalAPIC {
  /// Whether a vector is pending whose class is above the processor's priority. A few machine
  /// instructions, cheap enough for every VM entry.
  package var hasDeliverableInterrupt: Bool {
    UInt32(highestIRR & 0xF0) > self[APICRegister.ppr] & 0xF0
  }

  /// The vector that `acceptHighest` would take, if any.
  package var highestPendingVector: UInt8? { hasDeliverableInterrupt ? highestIRR : nil }

  /// The highest vector in IRR, deliverable or not (RVI, and for the TPR threshold).
  package var highestRequestedVector: UInt8? { highestIRR == 0 ? nil : highestIRR }

  /// The highest vector in ISR (SVI).
  package var highestServicedVector: UInt8? { highestISR == 0 ? nil : highestISR }

  package var taskPriority: UInt8 { UInt8(truncatingIfNeeded: self[APICRegister.tpr]) }
  package var processorPriority: UInt8 { UInt8(truncatingIfNeeded: self[APICRegister.ppr]) }

  /// CR8: bits 7:4 of TPR. Writing it clears the sub-class. The caller has raised #GP for
  /// values above 15.
  package var cr8: UInt8 {
    get { taskPriority >> 4 }
    set { setTaskPriority((newValue & 0xF) &<< 4) }
  }

  package mutating func setTaskPriority(_ value: UInt8) {
    self[APICRegister.tpr] = UInt32(value)
    updatePriority()
  }

  /// Takes the highest deliverable vector: IRR to ISR. Returns nil when there is none.
  package mutating func acceptHighest() -> UInt8? {
    guard hasDeliverableInterrupt else { return nil }
    let vector = highestIRR
    clear(APICRegister.irr, vector)
    highestIRR = highest(APICRegister.irr, from: vector)
    set(APICRegister.isr, vector)
    highestISR = vector
    updatePriority()
    return vector
  }

  /// Requests a vector of this processor: sets IRR and TMR. False if it was already requested (the
  /// two merge). A vector below 16 is an error instead and returns false.
  @discardableResult
  package mutating func request(_ vector: UInt8, trigger: TriggerMode = .edge) -> Bool {
    guard vector >= 16 else {
      report(APICESR.receivedIllegalVector)
      return false
    }
    let isNew = !test(APICRegister.irr, vector)
    set(APICRegister.irr, vector)
    if trigger == .level {
      set(APICRegister.tmr, vector)
    } else {
      clear(APICRegister.tmr, vector)
    }
    if vector > highestIRR { highestIRR = vector }
    return isNew
  }

  /// Ends the highest interrupt in service. Returns its vector if the I/O APIC needs it: it was
  /// level-triggered and the broadcast is not suppressed.
  package mutating func endOfInterrupt() -> UInt8? {
    let vector = highestISR
    guard vector != 0 else { return nil }
    clear(APICRegister.isr, vector)
    highestISR = highest(APICRegister.isr, from: vector)
    updatePriority()
    guard test(APICRegister.tmr, vector) else { return nil }
    endLocalLevel(vector)
    let suppressed =
      features.contains(.eoiBroadcastSuppression)
      && self[APICRegister.svr] & APICSVR.suppressEOIBroadcast != 0
    return suppressed ? nil : vector
  }

  package func isRequested(_ vector: UInt8) -> Bool { test(APICRegister.irr, vector) }
  package func isInService(_ vector: UInt8) -> Bool { test(APICRegister.isr, vector) }
  package func isLevelTriggered(_ vector: UInt8) -> Bool { test(APICRegister.tmr, vector) }

  /// PPR is the higher of TPR and the class in service; on a tie TPR with its sub-class.
  mutating func updatePriority() {
    let task = self[APICRegister.tpr] & 0xFF
    let service = UInt32(highestISR & 0xF0)
    self[APICRegister.ppr] = task & 0xF0 >= service ? task : service
  }

  /// Recomputes the cached highest bits after the page was loaded.
  mutating func rebuildPriorityCache() {
    highestIRR = highest(APICRegister.irr, from: 0xFF)
    highestISR = highest(APICRegister.isr, from: 0xFF)
    updatePriority()
  }
}

// MARK: - 256-bit sets

extension LocalAPIC {
  /// Byte offset of the register with `vector` in the set at `set`: 32 vectors in each.
  @inline(__always)
  private func slot(_ set: Int, _ vector: UInt8) -> Int { set &+ Int(vector >> 5) &<< 4 }

  @inline(__always)
  func test(_ set: Int, _ vector: UInt8) -> Bool {
    self[slot(set, vector)] & (1 &<< UInt32(vector & 31)) != 0
  }

  @inline(__always)
  mutating func set(_ set: Int, _ vector: UInt8) {
    self[slot(set, vector)] |= 1 &<< UInt32(vector & 31)
  }

  @inline(__always)
  mutating func clear(_ set: Int, _ vector: UInt8) {
    self[slot(set, vector)] &= ~(1 &<< UInt32(vector & 31))
  }

  /// The highest vector in `set`, from the register of `vector` downwards; 0 for none.
  func highest(_ set: Int, from vector: UInt8) -> UInt8 {
    var word = Int(vector >> 5)
    while word >= 0 {
      let bits = self[set &+ word &<< 4]
      if bits != 0 {
        return UInt8(truncatingIfNeeded: word &<< 5 &+ (31 &- bits.leadingZeroBitCount))
      }
      word &-= 1
    }
    return 0
  }
}
