// SPDX-License-Identifier: Apache-2.0
//
// The address of a local APIC. A small value, so that a router can keep one per processor and match
// messages without locking any local APIC.
//
// SDM volume 3: "Determining IPI Destination", "Logical Destination Mode in x2APIC Mode".

package struct LocalAPICIdentity: Sendable, Hashable {
  package enum Mode: UInt8, Sendable, Hashable {
    /// IA32_APIC_BASE.EN is 0: it receives nothing.
    case disabled
    case xAPIC
    case x2APIC
  }

  package var mode: Mode
  /// Eight bits in xAPIC mode, 32 in x2APIC mode.
  package var id: UInt32
  /// The logical identifier: bits 31:24 of LDR in xAPIC mode (here in bits 7:0), all of it in
  /// x2APIC mode.
  package var logicalID: UInt32
  /// DFR selects the flat model (xAPIC only).
  package var isFlat: Bool
  /// SVR.8; a software-disabled local APIC accepts only NMI, SMI, INIT and start-up messages.
  package var isSoftwareEnabled: Bool

  package init(
    mode: Mode, id: UInt32, logicalID: UInt32, isFlat: Bool = true, isSoftwareEnabled: Bool = true
  ) {
    self.mode = mode
    self.id = id
    self.logicalID = logicalID
    self.isFlat = isFlat
    self.isSoftwareEnabled = isSoftwareEnabled
  }

  /// Whether a message with this destination is for this local APIC.
  package func matches(_ message: InterruptMessage) -> Bool {
    guard mode != .disabled else { return false }
    if message.isBroadcast { return true }
    if message.destinationMode == .physical { return message.destination == id }
    return mode == .x2APIC
      ? matchesCluster32(message.destination) : matchesLogical8(message.destination)
  }

  /// Whether `interrupt` from `sender` is for this local APIC; `isSender` says that they are the
  /// same processor.
  package func matches(_ interrupt: InterprocessorInterrupt, isSender: Bool) -> Bool {
    switch interrupt.shorthand {
    case .none: matches(interrupt.message)
    case .selfOnly: mode != .disabled && isSender
    case .allIncludingSelf: mode != .disabled
    case .allExcludingSelf: mode != .disabled && !isSender
    }
  }

  private func matchesLogical8(_ destination: UInt32) -> Bool {
    guard destination <= 0xFF else { return false }
    if isFlat { return destination & logicalID != 0 }
    return destination >> 4 == logicalID >> 4 && destination & logicalID & 0xF != 0
  }

  private func matchesCluster32(_ destination: UInt32) -> Bool {
    destination >> 16 == logicalID >> 16 && destination & logicalID & 0xFFFF != 0
  }

  /// The logical identifier that an x2APIC derives from its identifier.
  package static func x2APICLogicalID(of id: UInt32) -> UInt32 {
    (id >> 4) &<< 16 | 1 &<< (id & 0xF)
  }
}
