// SPDX-License-Identifier: Apache-2.0
//
// Selects a physical CPU's backend: the first whose vendor's virtualization its CPUID offers. A new
// vendor is a folder beside `VMX` and an entry here; nothing else names a backend.

import SystemPackage
import X86
import X86CPU

enum Backends {
  private static var all: [any VirtualizationBackend.Type] { [VMX.self, SVM.self] }

  static func type(for silicon: SiliconVendor) -> any VirtualizationBackend.Type {
    switch silicon {
    case .intel: VMX.self
    case .amd: SVM.self
    }
  }

  /// - Throws: EOPNOTSUPP where the processor has no virtualization that there is a backend for.
  static func type(
    for cpu: PhysicalCPU
  ) throws(Errno) -> any VirtualizationBackend.Type {
    guard let type = all.first(where: { $0.isOffered(by: cpu) }) else { throw .notSupported }
    return type
  }
}
