// SPDX-License-Identifier: Apache-2.0

/// Bits of CPUID leaf 0x40000001 EAX (Linux, "KVM CPUID bits").
enum ParavirtualFeature {
  static let clockSource: UInt32 = 1 << 0
  static let noIODelay: UInt32 = 1 << 1
  static let clockSource2: UInt32 = 1 << 3
  static let unhalt: UInt32 = 1 << 7
  static let stableClock: UInt32 = 1 << 24
}

/// Hypercalls: number in RAX, arguments in RBX, RCX, RDX, RSI (Linux, "Linux KVM Hypercall").
enum Hypercall {
  /// Wakes the CPU whose APIC identifier is the second argument.
  static let kickCPU: UInt64 = 5
  static let notPermitted: Int64 = -1
  static let notImplemented: Int64 = -1000
}
