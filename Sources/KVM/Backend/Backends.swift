// SPDX-License-Identifier: Apache-2.0
//
// Selects a physical CPU's backend: the first whose vendor's virtualization its CPUID offers. A new
// vendor is a folder beside `VMX` and an entry here; nothing else names a backend.

import SystemPackage
import X86CPU

enum Backends {
  private static var all: [any VirtualizationBackend.Type] { [VMX.self, SVM.self] }

  /// - Throws: EOPNOTSUPP if no backend supports the processor.
  static func type(
    for cpu: PhysicalCPU
  ) throws(Errno) -> any VirtualizationBackend.Type {
    guard let type = all.first(where: { $0.isOffered(by: cpu) }) else { throw .notSupported }
    return type
  }
}
