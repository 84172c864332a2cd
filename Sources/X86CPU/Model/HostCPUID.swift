// SPDX-License-Identifier: Apache-2.0
//
// The host's CPUID, which limits what the processor offers its guests.

import CHost

/// The four registers of a CPUID leaf.
package struct CPUIDLeaf: Equatable, Sendable {
  package var eax: UInt32 = 0
  package var ebx: UInt32 = 0
  package var ecx: UInt32 = 0
  package var edx: UInt32 = 0

  package init(eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0) {
    self.eax = eax
    self.ebx = ebx
    self.ecx = ecx
    self.edx = edx
  }
}

/// CPUID of the processor that this program runs on. CPUID may be slow here (it exits in a VM), so
/// frequent callers cache the result.
package enum HostCPUID {
  /// A basic or extended leaf; zeros if the host lacks it.
  package static func leaf(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> CPUIDLeaf {
    let last = leaf & 0x8000_0000 == 0 ? lastBasic : lastExtended
    return leaf <= last ? query(leaf, subleaf) : CPUIDLeaf()
  }

  /// A leaf of the hypervisor that the host runs under; zeros if there is none.
  package static func hypervisorLeaf(_ leaf: UInt32) -> CPUIDLeaf {
    let isVirtual = query(1, 0).ecx & 1 << 31 != 0
    guard isVirtual, leaf <= query(0x4000_0000, 0).eax else { return CPUIDLeaf() }
    return query(leaf, 0)
  }

  private static let lastBasic = query(0, 0).eax
  private static let lastExtended = query(0x8000_0000, 0).eax

  private static func query(_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDLeaf {
    var result: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
    withUnsafeMutableBytes(of: &result) { bytes in
      chost_cpuid(leaf, subleaf, bytes.baseAddress?.assumingMemoryBound(to: UInt32.self))
    }
    return CPUIDLeaf(eax: result.0, ebx: result.1, ecx: result.2, edx: result.3)
  }
}
