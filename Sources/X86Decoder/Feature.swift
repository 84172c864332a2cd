// SPDX-License-Identifier: Apache-2.0
//
// The CPUID features in rows of the opcode table.

/// The CPUID feature that an instruction needs; `base` is the 64-bit baseline without CMOV, x87 and
/// vectors.
///
/// An EVEX instruction needs AVX512VL besides its feature if it has
/// `Instruction.Attributes.vectorLength`. `vaes`, `vpclmulqdq` and `gfni` are the added features;
/// VEX forms need AVX as well and EVEX forms AVX-512F.
public enum Feature: UInt8, Sendable, CaseIterable {
  case base
  case cmov, cx8, cx16, fpu, mmx, fxsr
  case sse, sse2, sse3, ssse3, sse41, sse42, sse4a
  case popcnt, lzcnt, bmi1, bmi2, adx, movbe, aes, pclmulqdq, sha, gfni
  case avx, avx2, fma, f16c, vaes, vpclmulqdq, avxvnni
  case avx512f, avx512dq, avx512cd, avx512bw, avx512vl, avx512ifma, avx512vbmi, avx512vbmi2
  case avx512vnni, avx512bitalg, avx512vpopcntdq, avx512bf16, avx512vp2intersect
  case rdrand, rdseed, rdpid, rdtscp, fsgsbase, xsave, xsaveopt, xsavec, xsaves
  case clflush, clflushopt, clwb, cldemote, clzero, wbnoinvd, prefetchw, prefetchwt1
  case movdiri, movdir64b, serialize, sysenter, syscall, lahf64, invpcid, smap, pku, rdpru, ptwrite
  case monitor, monitorx, waitpkg, vmx, svm, skinit, smx, sgx, rtm, pconfig
}
