// SPDX-License-Identifier: Apache-2.0
//
// The rules of the registers (existence by mode, writable bits) and access through the xAPIC page.
// SDM volume 3: "Local APIC Register Address Map", "APIC Register Address Map and Access", and the
// section of each register.

import X86

extension LocalAPIC {
  /// The owner's work after a register write.
  package enum Effect: Sendable, Hashable {
    case none
    /// Route this message.
    case send(InterprocessorInterrupt)
    /// Report the end of this level-triggered vector to the I/O APIC.
    case endOfInterrupt(UInt8)
    /// This edge-triggered vector ended, for code that counts ends.
    case edgeEnded(UInt8)
    /// `nextDeadline` changed.
    case timerChanged
    /// `identity` changed (by ID, LDR, DFR or SVR), and with SVR also `acceptsExternalInterrupts`.
    case identityChanged
    /// A LINT entry changed: check `acceptsExternalInterrupts` again.
    case linesChanged
  }

  enum Access { case readOnly, writeOnly, readWrite }

  struct Rule {
    var access: Access
    /// Bits that software may change.
    var writable: UInt32
    /// Bits that ignore writes without being reserved.
    var ignored: UInt32 = 0
  }

  /// The rule of the register at `offset` in the current mode; nil if there is none.
  func rule(_ offset: Int) -> Rule? {
    let wide = mode == .x2APIC
    let xAPICOnly: UInt32 = 0xFF00_0000
    switch offset {
    case APICRegister.id, APICRegister.ldr:
      if wide { return Rule(access: .readOnly, writable: 0) }
      return Rule(access: .readWrite, writable: xAPICOnly)
    case APICRegister.version, APICRegister.ppr, APICRegister.currentCount,
      APICRegister.isr..<APICRegister.esr:
      return Rule(access: .readOnly, writable: 0)
    case APICRegister.apr, APICRegister.rrd:
      return wide ? nil : Rule(access: .readOnly, writable: 0)
    case APICRegister.dfr:
      return wide ? nil : Rule(access: .readWrite, writable: 0xF000_0000)
    case APICRegister.icrHigh:
      return wide ? nil : Rule(access: .readWrite, writable: xAPICOnly)
    case APICRegister.tpr: return Rule(access: .readWrite, writable: 0xFF)
    case APICRegister.eoi: return Rule(access: .writeOnly, writable: 0)
    case APICRegister.svr: return Rule(access: .readWrite, writable: writableSVR)
    case APICRegister.esr: return Rule(access: .readWrite, writable: 0)
    case APICRegister.icrLow:
      // Like KVM, the xAPIC stores reserved bits as written; the x2APIC faults on them.
      let writable: UInt32 = wide ? 0xC_CFFF : ~APICICR.deliveryStatus
      return Rule(access: .readWrite, writable: writable, ignored: APICICR.deliveryStatus)
    case APICRegister.initialCount: return Rule(access: .readWrite, writable: 0xFFFF_FFFF)
    case APICRegister.divideConfiguration: return Rule(access: .readWrite, writable: 0xB)
    case APICRegister.selfIPI: return wide ? Rule(access: .writeOnly, writable: 0xFF) : nil
    default: return ruleOfLVT(offset)
    }
  }

  private var writableSVR: UInt32 {
    let suppression =
      features.contains(.eoiBroadcastSuppression) ? APICSVR.suppressEOIBroadcast : 0
    return APICSVR.vectorMask | APICSVR.enabled | APICSVR.focusDisabled | suppression
  }

  private func ruleOfLVT(_ offset: Int) -> Rule? {
    let common = APICLVT.vectorMask | APICLVT.masked
    let status = APICLVT.deliveryStatus
    switch offset {
    case APICRegister.lvtTimer:
      let modes = features.contains(.tscDeadline) ? APICLVT.timerModeMask : 1 << 17
      return Rule(access: .readWrite, writable: common | modes, ignored: status)
    case APICRegister.lvtThermal, APICRegister.lvtPerformance:
      return Rule(access: .readWrite, writable: common | APICLVT.deliveryModeMask, ignored: status)
    case APICRegister.lvtCMCI where features.contains(.cmci):
      return Rule(access: .readWrite, writable: common | APICLVT.deliveryModeMask, ignored: status)
    case APICRegister.lvtLINT0, APICRegister.lvtLINT1:
      return Rule(
        access: .readWrite,
        writable: common | APICLVT.deliveryModeMask | APICLVT.polarity | APICLVT.level,
        ignored: status | APICLVT.remoteIRR)
    case APICRegister.lvtError:
      return Rule(access: .readWrite, writable: common, ignored: status)
    default: return nil
    }
  }
}

// MARK: - The xAPIC page

extension LocalAPIC {
  /// Reads the 32-bit register at `offset` (a multiple of 16, below 0x1000) of the xAPIC page.
  /// An address without register reads 0 and is an error in ESR.
  package mutating func readRegister(_ offset: Int, at time: Time) -> UInt32 {
    guard mode == .xAPIC, offset & 0xF == 0, let rule = rule(offset) else {
      if mode == .xAPIC { report(APICESR.illegalRegisterAddress) }
      return 0
    }
    guard rule.access != .writeOnly else { return 0 }
    return offset == APICRegister.currentCount ? currentCount(at: time) : self[offset]
  }

  /// Reads `width` bytes (1, 2, 4 or 8) at any offset of the page: a register has four bytes; the
  /// other twelve read 0.
  package mutating func readMMIO(_ offset: Int, width: Int, at time: Time) -> UInt64 {
    let shift = UInt64(truncatingIfNeeded: (offset & 0xF) &* 8)
    guard shift < 32 else { return 0 }
    let value = UInt64(readRegister(offset & ~0xF, at: time)) &>> shift
    return width >= 8 ? value : value & ((1 &<< UInt64(truncatingIfNeeded: width &* 8)) &- 1)
  }

  /// Writes the 32-bit register at `offset` of the xAPIC page. Reserved bits keep their value;
  /// writes not at the start of a register are ignored.
  @discardableResult
  package mutating func writeRegister(
    _ offset: Int, _ value: UInt32, at time: Time
  ) -> Effect {
    guard mode == .xAPIC, offset & 0xF == 0 else { return .none }
    guard let rule = rule(offset) else {
      report(APICESR.illegalRegisterAddress)
      return .none
    }
    guard rule.access != .readOnly else { return .none }
    return store(offset, value, rule, at: time)
  }

  /// Stores a valid write and performs the register's effect.
  mutating func store(_ offset: Int, _ value: UInt32, _ rule: Rule, at time: Time) -> Effect {
    let old = self[offset]
    let new = old & ~rule.writable | value & rule.writable
    switch offset {
    case APICRegister.tpr:
      setTaskPriority(UInt8(truncatingIfNeeded: value))
      return .none
    case APICRegister.eoi: return writeEOI()
    case APICRegister.esr:
      self[APICRegister.esr] = pendingErrors
      pendingErrors = 0
      return .none
    case APICRegister.selfIPI: return sendToSelf(UInt8(truncatingIfNeeded: value))
    case APICRegister.initialCount: return startTimer(count: value, at: time)
    case APICRegister.divideConfiguration: return setDivider(new, at: time)
    case APICRegister.icrLow:
      self[offset] = new
      return sendCommand()
    case APICRegister.svr: return storeSVR(new)
    case APICRegister.lvtCMCI, APICRegister.lvtTimer...APICRegister.lvtError:
      return storeLVT(offset, new, at: time)
    default:
      self[offset] = new
      return offset == APICRegister.icrHigh ? .none : .identityChanged
    }
  }

  /// Ends the highest interrupt in service.
  package mutating func writeEOI() -> Effect {
    let ending = highestISR
    if let vector = endOfInterrupt() { return .endOfInterrupt(vector) }
    return ending == 0 || isLevelTriggered(ending) ? .none : .edgeEnded(ending)
  }

  private mutating func storeSVR(_ value: UInt32) -> Effect {
    self[APICRegister.svr] = value
    if value & APICSVR.enabled == 0 { maskAllLVT() }
    return .identityChanged
  }

  private mutating func storeLVT(_ offset: Int, _ value: UInt32, at time: Time) -> Effect {
    // While software-disabled the mask bits cannot be cleared.
    let forced = isSoftwareEnabled ? value : value | APICLVT.masked
    switch offset {
    case APICRegister.lvtTimer: return setTimerEntry(forced)
    case APICRegister.lvtLINT0, APICRegister.lvtLINT1:
      self[offset] = forced
      // An edge-triggered entry has no remote IRR.
      if forced & APICLVT.level == 0 { self[offset] &= ~APICLVT.remoteIRR }
      return .linesChanged
    default:
      self[offset] = forced
      return .none
    }
  }

  private mutating func sendToSelf(_ vector: UInt8) -> Effect {
    if vector < 16 {
      report(APICESR.sendIllegalVector)
    } else if isSoftwareEnabled {
      request(vector)
    }
    return .none
  }

  /// Builds the message that ICR describes.
  private mutating func sendCommand() -> Effect {
    let low = self[APICRegister.icrLow]
    let high = self[APICRegister.icrHigh]
    let wide = mode == .x2APIC
    let delivery = DeliveryMode(bits10To8: low)
    let vector = UInt8(truncatingIfNeeded: low)
    if delivery.usesVector, vector < 16 {
      report(APICESR.sendIllegalVector)
      return .none
    }
    // The level de-assert of INIT has no effect since the serial APIC bus went away.
    let isDeassert = low & APICICR.level != 0 && low & APICICR.assert == 0
    if delivery == .reserved || delivery == .external || delivery == .initialize && isDeassert {
      return .none
    }
    let message = InterruptMessage(
      destination: wide ? high : high >> 24,
      destinationMode: low & APICICR.logical == 0 ? .physical : .logical,
      deliveryMode: delivery, vector: vector, isWide: wide)
    let shorthand = UInt8(truncatingIfNeeded: (low >> APICICR.shorthandShift) & 3)
    return .send(
      InterprocessorInterrupt(
        message: message, shorthand: .init(rawValue: shorthand) ?? .none))
  }
}
