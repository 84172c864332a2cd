// SPDX-License-Identifier: Apache-2.0
//
// Whose processor a processor is: Intel's, with VT-x, or AMD's, with SVM.

public enum SiliconVendor: String, Sendable, CaseIterable {
  case intel
  case amd

  /// Leaf 0 of CPUID.
  @inlinable public var name: String { self == .intel ? "GenuineIntel" : "AuthenticAMD" }
}
