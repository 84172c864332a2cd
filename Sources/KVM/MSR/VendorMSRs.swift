// SPDX-License-Identifier: Apache-2.0
//
// MSRs of other vendors' and older processors that kernels access without checking CPUID: they read
// as 0, and writes to some of them are ignored. KVM does the same for guests whose CPUID says AMD.

import X86

enum VendorMSR {
  /// HWCR: bit 18 makes machine-check status writable, bit 24 says how the TSC counts.
  static let hardwareConfiguration: UInt32 = 0xC001_0015
  static let storedHardwareConfiguration: UInt64 = 1 << 18 | 1 << 24
  /// After reset of an AMD processor: the TSC counts equally fast in every state.
  static let resetHardwareConfiguration: UInt64 = 1 << 24
  /// Bits of it that are ignored: cache and FERR# settings of firmware.
  static let ignoredHardwareConfiguration: UInt64 = 1 << 3 | 1 << 6 | 1 << 8

  /// EBL_CR_POWERON, SYSCFG, interrupt pending, MMIO configuration base, SMM's TSEG.
  private static let readAsZero: Set<UInt32> = [
    0x2A, 0xC001_0010, 0xC001_0055, 0xC001_0058, 0xC001_0112, 0xC001_0113,
  ]
  /// Northbridge configuration, microcode patch loader, SVM's host save area, bus unit and data
  /// cache configuration.
  private static let ignored: Set<UInt32> = [
    0xC001_001F, 0xC001_0020, 0xC001_0117, 0xC001_1022, 0xC001_102A,
  ]

  static func isReadable(_ number: UInt32) -> Bool {
    readAsZero.contains(number) || ignored.contains(number)
  }

  static func isWritable(_ number: UInt32) -> Bool { ignored.contains(number) }
}
