// SPDX-License-Identifier: Apache-2.0
//
// EXITCODE (APM volume 2, appendix "SVM Intercept Exit Codes"). The first 96 codes are an intercept
// word's bits in order; the rest follow words 3 and 4.
//
//     SVMExitCode.exception(14) == SVMExitCode(rawValue: 0x4E)

public struct SVMExitCode: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
  @inlinable init(_ rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static func readCR(_ n: UInt8) -> Self { Self(0x00 + UInt64(n & 15)) }
  @inlinable public static func writeCR(_ n: UInt8) -> Self { Self(0x10 + UInt64(n & 15)) }
  @inlinable public static func readDR(_ n: UInt8) -> Self { Self(0x20 + UInt64(n & 15)) }
  @inlinable public static func writeDR(_ n: UInt8) -> Self { Self(0x30 + UInt64(n & 15)) }
  @inlinable public static func exception(_ vector: UInt8) -> Self {
    Self(0x40 + UInt64(vector & 31))
  }
  @inlinable public static var interrupt: Self { Self(0x60) }
  @inlinable public static var nmi: Self { Self(0x61) }
  @inlinable public static var smi: Self { Self(0x62) }
  @inlinable public static var initSignal: Self { Self(0x63) }
  @inlinable public static var virtualInterrupt: Self { Self(0x64) }
  @inlinable public static var selectiveCR0Write: Self { Self(0x65) }
  @inlinable public static var idtrRead: Self { Self(0x66) }
  @inlinable public static var gdtrRead: Self { Self(0x67) }
  @inlinable public static var ldtrRead: Self { Self(0x68) }
  @inlinable public static var trRead: Self { Self(0x69) }
  @inlinable public static var idtrWrite: Self { Self(0x6A) }
  @inlinable public static var gdtrWrite: Self { Self(0x6B) }
  @inlinable public static var ldtrWrite: Self { Self(0x6C) }
  @inlinable public static var trWrite: Self { Self(0x6D) }
  @inlinable public static var rdtsc: Self { Self(0x6E) }
  @inlinable public static var rdpmc: Self { Self(0x6F) }
  @inlinable public static var pushf: Self { Self(0x70) }
  @inlinable public static var popf: Self { Self(0x71) }
  @inlinable public static var cpuid: Self { Self(0x72) }
  @inlinable public static var rsm: Self { Self(0x73) }
  @inlinable public static var iret: Self { Self(0x74) }
  @inlinable public static var softwareInterrupt: Self { Self(0x75) }
  @inlinable public static var invd: Self { Self(0x76) }
  @inlinable public static var pause: Self { Self(0x77) }
  @inlinable public static var hlt: Self { Self(0x78) }
  @inlinable public static var invlpg: Self { Self(0x79) }
  @inlinable public static var invlpga: Self { Self(0x7A) }
  @inlinable public static var port: Self { Self(0x7B) }
  @inlinable public static var msr: Self { Self(0x7C) }
  @inlinable public static var taskSwitch: Self { Self(0x7D) }
  @inlinable public static var ferrFreeze: Self { Self(0x7E) }
  @inlinable public static var shutdown: Self { Self(0x7F) }
  @inlinable public static var vmrun: Self { Self(0x80) }
  @inlinable public static var vmmcall: Self { Self(0x81) }
  @inlinable public static var vmload: Self { Self(0x82) }
  @inlinable public static var vmsave: Self { Self(0x83) }
  @inlinable public static var stgi: Self { Self(0x84) }
  @inlinable public static var clgi: Self { Self(0x85) }
  @inlinable public static var skinit: Self { Self(0x86) }
  @inlinable public static var rdtscp: Self { Self(0x87) }
  @inlinable public static var icebp: Self { Self(0x88) }
  @inlinable public static var wbinvd: Self { Self(0x89) }
  @inlinable public static var monitor: Self { Self(0x8A) }
  @inlinable public static var mwait: Self { Self(0x8B) }
  @inlinable public static var armedMWAIT: Self { Self(0x8C) }
  @inlinable public static var xsetbv: Self { Self(0x8D) }
  @inlinable public static var rdpru: Self { Self(0x8E) }
  @inlinable public static var invpcid: Self { Self(0xA2) }
  @inlinable public static var nestedPageFault: Self { Self(0x400) }
  /// VMRUN rejected the VMCB.
  @inlinable public static var invalid: Self { Self(.max) }

  /// The code of an intercept: bit n of words 3 and 4.
  @inlinable public init(intercept: SVMIntercepts) {
    rawValue = 0x60 + UInt64(intercept.rawValue.trailingZeroBitCount)
  }

  /// One more than the highest code below the nested page fault's: the size of a table by code.
  @inlinable public static var count: Int { 0xA8 }
}

extension SVMExitCode {
  /// The code's name in the manual.
  public var name: String {
    switch rawValue {
    case 0x00...0x0F: "VMEXIT_CR\(rawValue)_READ"
    case 0x10...0x1F: "VMEXIT_CR\(rawValue & 15)_WRITE"
    case 0x20...0x2F: "VMEXIT_DR\(rawValue & 15)_READ"
    case 0x30...0x3F: "VMEXIT_DR\(rawValue & 15)_WRITE"
    case 0x40...0x5F: "VMEXIT_EXCP\(rawValue & 31)"
    case 0x60..<0x60 + UInt64(Self.names.count): "VMEXIT_" + Self.names[Int(rawValue - 0x60)]
    case 0xA2: "VMEXIT_INVPCID"
    case 0x400: "VMEXIT_NPF"
    case .max: "VMEXIT_INVALID"
    default: "exit code 0x" + String(rawValue, radix: 16)
    }
  }

  private static let names = [
    "INTR", "NMI", "SMI", "INIT", "VINTR", "CR0_SEL_WRITE", "IDTR_READ", "GDTR_READ", "LDTR_READ",
    "TR_READ", "IDTR_WRITE", "GDTR_WRITE", "LDTR_WRITE", "TR_WRITE", "RDTSC", "RDPMC", "PUSHF",
    "POPF", "CPUID", "RSM", "IRET", "SWINT", "INVD", "PAUSE", "HLT", "INVLPG", "INVLPGA", "IOIO",
    "MSR", "TASK_SWITCH", "FERR_FREEZE", "SHUTDOWN", "VMRUN", "VMMCALL", "VMLOAD", "VMSAVE",
    "STGI", "CLGI", "SKINIT", "RDTSCP", "ICEBP", "WBINVD", "MONITOR", "MWAIT",
    "MWAIT_CONDITIONAL", "XSETBV", "RDPRU",
  ]
}
