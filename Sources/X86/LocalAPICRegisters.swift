// SPDX-License-Identifier: Apache-2.0
//
// The registers of the local APIC: offsets and bits.

/// IA32_APIC_BASE (SDM volume 3, "Local APIC Status and Location").
public struct APICBase: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var bsp: Self { Self(rawValue: 1 << 8) }
  /// x2APIC mode.
  @inlinable public static var extd: Self { Self(rawValue: 1 << 10) }
  /// xAPIC global enable.
  @inlinable public static var en: Self { Self(rawValue: 1 << 11) }

  @inlinable public static var defaultAddress: UInt64 { 0xFEE0_0000 }
  @inlinable public static var addressMask: UInt64 { 0x000F_FFFF_FFFF_F000 }
}

/// Offsets into the xAPIC page (SDM volume 3, "Local APIC Register Address Map"). The x2APIC MSR
/// of a register is `x2APICBase + offset / 16`.
public enum APICRegister {
  @inlinable public static var id: Int { 0x020 }
  @inlinable public static var version: Int { 0x030 }
  @inlinable public static var tpr: Int { 0x080 }
  @inlinable public static var apr: Int { 0x090 }
  @inlinable public static var ppr: Int { 0x0A0 }
  @inlinable public static var eoi: Int { 0x0B0 }
  @inlinable public static var rrd: Int { 0x0C0 }
  @inlinable public static var ldr: Int { 0x0D0 }
  @inlinable public static var dfr: Int { 0x0E0 }
  @inlinable public static var svr: Int { 0x0F0 }
  /// The first of eight: ISR, TMR and IRR are 256 bits each, 32 to a register.
  @inlinable public static var isr: Int { 0x100 }
  @inlinable public static var tmr: Int { 0x180 }
  @inlinable public static var irr: Int { 0x200 }
  @inlinable public static var esr: Int { 0x280 }
  @inlinable public static var lvtCMCI: Int { 0x2F0 }
  @inlinable public static var icrLow: Int { 0x300 }
  @inlinable public static var icrHigh: Int { 0x310 }
  @inlinable public static var lvtTimer: Int { 0x320 }
  @inlinable public static var lvtThermal: Int { 0x330 }
  @inlinable public static var lvtPerformance: Int { 0x340 }
  @inlinable public static var lvtLINT0: Int { 0x350 }
  @inlinable public static var lvtLINT1: Int { 0x360 }
  @inlinable public static var lvtError: Int { 0x370 }
  @inlinable public static var initialCount: Int { 0x380 }
  @inlinable public static var currentCount: Int { 0x390 }
  @inlinable public static var divideConfiguration: Int { 0x3E0 }
  @inlinable public static var selfIPI: Int { 0x3F0 }

  /// The first MSR of the x2APIC range.
  @inlinable public static var x2APICBase: UInt32 { 0x800 }
  @inlinable public static var x2APICLast: UInt32 { 0x83F }
}

/// Bits of a local vector table entry (SDM volume 3, "Local Vector Table").
public enum APICLVT {
  @inlinable public static var vectorMask: UInt32 { 0xFF }
  @inlinable public static var deliveryModeShift: UInt32 { 8 }
  @inlinable public static var deliveryModeMask: UInt32 { 7 << 8 }
  @inlinable public static var deliveryStatus: UInt32 { 1 << 12 }
  @inlinable public static var polarity: UInt32 { 1 << 13 }
  @inlinable public static var remoteIRR: UInt32 { 1 << 14 }
  @inlinable public static var level: UInt32 { 1 << 15 }
  @inlinable public static var masked: UInt32 { 1 << 16 }
  @inlinable public static var timerModeShift: UInt32 { 17 }
  @inlinable public static var timerModeMask: UInt32 { 3 << 17 }
}

/// Bits of the spurious-interrupt vector register (SDM volume 3, "Spurious Interrupt").
public enum APICSVR {
  @inlinable public static var vectorMask: UInt32 { 0xFF }
  @inlinable public static var enabled: UInt32 { 1 << 8 }
  @inlinable public static var focusDisabled: UInt32 { 1 << 9 }
  @inlinable public static var suppressEOIBroadcast: UInt32 { 1 << 12 }
}

/// Bits of the error status register (SDM volume 3, "Error Handling").
public enum APICESR {
  @inlinable public static var sendAcceptError: UInt32 { 1 << 2 }
  @inlinable public static var receiveAcceptError: UInt32 { 1 << 3 }
  @inlinable public static var redirectableIPI: UInt32 { 1 << 4 }
  @inlinable public static var sendIllegalVector: UInt32 { 1 << 5 }
  @inlinable public static var receivedIllegalVector: UInt32 { 1 << 6 }
  @inlinable public static var illegalRegisterAddress: UInt32 { 1 << 7 }
}

/// Bits of the interrupt command register's low half (SDM volume 3, "Interrupt Command Register").
public enum APICICR {
  @inlinable public static var logical: UInt32 { 1 << 11 }
  @inlinable public static var deliveryStatus: UInt32 { 1 << 12 }
  @inlinable public static var assert: UInt32 { 1 << 14 }
  @inlinable public static var level: UInt32 { 1 << 15 }
  @inlinable public static var shorthandShift: UInt32 { 18 }
}
