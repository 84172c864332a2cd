// SPDX-License-Identifier: Apache-2.0
//
// The feature words of CPUID, bit by bit: what this processor offers, what it offers only if the
// host executes it, and what it excludes and why. A bit without a row is 0: reserved, or of another
// vendor.

import X86

/// A feature word: a register of a leaf.
package enum FeatureWord: Int, CaseIterable, Sendable {
  case leaf1ECX, leaf1EDX, leaf7EBX, leaf7ECX, leaf7EDX, leaf7_1EAX, leafD_1EAX
  case extended1ECX, extended1EDX, extended7EDX, extended8EBX, leaf7_2EDX, extended21EAX
}

/// One bit of a feature word.
struct FeatureBit: Sendable {
  enum Policy: Sendable {
    /// The processor implements it.
    case offered
    /// The host executes the instructions, so the host must have the same bit, and its kernel must
    /// enable these state components.
    case hostWith(XCR0)
    /// 0 here; reflects CR4 when CPUID is executed.
    case dynamic
    /// 0, for this reason.
    case excluded(String)
  }
  var word: FeatureWord
  var bit: UInt32
  var name: String
  var policy: Policy
  /// nil: both vendors' processors have it.
  var vendor: SiliconVendor?

  init(
    _ word: FeatureWord, _ bit: UInt32, _ name: String, _ policy: Policy,
    only vendor: SiliconVendor? = nil
  ) {
    self.word = word
    self.bit = bit
    self.name = name
    self.policy = policy
    self.vendor = vendor
  }

  private static let host = Policy.hostWith([])
  private static let ymm = Policy.hostWith([.sse, .avx])
  private static let zmm = Policy.hostWith([.sse, .avx, .avx512])
  private static let thermal = Policy.excluded("no thermal or power management")
  private static let tracing = Policy.excluded("no debug store, tracing or performance monitoring")
  private static let noSMX = Policy.excluded("no safer mode and no enclaves")
  private static let noTSX = Policy.excluded("no transactional memory: optional, and switched off")
  private static let noCET = Policy.excluded("control-flow enforcement is not implemented")
  private static let noAMX = Policy.excluded("hosts that have it are rare; its state is large")
  private static let noControl = Policy.excluded(
    "a process cannot keep its own parts apart in the predictors: see HostVulnerabilities")
  private static let other = Policy.excluded("not implemented")

  static let table: [FeatureBit] = leaf1 + leaf7 + extendedState + extended

  private static let leaf1: [FeatureBit] = [
    .init(.leaf1ECX, 0, "sse3", host),
    .init(.leaf1ECX, 1, "pclmulqdq", host),
    .init(.leaf1ECX, 2, "dtes64", tracing),
    .init(.leaf1ECX, 3, "monitor", .offered),
    .init(.leaf1ECX, 4, "ds-cpl", tracing),
    .init(.leaf1ECX, 5, "vmx", .offered, only: .intel),
    .init(.leaf1ECX, 6, "smx", noSMX),
    .init(.leaf1ECX, 7, "eist", thermal),
    .init(.leaf1ECX, 8, "tm2", thermal),
    .init(.leaf1ECX, 9, "ssse3", host),
    .init(.leaf1ECX, 11, "sdbg", tracing),
    .init(.leaf1ECX, 12, "fma", ymm),
    .init(.leaf1ECX, 13, "cx16", .offered),
    .init(.leaf1ECX, 14, "xtpr", .excluded("chipset messages have no receiver")),
    .init(.leaf1ECX, 15, "pdcm", tracing),
    .init(.leaf1ECX, 17, "pcid", .offered),
    .init(.leaf1ECX, 18, "dca", .excluded("no direct cache access")),
    .init(.leaf1ECX, 19, "sse4.1", host),
    .init(.leaf1ECX, 20, "sse4.2", host),
    .init(.leaf1ECX, 21, "x2apic", .offered),
    .init(.leaf1ECX, 22, "movbe", .offered),
    .init(.leaf1ECX, 23, "popcnt", .offered),
    .init(.leaf1ECX, 24, "tsc-deadline", .offered),
    .init(.leaf1ECX, 25, "aes", host),
    .init(.leaf1ECX, 26, "xsave", .offered),
    .init(.leaf1ECX, 27, "osxsave", .dynamic),
    .init(.leaf1ECX, 28, "avx", ymm),
    .init(.leaf1ECX, 29, "f16c", ymm),
    .init(.leaf1ECX, 30, "rdrand", .offered),
    .init(.leaf1EDX, 0, "fpu", .offered),
    .init(.leaf1EDX, 1, "vme", .offered),
    .init(.leaf1EDX, 2, "de", .offered),
    .init(.leaf1EDX, 3, "pse", .offered),
    .init(.leaf1EDX, 4, "tsc", .offered),
    .init(.leaf1EDX, 5, "msr", .offered),
    .init(.leaf1EDX, 6, "pae", .offered),
    .init(.leaf1EDX, 7, "mce", .offered),
    .init(.leaf1EDX, 8, "cx8", .offered),
    .init(.leaf1EDX, 9, "apic", .offered),
    .init(.leaf1EDX, 11, "sep", .offered),
    .init(.leaf1EDX, 12, "mtrr", .offered),
    .init(.leaf1EDX, 13, "pge", .offered),
    .init(.leaf1EDX, 14, "mca", .offered),
    .init(.leaf1EDX, 15, "cmov", .offered),
    .init(.leaf1EDX, 16, "pat", .offered),
    .init(.leaf1EDX, 17, "pse36", .offered),
    .init(.leaf1EDX, 18, "psn", .excluded("no serial number, as on all later processors")),
    .init(.leaf1EDX, 19, "clflush", .offered),
    .init(.leaf1EDX, 21, "ds", tracing),
    .init(.leaf1EDX, 22, "acpi", thermal),
    .init(.leaf1EDX, 23, "mmx", .offered),
    .init(.leaf1EDX, 24, "fxsr", .offered),
    .init(.leaf1EDX, 25, "sse", .offered),
    .init(.leaf1EDX, 26, "sse2", .offered),
    .init(.leaf1EDX, 27, "self-snoop", .offered),
    .init(.leaf1EDX, 28, "htt", .excluded("one logical processor per package")),
    .init(.leaf1EDX, 29, "tm", thermal),
    .init(.leaf1EDX, 31, "pbe", thermal),
  ]

  private static let leaf7: [FeatureBit] = [
    .init(.leaf7EBX, 0, "fsgsbase", .offered),
    .init(.leaf7EBX, 1, "tsc-adjust", .offered),
    .init(.leaf7EBX, 2, "sgx", noSMX),
    .init(.leaf7EBX, 3, "bmi1", .offered),
    .init(.leaf7EBX, 4, "hle", noTSX),
    .init(.leaf7EBX, 5, "avx2", ymm),
    .init(.leaf7EBX, 6, "fdp-excptn-only", host),
    .init(.leaf7EBX, 7, "smep", .offered),
    .init(.leaf7EBX, 8, "bmi2", .offered),
    .init(.leaf7EBX, 9, "erms", .offered),
    .init(.leaf7EBX, 10, "invpcid", .offered),
    .init(.leaf7EBX, 11, "rtm", noTSX),
    .init(.leaf7EBX, 12, "rdt-m", other),
    .init(.leaf7EBX, 13, "no-fpu-cs-ds", host),
    .init(.leaf7EBX, 14, "mpx", .excluded("withdrawn from the architecture")),
    .init(.leaf7EBX, 15, "rdt-a", other),
    .init(.leaf7EBX, 16, "avx512f", zmm),
    .init(.leaf7EBX, 17, "avx512dq", zmm),
    .init(.leaf7EBX, 18, "rdseed", .offered),
    .init(.leaf7EBX, 19, "adx", .offered),
    .init(.leaf7EBX, 20, "smap", .offered),
    .init(.leaf7EBX, 21, "avx512ifma", zmm),
    .init(.leaf7EBX, 23, "clflushopt", .offered),
    .init(.leaf7EBX, 24, "clwb", .offered),
    .init(.leaf7EBX, 25, "intel-pt", tracing),
    .init(.leaf7EBX, 28, "avx512cd", zmm),
    .init(.leaf7EBX, 29, "sha", host),
    .init(.leaf7EBX, 30, "avx512bw", zmm),
    .init(.leaf7EBX, 31, "avx512vl", zmm),
    .init(.leaf7ECX, 1, "avx512vbmi", zmm),
    .init(.leaf7ECX, 2, "umip", .offered),
    .init(.leaf7ECX, 3, "pku", .offered),
    .init(.leaf7ECX, 4, "ospke", .dynamic),
    .init(.leaf7ECX, 5, "waitpkg", other),
    .init(.leaf7ECX, 6, "avx512vbmi2", zmm),
    .init(.leaf7ECX, 7, "cet-ss", noCET),
    .init(.leaf7ECX, 8, "gfni", host),
    .init(.leaf7ECX, 9, "vaes", ymm),
    .init(.leaf7ECX, 10, "vpclmulqdq", ymm),
    .init(.leaf7ECX, 11, "avx512vnni", zmm),
    .init(.leaf7ECX, 12, "avx512bitalg", zmm),
    .init(.leaf7ECX, 13, "tme", other),
    .init(.leaf7ECX, 14, "avx512vpopcntdq", zmm),
    .init(.leaf7ECX, 16, "la57", .offered),
    .init(.leaf7ECX, 22, "rdpid", .offered),
    .init(.leaf7ECX, 23, "key-locker", other),
    .init(.leaf7ECX, 24, "bus-lock-detect", other),
    .init(.leaf7ECX, 25, "cldemote", .offered, only: .intel),
    .init(.leaf7ECX, 27, "movdiri", other),
    .init(.leaf7ECX, 28, "movdir64b", other),
    .init(.leaf7ECX, 29, "enqcmd", other),
    .init(.leaf7ECX, 30, "sgx-lc", noSMX),
    .init(.leaf7ECX, 31, "pks", other),
    .init(.leaf7EDX, 4, "fsrm", .offered),
    .init(.leaf7EDX, 8, "avx512vp2intersect", zmm),
    .init(.leaf7EDX, 10, "md-clear", .excluded("VERW overwrites no buffers")),
    .init(.leaf7EDX, 14, "serialize", .offered, only: .intel),
    .init(.leaf7EDX, 15, "hybrid", .excluded("all CPUs are alike")),
    .init(.leaf7EDX, 16, "tsxldtrk", noTSX),
    .init(.leaf7EDX, 18, "pconfig", other),
    .init(.leaf7EDX, 19, "arch-lbr", tracing),
    .init(.leaf7EDX, 20, "cet-ibt", noCET),
    .init(.leaf7EDX, 22, "amx-bf16", noAMX),
    .init(.leaf7EDX, 23, "avx512fp16", .excluded("not in the decoder")),
    .init(.leaf7EDX, 24, "amx-tile", noAMX),
    .init(.leaf7EDX, 25, "amx-int8", noAMX),
    .init(.leaf7EDX, 26, "ibrs-ibpb", noControl),
    .init(.leaf7EDX, 27, "stibp", noControl),
    .init(.leaf7EDX, 28, "l1d-flush", .excluded("a process cannot flush the cache")),
    .init(.leaf7EDX, 29, "arch-capabilities", .offered, only: .intel),
    .init(.leaf7EDX, 30, "core-capabilities", other),
    .init(.leaf7EDX, 31, "ssbd", noControl),
    .init(.leaf7_1EAX, 4, "avx-vnni", ymm),
    .init(.leaf7_1EAX, 5, "avx512bf16", zmm),
    .init(.leaf7_1EAX, 10, "fast-zero-rep-movsb", .offered, only: .intel),
    .init(.leaf7_1EAX, 11, "fast-short-rep-stosb", .offered, only: .intel),
    .init(.leaf7_1EAX, 26, "lam", other),
    .init(.leaf7_2EDX, 2, "rrsba-ctrl", noControl),
    .init(.leaf7_2EDX, 4, "bhi-ctrl", noControl),
  ]

  private static let extendedState: [FeatureBit] = [
    .init(.leafD_1EAX, 0, "xsaveopt", host),
    .init(.leafD_1EAX, 1, "xsavec", host),
    .init(.leafD_1EAX, 2, "xgetbv1", host),
    .init(.leafD_1EAX, 3, "xsaves", host),
    .init(.leafD_1EAX, 4, "xfd", noAMX),
  ]

  private static let extended: [FeatureBit] = [
    .init(.extended1ECX, 0, "lahf64", .offered),
    .init(.extended1ECX, 2, "svm", .offered, only: .amd),
    .init(.extended1ECX, 4, "altmovcr8", .offered, only: .amd),
    .init(.extended1ECX, 5, "lzcnt", .offered),
    .init(.extended1ECX, 6, "sse4a", .excluded("hosts of Intel's do not execute it"), only: .amd),
    .init(.extended1ECX, 7, "misalignsse", .excluded("MXCSR.MM is not implemented"), only: .amd),
    .init(.extended1ECX, 8, "prefetchw", .offered),
    .init(.extended1ECX, 12, "skinit", .excluded("no secure initialization"), only: .amd),
    .init(.extended1ECX, 22, "topoext", .offered, only: .amd),
    .init(.extended1ECX, 29, "monitorx", other, only: .amd),
    .init(.extended1EDX, 11, "syscall", .offered),
    .init(.extended1EDX, 20, "nx", .offered),
    .init(.extended1EDX, 26, "pdpe1gb", .offered),
    .init(.extended1EDX, 27, "rdtscp", .offered),
    .init(.extended1EDX, 29, "lm", .offered),
    .init(.extended7EDX, 8, "invariant-tsc", .offered),
    .init(.extended8EBX, 0, "clzero", other, only: .amd),
    .init(.extended8EBX, 4, "rdpru", other, only: .amd),
    .init(.extended8EBX, 9, "wbnoinvd", .offered),
    .init(.extended21EAX, 2, "lfence-serializing", .offered, only: .amd),
    .init(.extended21EAX, 6, "null-clears-base", .offered, only: .amd),
  ]
}
