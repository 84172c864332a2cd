// SPDX-License-Identifier: Apache-2.0
//
// The vendor of a processor: Intel, with VT-x, or AMD, with SVM.

public enum SiliconVendor: String, Sendable, CaseIterable {
  case intel
  case amd

  /// Leaf 0 of CPUID.
  @inlinable public var name: String { self == .intel ? "GenuineIntel" : "AuthenticAMD" }
}
