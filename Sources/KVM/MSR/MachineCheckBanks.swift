// SPDX-License-Identifier: Apache-2.0
//
// A vCPU's machine-check banks: KVM_X86_SETUP_MCE sets their number, KVM_X86_SET_MCE reports an
// error in one (SDM volume 3, "Machine-Check MSRs").

import CHost
import SystemPackage
import X86

/// The machine-check features for guests.
enum MachineCheck {
  static let maxBanks: UInt64 = 32
  /// IA32_MCG_CAP: 8 control register present, 10 corrected errors interrupt, 24 software error
  /// recovery.
  static let controlPresent: UInt64 = 1 << 8
  static let correctedInterrupt: UInt64 = 1 << 10
  static let capabilities: UInt64 =
    maxBanks | controlPresent | correctedInterrupt | 1 << 24

  /// IA32_MCi_STATUS.
  static let valid: UInt64 = 1 << 63
  static let overflow: UInt64 = 1 << 62
  static let uncorrected: UInt64 = 1 << 61
  /// The context is corrupt; signalled; needs action.
  static let contextCorrupt: UInt64 = 1 << 57
  static let signalled: UInt64 = 1 << 56
  static let actionRequired: UInt64 = 1 << 55
  /// IA32_MCi_CTL2: the interrupt is enabled; the threshold.
  static let interruptEnable: UInt64 = 1 << 30
  static let threshold: UInt64 = 0x7FFF
  /// IA32_MCG_STATUS: a machine check is in progress.
  static let inProgress: UInt64 = 1 << 2
}

/// Only the thread in an ioctl of the vCPU uses it.
struct MachineCheckBanks: Sendable {
  /// The effect of a reported error.
  enum Outcome { case none, exception, tripleFault, correctedInterrupt }

  var capabilities: UInt64 = 10 | MachineCheck.controlPresent
  private var status: UInt64 = 0
  private var control: UInt64 = .max
  /// CTL, STATUS, ADDR and MISC of each bank.
  private var banks: [UInt64]
  /// CTL2 of each bank.
  private var controls2: [UInt64]

  init() {
    banks = Array(repeating: 0, count: Int(MachineCheck.maxBanks) * 4)
    controls2 = Array(repeating: 0, count: Int(MachineCheck.maxBanks))
    resetControls()
  }

  private var count: UInt64 { capabilities & 0xFF }

  private mutating func resetControls() {
    for bank in 0..<Int(count) {
      banks[bank * 4] = .max
      controls2[bank] = 0
    }
  }

  var hasCorrectedInterrupt: Bool { capabilities & MachineCheck.correctedInterrupt != 0 }

  /// KVM_X86_SETUP_MCE.
  mutating func setUp(_ capabilities: UInt64) throws(Errno) {
    let banks = capabilities & 0xFF
    // Bits 23:16 count the extended state registers.
    let known = MachineCheck.capabilities | 0xFF | 0xFF_0000
    guard banks > 0, banks <= MachineCheck.maxBanks, capabilities & ~known == 0 else {
      throw .invalidArgument
    }
    self.capabilities = capabilities
    if capabilities & MachineCheck.controlPresent != 0 { control = .max }
    resetControls()
  }

  /// KVM_X86_SET_MCE.
  ///
  /// - Parameter isEnabled: CR4.MCE.
  mutating func report(_ event: kvm_x86_mce, isEnabled: Bool) throws(Errno) -> Outcome {
    guard UInt64(event.bank) < count, event.status & MachineCheck.valid != 0 else {
      throw .invalidArgument
    }
    let bank = Int(event.bank) * 4
    if Self.needsNoAction(event) { return reportNoAction(event) }
    let isUncorrected = event.status & MachineCheck.uncorrected != 0
    if isUncorrected {
      // A control that is not all ones disables reporting.
      let hasControl = capabilities & MachineCheck.controlPresent != 0
      if hasControl && control != .max || banks[bank] != .max { return .none }
      if status & MachineCheck.inProgress != 0 || !isEnabled { return .tripleFault }
    }
    let old = banks[bank + 1]
    let isOccupied = old & MachineCheck.valid != 0
    if !isUncorrected, isOccupied, old & MachineCheck.uncorrected != 0 {
      banks[bank + 1] |= MachineCheck.overflow
      return .none
    }
    banks[bank + 1] = event.status | (isOccupied ? MachineCheck.overflow : 0)
    banks[bank + 2] = event.addr
    banks[bank + 3] = event.misc
    guard isUncorrected else { return .none }
    status = event.mcg_status
    return .exception
  }

  /// Uncorrected, no action required (UCNA): signalled like corrected errors.
  private static func needsNoAction(_ event: kvm_x86_mce) -> Bool {
    let urgent =
      MachineCheck.contextCorrupt | MachineCheck.signalled | MachineCheck.actionRequired
    return event.mcg_status == 0 && event.status & MachineCheck.uncorrected != 0
      && event.status & urgent == 0
  }

  private mutating func reportNoAction(_ event: kvm_x86_mce) -> Outcome {
    let bank = Int(event.bank)
    banks[bank * 4 + 1] = event.status
    banks[bank * 4 + 2] = event.addr
    banks[bank * 4 + 3] = event.misc
    status = 0
    let isEnabled = controls2[bank] & MachineCheck.interruptEnable != 0
    return hasCorrectedInterrupt && isEnabled ? .correctedInterrupt : .none
  }

  // MARK: MSRs

  /// The bank of this CTL2.
  private func index2(_ number: UInt32) -> Int? {
    let index = Int(number) - Int(MSR.mc0Ctl2.rawValue)
    return index >= 0 && index < Int(count) ? index : nil
  }

  /// The index of a bank's register.
  private func index(_ number: UInt32) -> Int? {
    let index = Int(number) - Int(MSR.mc0Ctl.rawValue)
    return index >= 0 && index < Int(count) * 4 ? index : nil
  }

  /// - Returns: nil if this is not a register of the banks.
  func read(_ number: UInt32) -> UInt64? {
    switch MSR(rawValue: number) {
    case .mcgCap: capabilities
    case .mcgStatus: status
    case .mcgControl: capabilities & MachineCheck.controlPresent != 0 ? control : nil
    default: index(number).map { banks[$0] } ?? index2(number).map { controls2[$0] }
    }
  }

  /// Whether this is the number of a register of the banks.
  static func owns(_ number: UInt32) -> Bool {
    switch MSR(rawValue: number) {
    case .mcgCap, .mcgStatus, .mcgControl: true
    default:
      number &- MSR.mc0Ctl.rawValue < UInt32(MachineCheck.maxBanks) * 4
        || number &- MSR.mc0Ctl2.rawValue < UInt32(MachineCheck.maxBanks)
    }
  }

  /// - Returns: whether the value is valid.
  mutating func write(_ number: UInt32, _ value: UInt64, byHost: Bool) -> Bool {
    switch MSR(rawValue: number) {
    case .mcgCap: return byHost && value == capabilities
    case .mcgStatus: status = value
    case .mcgControl:
      let isPresent = capabilities & MachineCheck.controlPresent != 0
      guard isPresent || byHost && value == 0, value == 0 || value == .max else { return false }
      control = value
    default:
      if let bank = index2(number) {
        guard hasCorrectedInterrupt || byHost && value == 0,
          value & ~(MachineCheck.interruptEnable | MachineCheck.threshold) == 0
        else { return false }
        controls2[bank] = value
        return true
      }
      guard let index = index(number) else { return false }
      // Guests clear bit 10 or bit 0 of a control for old processors.
      if index & 3 == 0, value != 0, value | 1 << 10 | 1 != .max { return false }
      if index & 3 == 1, !byHost, value != 0 { return false }
      banks[index] = value
    }
    return true
  }
}
