// SPDX-License-Identifier: Apache-2.0
//
// Inputs: messages from the bus, the LINT pins (including the 8259's INTR, "virtual wire"), the
// processor's own sources, and errors. SDM volume 3: "Handling Interrupts", "Local Vector Table",
// "Error Handling".

import X86

extension LocalAPIC {
  /// The processor's work after a delivery.
  package enum Delivery: Sendable, Hashable {
    /// Not accepted: disabled, masked, or nothing to deliver.
    case ignored
    /// A vector is newly requested in IRR.
    case requested
    /// The vector was already requested: the two merge.
    case coalesced
    case nmi
    case smi
    case initialize
    /// Start-up message: the page number of the start address.
    case startup(UInt8)
    /// An INTA cycle of the 8259 must fetch the vector.
    case external
  }

  /// Accepts a message that `identity` matches.
  @discardableResult
  package mutating func deliver(_ message: InterruptMessage) -> Delivery {
    guard mode != .disabled else { return .ignored }
    switch message.deliveryMode {
    case .fixed, .lowestPriority:
      guard isSoftwareEnabled else { return .ignored }
      return requestOutcome(message.vector, trigger: message.trigger)
    case .nmi: return .nmi
    case .smi: return .smi
    case .initialize:
      // The level de-assert only synchronised arbitration identifiers on old buses.
      return message.trigger == .level && !message.asserted ? .ignored : .initialize
    case .startup: return .startup(message.vector)
    case .external: return .external
    case .reserved: return .ignored
    }
  }

  /// Whether the 8259's INTR reaches the processor: through LINT0 programmed for ExtINT, or
  /// directly while the local APIC is disabled.
  package var acceptsExternalInterrupts: Bool {
    if mode == .disabled { return true }
    let entry = self[APICRegister.lvtLINT0]
    return entry & APICLVT.masked == 0 && DeliveryMode(bits10To8: entry) == .external
  }

  /// Drives pin LINT0 or LINT1 (`pin` 0 or 1).
  package mutating func setLINT(_ pin: Int, asserted: Bool) -> Delivery {
    let bit: UInt8 = pin == 0 ? 1 : 2
    let wasAsserted = lineLevels & bit != 0
    if asserted { lineLevels |= bit } else { lineLevels &= ~bit }
    guard asserted else { return .ignored }
    if mode == .disabled {
      // Then the pins are the processor's INTR and NMI.
      return pin == 0 ? .external : (wasAsserted ? .ignored : .nmi)
    }
    return serviceLINT(pin == 0 ? APICRegister.lvtLINT0 : APICRegister.lvtLINT1, wasAsserted)
  }

  /// Raises one of the processor's own LVT entries: `APICRegister.lvtPerformance`, `.lvtThermal`,
  /// `.lvtCMCI`, `.lvtTimer` or `.lvtError`. Like the hardware, a performance interrupt masks its
  /// entry.
  @discardableResult
  package mutating func raiseLocal(_ offset: Int) -> Delivery {
    let entry = self[offset]
    guard mode != .disabled, entry & APICLVT.masked == 0 else { return .ignored }
    if offset == APICRegister.lvtPerformance { self[offset] |= APICLVT.masked }
    return deliverLocal(entry, isTimerOrError: isFixedOnly(offset))
  }

  /// Records an error; the first of its kind since ESR was written raises the error LVT entry.
  mutating func report(_ error: UInt32) {
    guard pendingErrors & error == 0 else { return }
    pendingErrors |= error
    let entry = self[APICRegister.lvtError]
    let vector = UInt8(truncatingIfNeeded: entry & APICLVT.vectorMask)
    // An illegal vector here would report itself endlessly.
    guard entry & APICLVT.masked == 0, vector >= 16 else { return }
    request(vector)
  }

  /// A level-triggered LINT entry whose vector ended requests it again while its pin is asserted.
  mutating func endLocalLevel(_ vector: UInt8) {
    for pin in 0..<2 {
      let offset = pin == 0 ? APICRegister.lvtLINT0 : APICRegister.lvtLINT1
      let entry = self[offset]
      guard entry & APICLVT.remoteIRR != 0, entry & APICLVT.vectorMask == UInt32(vector) else {
        continue
      }
      self[offset] &= ~APICLVT.remoteIRR
      if lineLevels & (1 &<< UInt8(truncatingIfNeeded: pin)) != 0 {
        _ = serviceLINT(offset, false)
      }
    }
  }

  private func isFixedOnly(_ offset: Int) -> Bool {
    offset == APICRegister.lvtTimer || offset == APICRegister.lvtError
  }

  private mutating func serviceLINT(_ offset: Int, _ wasAsserted: Bool) -> Delivery {
    let entry = self[offset]
    guard entry & APICLVT.masked == 0 else { return .ignored }
    let delivery = DeliveryMode(bits10To8: entry)
    // ExtINT follows the level of INTR; of the others only fixed may be level-triggered.
    if delivery == .external { return .external }
    if delivery == .fixed, entry & APICLVT.level != 0 {
      guard entry & APICLVT.remoteIRR == 0 else { return .coalesced }
      self[offset] |= APICLVT.remoteIRR
      let vector = UInt8(truncatingIfNeeded: entry & APICLVT.vectorMask)
      return requestOutcome(vector, trigger: .level)
    }
    return wasAsserted ? .ignored : deliverLocal(entry, isTimerOrError: false)
  }

  private mutating func deliverLocal(_ entry: UInt32, isTimerOrError: Bool) -> Delivery {
    let vector = UInt8(truncatingIfNeeded: entry & APICLVT.vectorMask)
    if isTimerOrError { return requestOutcome(vector, trigger: .edge) }
    switch DeliveryMode(bits10To8: entry) {
    case .fixed: return requestOutcome(vector, trigger: .edge)
    case .nmi: return .nmi
    case .smi: return .smi
    case .initialize: return .initialize
    case .external: return .external
    case .lowestPriority, .startup, .reserved: return .ignored
    }
  }

  private mutating func requestOutcome(_ vector: UInt8, trigger: TriggerMode) -> Delivery {
    guard vector >= 16 else {
      report(APICESR.receivedIllegalVector)
      return .ignored
    }
    return request(vector, trigger: trigger) ? .requested : .coalesced
  }
}
