// SPDX-License-Identifier: Apache-2.0
//
// Whose processor the software processor is: Intel's, with VT-x, or AMD's, with SVM. What follows
// from it is in tables: CPUID (CPUIDModel, CPUIDFeatureBits), MSRs (MSRModel), and which
// virtualization a physical CPU has. What a guest's own code does in its vendor's way follows from
// the guest's CPUID instead (VendorRules).
//
//     let cpu = try PhysicalCPU(number: 0, silicon: .amd)
//     try cpu.enableSVM()

package enum SiliconVendor: String, Sendable, CaseIterable {
  case intel
  case amd

  /// Leaf 0 of CPUID.
  package var name: String { self == .intel ? "GenuineIntel" : "AuthenticAMD" }

  /// The host's; Intel for vendors other than AMD and Hygon.
  package static let host: SiliconVendor =
    VendorRules.isAMD(vendor: HostCPUID.leaf(0).ebx) ? .amd : .intel
}
