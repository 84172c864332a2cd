// SPDX-License-Identifier: Apache-2.0
//
// What processors of AMD do otherwise than those of Intel, outside of virtualization. Which
// vendor's a guest's processor is follows from the guest's CPUID, as programs choose their
// instructions by it: a 32-bit program on a 64-bit kernel enters it by SYSCALL on AMD's and by
// SYSENTER on Intel's.
//
// Hygon's processors are AMD's; all others (Zhaoxin, VIA, unknown names) follow Intel.
//
//     if c.follows(.systemCallsOutside64Bit) { ... }
//
// Not here, as Intel's way is taken for all: near branches with 66 in 64-bit mode, far pointers
// with REX.W, error pointers of FXSAVE (the host's way), RPL of the SS that SYSRET loads (always
// 3).

import X86

package struct VendorRules: OptionSet, Sendable {
  package var rawValue: UInt32
  package init(rawValue: UInt32) { self.rawValue = rawValue }

  /// SYSCALL and SYSRET work in compatibility and legacy mode too (APM volume 3, "SYSCALL"). Intel:
  /// #UD.
  package static let systemCallsOutside64Bit = Self(rawValue: 1 << 0)
  /// SYSENTER and SYSEXIT are #UD in long mode (APM volume 3, "SYSENTER").
  package static let noSysenterInLongMode = Self(rawValue: 1 << 1)
  /// SYSRET does not look whether RCX is canonical: the #GP is the program's. Intel: the kernel's.
  package static let sysretGoesAnywhere = Self(rawValue: 1 << 2)
  /// SYSRET changes the selector of SS and the privilege alone (APM volume 3, "SYSRET"). Intel: a
  /// flat segment.
  package static let sysretKeepsStackSegment = Self(rawValue: 1 << 3)
  /// A null selector leaves base and limit of DS, ES, FS and GS (APM volume 2, "Null Selectors").
  /// Intel: they become 0.
  package static let nullKeepsBase = Self(rawValue: 1 << 4)
  /// An instruction breakpoint is met behind MOV SS and POP SS too.
  package static let breakpointsBehindStackLoads = Self(rawValue: 1 << 5)
  /// LOCK MOV CR0 is MOV CR8 (APM volume 3, "MOV CRn"). Elsewhere #UD.
  package static let lockedCR8 = Self(rawValue: 1 << 6)
  /// CPUID of a leaf beyond the last is 0 (APM volume 3, "CPUID"). Intel: the last basic leaf.
  package static let noLeafBeyondLast = Self(rawValue: 1 << 7)

  /// EXT of error codes stands for interrupts alone (APM volume 2, "Error Codes"). Intel: for an
  /// exception whose delivery is cut off, too.
  package static let exceptionsAreInternal = Self(rawValue: 1 << 8)

  package static let intel: Self = []
  /// All that need no feature bit.
  package static let amd: Self = [
    .systemCallsOutside64Bit, .noSysenterInLongMode, .sysretGoesAnywhere, .sysretKeepsStackSegment,
    .nullKeepsBase, .breakpointsBehindStackLoads, .noLeafBeyondLast, .exceptionsAreInternal,
  ]

  /// EBX of leaf 0 of processors that follow AMD: "Auth" and "Hygo".
  private static let amdVendors: [UInt32] = [0x6874_7541, 0x6F67_7948]
  /// - Parameter vendor: EBX of CPUID leaf 0.
  package static func isAMD(vendor: UInt32) -> Bool { amdVendors.contains(vendor) }

  /// Leaf 80000001H, ECX: AltMovCr8.
  private static let alternateCR8Bit: UInt32 = 1 << 4
  /// Leaf 80000021H, EAX: NullSelectorClearsBase.
  private static let nullClearsBaseBit: UInt32 = 1 << 6

  /// - Parameters:
  ///   - vendor: EBX of CPUID leaf 0.
  ///   - features: ECX of leaf 80000001H.
  ///   - moreFeatures: EAX of leaf 80000021H.
  package init(vendor: UInt32, features: UInt32, moreFeatures: UInt32) {
    self = .intel
    guard Self.isAMD(vendor: vendor) else { return }
    self = .amd
    if features & Self.alternateCR8Bit != 0 { insert(.lockedCR8) }
    if moreFeatures & Self.nullClearsBaseBit != 0 { remove(.nullKeepsBase) }
  }
}

extension CPU {
  @inline(__always) package func follows(_ rule: VendorRules) -> Bool {
    s.pointee.rules.contains(rule)
  }
}
