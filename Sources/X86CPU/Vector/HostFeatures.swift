// SPDX-License-Identifier: Apache-2.0
//
// The host processor's features, by CPUID and XCR0: a guest's vector instruction runs on the host
// itself, so one that the host lacks is #UD.

import Host
import X86
import X86Decoder

package struct HostFeatures: Sendable {
  /// CPUID.1 EDX and ECX, CPUID.7 EBX, ECX and EDX, CPUID.7.1 EAX, CPUID.80000001H ECX.
  package private(set) var words: [UInt32] = Array(repeating: 0, count: 7)
  /// XCR0 as the host's kernel has set it; 0 without XSAVE.
  package let xcr0: UInt64

  package static let current = HostFeatures()

  /// Vector registers of 32 and of 64 bytes that both processor and kernel offer.
  package var hasAVX: Bool { has(.avx) }
  package var hasAVX512: Bool { has(.avx512f) }
  package var hasWideMasks: Bool { has(.avx512bw) }

  private init() {
    let one = HostCPUID.leaf(1)
    let seven = HostCPUID.leaf(7)
    words[0] = one.edx
    words[1] = one.ecx
    words[2] = seven.ebx
    words[3] = seven.ecx
    words[4] = seven.edx
    words[5] = seven.eax >= 1 ? HostCPUID.leaf(7, 1).eax : 0
    words[6] = HostCPUID.leaf(0x8000_0001).ecx
    xcr0 = one.ecx & 1 << 27 != 0 ? Self.readXCR0() : 0
  }

  /// Whether the host executes instructions of `feature`. True for non-vector features.
  package func has(_ feature: Feature) -> Bool {
    guard let (word, bit, components) = Self.bits(feature) else { return true }
    return words[word] >> bit & 1 != 0 && xcr0 & components.rawValue == components.rawValue
  }

  /// Whether the host executes this instruction.
  package func has(_ i: Instruction) -> Bool {
    guard has(i.feature) else { return false }
    if i.prefixes.contains(.vex) && i.feature != .avx && !has(.avx) { return false }
    if i.prefixes.contains(.evex) && !has(.avx512f) { return false }
    return !i.attributes.contains(.vectorLength) || has(.avx512vl)
  }

  /// Word, bit and state components of a feature.
  private static func bits(_ feature: Feature) -> (Int, UInt32, XCR0)? {
    let avx: XCR0 = [.x87, .sse, .avx]
    let avx512: XCR0 = [avx, .avx512]
    switch feature {
    case .mmx: return (0, 23, [])
    case .fxsr: return (0, 24, [])
    case .sse: return (0, 25, [])
    case .sse2: return (0, 26, [])
    case .sse3: return (1, 0, [])
    case .pclmulqdq: return (1, 1, [])
    case .ssse3: return (1, 9, [])
    case .sse41: return (1, 19, [])
    case .sse42: return (1, 20, [])
    case .aes: return (1, 25, [])
    case .sse4a: return (6, 6, [])
    case .sha: return (2, 29, [])
    case .gfni: return (3, 8, [])
    case .avx: return (1, 28, avx)
    case .fma: return (1, 12, avx)
    case .f16c: return (1, 29, avx)
    case .avx2: return (2, 5, avx)
    case .vaes: return (3, 9, avx)
    case .vpclmulqdq: return (3, 10, avx)
    case .avxvnni: return (5, 4, avx)
    default: return bits512(feature).map { ($0, $1, avx512) }
    }
  }

  private static func bits512(_ feature: Feature) -> (Int, UInt32)? {
    switch feature {
    case .avx512f: (2, 16)
    case .avx512dq: (2, 17)
    case .avx512ifma: (2, 21)
    case .avx512cd: (2, 28)
    case .avx512bw: (2, 30)
    case .avx512vl: (2, 31)
    case .avx512vbmi: (3, 1)
    case .avx512vbmi2: (3, 6)
    case .avx512vnni: (3, 11)
    case .avx512bitalg: (3, 12)
    case .avx512vpopcntdq: (3, 14)
    case .avx512vp2intersect: (4, 8)
    case .avx512bf16: (5, 5)
    default: nil
    }
  }

  /// C has no function for XGETBV without compiler flags: run generated code.
  private static func readXCR0() -> UInt64 {
    guard let memory = try? CodeMemory(size: 4096) else { return 0 }
    // xor ecx, ecx; xgetbv; shl rdx, 32; or rax, rdx; ret
    let code: [UInt8] = [
      0x31, 0xC9, 0x0F, 0x01, 0xD0, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3,
    ]
    memory.writable.copyMemory(from: code, byteCount: code.count)
    let function = unsafeBitCast(memory.executable, to: (@convention(c) () -> UInt64).self)
    return function()
  }
}
