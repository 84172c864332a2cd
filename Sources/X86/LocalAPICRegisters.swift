// SPDX-License-Identifier: Apache-2.0

/// IA32_APIC_BASE (SDM volume 3, "Local APIC Status and Location").
public struct APICBase: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let bsp = Self(rawValue: 1 << 8)
  /// x2APIC mode.
  public static let extd = Self(rawValue: 1 << 10)
  /// xAPIC global enable.
  public static let en = Self(rawValue: 1 << 11)

  public static let defaultAddress: UInt64 = 0xFEE0_0000
  public static let addressMask: UInt64 = 0x000F_FFFF_FFFF_F000
}

/// Offsets into the xAPIC page (SDM volume 3, "Local APIC Register Address Map"). The x2APIC MSR
/// of a register is `x2APICBase + offset / 16`.
public enum APICRegister {
  public static let id = 0x020
  public static let version = 0x030
  public static let tpr = 0x080
  public static let apr = 0x090
  public static let ppr = 0x0A0
  public static let eoi = 0x0B0
  public static let rrd = 0x0C0
  public static let ldr = 0x0D0
  public static let dfr = 0x0E0
  public static let svr = 0x0F0
  /// The first of eight: ISR, TMR and IRR are 256 bits each, 32 to a register.
  public static let isr = 0x100
  public static let tmr = 0x180
  public static let irr = 0x200
  public static let esr = 0x280
  public static let lvtCMCI = 0x2F0
  public static let icrLow = 0x300
  public static let icrHigh = 0x310
  public static let lvtTimer = 0x320
  public static let lvtThermal = 0x330
  public static let lvtPerformance = 0x340
  public static let lvtLINT0 = 0x350
  public static let lvtLINT1 = 0x360
  public static let lvtError = 0x370
  public static let initialCount = 0x380
  public static let currentCount = 0x390
  public static let divideConfiguration = 0x3E0
  public static let selfIPI = 0x3F0

  /// The first MSR of the x2APIC range.
  public static let x2APICBase: UInt32 = 0x800
  public static let x2APICLast: UInt32 = 0x83F
}

/// Bits of a local vector table entry (SDM volume 3, "Local Vector Table").
public enum APICLVT {
  public static let vectorMask: UInt32 = 0xFF
  public static let deliveryModeShift: UInt32 = 8
  public static let deliveryModeMask: UInt32 = 7 << 8
  public static let deliveryStatus: UInt32 = 1 << 12
  public static let polarity: UInt32 = 1 << 13
  public static let remoteIRR: UInt32 = 1 << 14
  public static let level: UInt32 = 1 << 15
  public static let masked: UInt32 = 1 << 16
  public static let timerModeShift: UInt32 = 17
  public static let timerModeMask: UInt32 = 3 << 17
}

/// Bits of the spurious-interrupt vector register (SDM volume 3, "Spurious Interrupt").
public enum APICSVR {
  public static let vectorMask: UInt32 = 0xFF
  public static let enabled: UInt32 = 1 << 8
  public static let focusDisabled: UInt32 = 1 << 9
  public static let suppressEOIBroadcast: UInt32 = 1 << 12
}

/// Bits of the error status register (SDM volume 3, "Error Handling").
public enum APICESR {
  public static let sendAcceptError: UInt32 = 1 << 2
  public static let receiveAcceptError: UInt32 = 1 << 3
  public static let redirectableIPI: UInt32 = 1 << 4
  public static let sendIllegalVector: UInt32 = 1 << 5
  public static let receivedIllegalVector: UInt32 = 1 << 6
  public static let illegalRegisterAddress: UInt32 = 1 << 7
}

/// Bits of the interrupt command register's low half (SDM volume 3, "Interrupt Command Register").
public enum APICICR {
  public static let logical: UInt32 = 1 << 11
  public static let deliveryStatus: UInt32 = 1 << 12
  public static let assert: UInt32 = 1 << 14
  public static let level: UInt32 = 1 << 15
  public static let shorthandShift: UInt32 = 18
}
