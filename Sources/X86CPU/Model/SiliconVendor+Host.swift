// SPDX-License-Identifier: Apache-2.0
//
// The vendor of the software processor's silicon. It selects among tables: CPUID (CPUIDModel,
// CPUIDFeatureBits), MSRs (MSRModel), and a physical CPU's virtualization. Vendor-specific
// behaviour of guest code depends on the guest's CPUID instead (VendorRules).
//
//     let cpu = try PhysicalCPU(number: 0, silicon: .amd)
//     try cpu.enableSVM()

import X86

extension SiliconVendor {
  /// The host's; Intel for vendors other than AMD and Hygon.
  package static let host: SiliconVendor =
    VendorRules.isAMD(vendor: HostCPUID.leaf(0).ebx) ? .amd : .intel
}
