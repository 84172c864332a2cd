// SPDX-License-Identifier: Apache-2.0
//
// The paravirtual features that can be offered to a guest: the bits of KVM's CPUID leaf.

/// Bits of CPUID leaf 0x40000001 EAX (Linux, "KVM CPUID bits").
enum ParavirtualFeature {
  static let clockSource: UInt32 = 1 << 0
  static let noIODelay: UInt32 = 1 << 1
  static let clockSource2: UInt32 = 1 << 3
  static let asyncFault: UInt32 = 1 << 4
  static let stealTime: UInt32 = 1 << 5
  static let endOfInterrupt: UInt32 = 1 << 6
  static let unhalt: UInt32 = 1 << 7
  static let flush: UInt32 = 1 << 9
  static let sendInterrupts: UInt32 = 1 << 11
  static let pollControl: UInt32 = 1 << 12
  static let yield: UInt32 = 1 << 13
  static let asyncFaultInterrupt: UInt32 = 1 << 14
  static let migrationControl: UInt32 = 1 << 17
  static let stableClock: UInt32 = 1 << 24

  /// The feature of each MSR.
  static let ofMSR: [UInt32: UInt32] = [
    ParavirtualMSR.oldWallClock: clockSource, ParavirtualMSR.oldSystemTime: clockSource,
    ParavirtualMSR.wallClock: clockSource2, ParavirtualMSR.systemTime: clockSource2,
    ParavirtualMSR.stealTime: stealTime, ParavirtualMSR.pollControl: pollControl,
    ParavirtualMSR.endOfInterrupt: endOfInterrupt, ParavirtualMSR.asyncFault: asyncFault,
    ParavirtualMSR.asyncFaultVector: asyncFaultInterrupt,
    ParavirtualMSR.asyncFaultAcknowledge: asyncFaultInterrupt,
    ParavirtualMSR.migrationControl: migrationControl,
  ]
}

/// Hypercalls: number in RAX, arguments in RBX, RCX, RDX, RSI (Linux, "Linux KVM Hypercall").
enum Hypercall {
  /// Wakes the CPU whose APIC identifier is the second argument.
  static let kickCPU: UInt64 = 5
  /// The host's wall clock and the guest's TSC at the same moment.
  static let clockPairing: UInt64 = 9
  /// Sends an interrupt to the CPUs of a bitmap: its two words, its first APIC identifier, ICR's
  /// low word.
  static let sendInterrupts: UInt64 = 10
  /// Yields to the CPU whose APIC identifier is the first argument.
  static let yield: UInt64 = 11
  /// Tells the host how a range of memory is used (confidential guests).
  static let mapGPARange: UInt64 = 12
  /// Hypercalls that a client can request exits for.
  static let exitable: UInt64 = 1 << mapGPARange
  static let invalid: Int64 = -22
  static let fault: Int64 = -14
  static let notSupported: Int64 = -95
  static let notPermitted: Int64 = -1
  static let notImplemented: Int64 = -1000
}
