// SPDX-License-Identifier: Apache-2.0

/// The CPUID feature that an instruction needs; `base` is the 64-bit baseline without SSE.
public enum Feature: UInt8, Sendable, CaseIterable {
  case base
}
