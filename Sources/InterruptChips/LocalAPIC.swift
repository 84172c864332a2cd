// SPDX-License-Identifier: Apache-2.0
//
// The local APIC of one processor, in xAPIC and x2APIC mode: a pure state machine. Time and lines
// are injected; work for others (routing an IPI, reporting an EOI to the I/O APIC, arming a timer)
// is returned. SDM volume 3, "Advanced Programmable Interrupt Controller (APIC)".
//
// The state is the architectural register page (1 KiB, a register every 16 bytes), so a snapshot is
// a copy (`registerImage`), plus a few words. Invariants:
//   - `highestIRR` and `highestISR` are the highest bits set in IRR and ISR, 0 for none (vectors
//     below 16 cannot be delivered);
//   - PPR in the page is up to date after every mutation.
// So the check before each VM entry, `hasDeliverableInterrupt`, is two loads and a compare.
//
//   var apic = LocalAPIC(id: 0, isBootstrapProcessor: true)
//   apic.writeRegister(APICRegister.svr, 0x1FF, at: time)
//   apic.deliver(InterruptMessage(destination: 0, vector: 0x31))
//   if apic.hasDeliverableInterrupt { let vector = apic.acceptHighest() }

import X86

package struct LocalAPIC: ~Copyable, Sendable {
  /// Optional features of the model.
  package struct Features: OptionSet, Sendable {
    package var rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }
    package static let x2APIC = Features(rawValue: 1 << 0)
    package static let tscDeadline = Features(rawValue: 1 << 1)
    /// SVR.12 may suppress the EOI broadcast (version register bit 24).
    package static let eoiBroadcastSuppression = Features(rawValue: 1 << 2)
    /// A seventh LVT entry, for corrected machine checks.
    package static let cmci = Features(rawValue: 1 << 3)
  }

  /// The time of an access, on both clocks that a local APIC timer may count.
  package struct Time: Sendable, Hashable {
    package var nanoseconds: UInt64
    /// The guest's time-stamp counter.
    package var tsc: UInt64
    package init(nanoseconds: UInt64, tsc: UInt64 = 0) {
      self.nanoseconds = nanoseconds
      self.tsc = tsc
    }
  }

  let page: RegisterPage
  var highestIRR: UInt8 = 0
  var highestISR: UInt8 = 0
  /// Errors not yet latched into ESR by a write to it.
  var pendingErrors: UInt32 = 0
  /// Levels of the LINT0 (bit 0) and LINT1 (bit 1) pins.
  var lineLevels: UInt8 = 0
  /// The next expiry of the one-shot or periodic timer, in nanoseconds; nil when it is stopped.
  var timerExpiry: UInt64?
  /// IA32_TSC_DEADLINE; 0 when disarmed.
  var tscDeadlineValue: UInt64 = 0
  /// IA32_APIC_BASE.
  package internal(set) var base: UInt64
  /// The identifier at reset: all of it in x2APIC mode, the low eight bits in xAPIC mode.
  package let initialID: UInt32
  package var features: Features
  /// Length of one bus cycle, the timer's undivided tick.
  package var busCycleNanoseconds: UInt32 = 1

  package init(
    id: UInt32, isBootstrapProcessor: Bool, features: Features = [.x2APIC, .tscDeadline]
  ) {
    page = RegisterPage()
    initialID = id
    self.features = features
    base = APICBase.defaultAddress | APICBase.en.rawValue
    if isBootstrapProcessor { base |= APICBase.bsp.rawValue }
    resetRegisters(id: id &<< 24)
  }
}

// MARK: - Reset

extension LocalAPIC {
  /// Power-up or RESET: xAPIC mode, registers at their reset values.
  package mutating func reset() {
    base = APICBase.defaultAddress | APICBase.en.rawValue | (base & APICBase.bsp.rawValue)
    resetRegisters(id: initialID &<< 24)
  }

  /// Programs LINT0 to pass the 8259's INTR, as firmware does on the bootstrap processor ("Virtual
  /// Wire Mode" of the MultiProcessor Specification) and KVM after a reset by default.
  package mutating func presetVirtualWire() {
    self[APICRegister.lvtLINT0] = UInt32(DeliveryMode.external.rawValue) << 8
  }

  /// INIT: as RESET, except that the identifier and IA32_APIC_BASE stay
  /// ("Local APIC State After an INIT Reset").
  package mutating func initialize() {
    resetRegisters(id: self[APICRegister.id])
  }

  mutating func resetRegisters(id: UInt32) {
    page.clear()
    self[APICRegister.id] = id
    self[APICRegister.version] = versionRegister
    self[APICRegister.dfr] = 0xFFFF_FFFF
    self[APICRegister.svr] = 0xFF
    maskAllLVT()
    highestIRR = 0
    highestISR = 0
    pendingErrors = 0
    lineLevels = 0
    timerExpiry = nil
    tscDeadlineValue = 0
    if mode == .x2APIC {
      self[APICRegister.ldr] = LocalAPICIdentity.x2APICLogicalID(of: initialID)
    }
  }

  /// Sets the mask bit of every LVT entry, for reset and software disable.
  mutating func maskAllLVT() {
    if features.contains(.cmci) { self[APICRegister.lvtCMCI] |= APICLVT.masked }
    for offset in stride(from: APICRegister.lvtTimer, through: APICRegister.lvtError, by: 0x10) {
      self[offset] |= APICLVT.masked
    }
  }

  /// Adds or removes the seventh LVT entry, for corrected machine checks.
  package mutating func offerCorrectedErrors(_ offered: Bool) {
    guard features.contains(.cmci) != offered else { return }
    if offered { features.insert(.cmci) } else { features.remove(.cmci) }
    self[APICRegister.version] = versionRegister
    self[APICRegister.lvtCMCI] = offered ? APICLVT.masked : 0
  }

  /// Integrated APIC version 0x14, highest LVT entry, EOI-broadcast suppression.
  var versionRegister: UInt32 {
    let lastEntry: UInt32 = features.contains(.cmci) ? 6 : 5
    let suppression: UInt32 = features.contains(.eoiBroadcastSuppression) ? 1 << 24 : 0
    return 0x14 | lastEntry << 16 | suppression
  }
}

// MARK: - Modes

extension LocalAPIC {
  /// The register at byte `offset` (a multiple of 4 below 0x400) without side effects.
  subscript(_ offset: Int) -> UInt32 {
    @inline(__always) get { page[offset] }
    @inline(__always) set { page[offset] = newValue }
  }

  package var mode: LocalAPICIdentity.Mode {
    if base & APICBase.en.rawValue == 0 { return .disabled }
    return base & APICBase.extd.rawValue == 0 ? .xAPIC : .x2APIC
  }

  package var isSoftwareEnabled: Bool { self[APICRegister.svr] & APICSVR.enabled != 0 }

  /// Guest-physical address of the xAPIC page.
  package var baseAddress: UInt64 { base & APICBase.addressMask }

  /// The identifier in the current mode.
  package var id: UInt32 {
    mode == .x2APIC ? self[APICRegister.id] : self[APICRegister.id] >> 24
  }

  package var identity: LocalAPICIdentity {
    LocalAPICIdentity(
      mode: mode, id: id,
      logicalID: mode == .x2APIC ? self[APICRegister.ldr] : self[APICRegister.ldr] >> 24,
      isFlat: self[APICRegister.dfr] >> 28 == 0xF, isSoftwareEnabled: isSoftwareEnabled)
  }

  /// Writes IA32_APIC_BASE. False (the caller raises #GP(0)) for a reserved bit or a change of mode
  /// that "x2APIC State Transitions" does not allow.
  /// - Parameter physicalAddressWidth: MAXPHYADDR.
  package mutating func writeBase(_ value: UInt64, physicalAddressWidth: Int) -> Bool {
    let flags: APICBase = [.bsp, .extd, .en]
    let width = UInt64(max(32, min(physicalAddressWidth, 52)))
    let address = APICBase.addressMask & ((1 &<< width) &- 1)
    guard value & ~(flags.rawValue | address) == 0 else { return false }
    let old = mode
    let new = APICBase(rawValue: value)
    if new.contains(.extd) {
      guard features.contains(.x2APIC), new.contains(.en), old != .disabled else { return false }
    } else if new.contains(.en), old == .x2APIC {
      return false
    }
    base = value
    switch (old, mode) {
    case (.xAPIC, .x2APIC): enterX2APIC()
    case (.xAPIC, .disabled), (.x2APIC, .disabled): resetRegisters(id: initialID &<< 24)
    default: break
    }
    return true
  }

  private mutating func enterX2APIC() {
    self[APICRegister.id] = initialID
    self[APICRegister.ldr] = LocalAPICIdentity.x2APICLogicalID(of: initialID)
    self[APICRegister.icrHigh] = 0
  }
}
