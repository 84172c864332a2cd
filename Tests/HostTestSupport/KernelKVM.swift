// SPDX-License-Identifier: Apache-2.0
//
// Whether the host's own KVM can be used, and what kind it is: with it, tests run on both
// engines, and the kernel's answers are the oracle.

import CHost
import Glibc
import SystemPackage
import VMM

/// What the kernel's KVM is: its answers differ with what it has to run guests on.
package enum KernelKVM: Sendable {
  case vtx
  case svm
  /// Without a processor's help: it runs a guest's user mode, and emulates supervisor code.
  case emulating

  /// Nil where /dev/kvm cannot be used.
  package static let kind: KernelKVM? = {
    if access("/dev/kvm", R_OK | W_OK) != 0 { return nil }
    guard let extensions = hardware else { return .emulating }
    return isFast ? extensions : .emulating
  }()

  package static let missing = "no usable /dev/kvm"

  /// What the processor has, as CPUID says.
  private static var hardware: KernelKVM? {
    if cpuid(1).2 >> 5 & 1 != 0 { return .vtx }
    if cpuid(0x8000_0000).0 >= 0x8000_0001, cpuid(0x8000_0001).2 >> 2 & 1 != 0 { return .svm }
    return nil
  }

  private static func cpuid(_ leaf: UInt32) -> (UInt32, UInt32, UInt32, UInt32) {
    var words: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
    withUnsafeMutablePointer(to: &words) {
      $0.withMemoryRebound(to: UInt32.self, capacity: 4) { chost_cpuid(leaf, 0, $0) }
    }
    return words
  }

  /// Measured as `martlet doctor` does; one good measurement counts, as others may have been
  /// disturbed.
  private static var isFast: Bool {
    let supply = EngineSupply(software: nil)
    return (0..<5).contains { _ in
      do throws(Errno) { return try supply.deviceSpeed().isUsable } catch { return false }
    }
  }
}
