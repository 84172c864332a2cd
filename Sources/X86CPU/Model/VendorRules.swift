// SPDX-License-Identifier: Apache-2.0
//
// How AMD's processors differ from Intel's, outside of virtualization. The guest's CPUID determines
// the vendor, because programs choose their instructions by it: a 32-bit program calls a 64-bit
// kernel by SYSCALL on AMD's and by SYSENTER on Intel's.
//
// Hygon's processors are AMD's; all others (Zhaoxin, VIA, unknown names) follow Intel.
//
//     if c.follows(.systemCallsOutside64Bit) { ... }
//
// Not here, as all guests get Intel's behaviour: near branches with 66 in 64-bit mode, far pointers
// with REX.W, error pointers of FXSAVE (as on the host), RPL of the SS that SYSRET loads (always
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
  /// SYSRET does not check that RCX is canonical: #GP occurs in the program. Intel: in the kernel.
  package static let sysretGoesAnywhere = Self(rawValue: 1 << 2)
  /// SYSRET changes only the selector of SS and the privilege (APM volume 3, "SYSRET"). Intel:
  /// loads a flat segment.
  package static let sysretKeepsStackSegment = Self(rawValue: 1 << 3)
  /// A null selector keeps base and limit of DS, ES, FS and GS (APM volume 2, "Null Selectors").
  /// Intel: clears them.
  package static let nullKeepsBase = Self(rawValue: 1 << 4)
  /// Instruction breakpoints also match after MOV SS and POP SS.
  package static let breakpointsBehindStackLoads = Self(rawValue: 1 << 5)
  /// LOCK MOV CR0 is MOV CR8 (APM volume 3, "MOV CRn"). Elsewhere #UD.
  package static let lockedCR8 = Self(rawValue: 1 << 6)
  /// CPUID of a leaf above the maximum returns 0 (APM volume 3, "CPUID"). Intel: the last basic
  /// leaf.
  package static let noLeafBeyondLast = Self(rawValue: 1 << 7)

  /// EXT of error codes stands for interrupts alone (APM volume 2, "Error Codes"). Intel: for an
  /// exception whose delivery is cut off, too.
  package static let exceptionsAreInternal = Self(rawValue: 1 << 8)

  package static let intel: Self = []
  /// All rules that need no feature bit.
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
