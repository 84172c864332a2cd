// SPDX-License-Identifier: Apache-2.0
//
// A physical CPU's SVM state besides the guest's: whether SVM is enabled, the global interrupt
// flag, SVM's MSRs, and the VMCB whose state the CPU holds.
//
// Invariants:
// - `held` is nil, or a VMCB whose lazy fields (see VMCBLayout) are in CPUState. They are also in
//   its memory unless `isWriteBackDue`.
// - a field of the held VMCB that software changed by `vmcbWrite` has no clean bit.

import X86

/// How an SVM instruction fails (APM volume 3, "VMRUN", "VMLOAD", "INVLPGA").
package enum SVMError: Error, Equatable, Sendable {
  /// #UD: EFER.SVME is 0, or the processor has no SVM.
  case notEnabled
  /// #GP: RAX is not a page of host-physical memory.
  case invalidAddress
  /// EFER.SVME cannot be set: VM_CR.SVMDIS is 1.
  case disabled
}

package struct SVMUnit {
  let locations = VMCBLayout.locations
  /// EFER.SVME of the host.
  var isEnabled = false
  /// VM_CR.
  var vmcr: UInt64 = 0
  /// VM_HSAVE_PA: stored only. The host's state is the program's own, so nothing is saved there.
  var hostSaveArea: UInt64 = 0
  /// TSC_RATIO.
  var tscRatio: UInt64 = SVMCapabilities.tscRatioOne
  /// The global interrupt flag: 0 in the host from an exit until STGI.
  var gif = true
  var held: UnsafeMutableRawPointer?
  /// CPUState is newer than memory.
  var isWriteBackDue = false
  /// Parts of the held VMCB that no VMRUN has loaded, because it failed: their clean bits are
  /// ignored.
  var untaken: VMCBClean = []
  /// Software changed something that translations depend on.
  var mustFlush = false
  /// RFLAGS changed, which modes depend on.
  var mustUpdateMode = false
  /// VMRUNs since start.
  package internal(set) var entries: UInt64 = 0
  /// Why the last VMRUN exited with VMEXIT_INVALID.
  package internal(set) var entryFailure: VMRunFailure?

  /// The value in memory of a field of the held VMCB.
  @inline(__always) func memory(_ field: VMCBField) -> UInt64 {
    VMCB(base: held.unsafelyUnwrapped)[field]
  }

  @inline(__always) func setMemory(_ field: VMCBField, _ value: UInt64) {
    VMCB(base: held.unsafelyUnwrapped)[field] = value
  }
}

/// A VMCB in memory.
package struct VMCB {
  package let base: UnsafeMutableRawPointer

  package init(base: UnsafeMutableRawPointer) { self.base = base }

  /// nil if the address is not a 4 KiB page of host-physical memory.
  package init?(_ address: UInt64) {
    guard address & Page.offsetMask == 0, address >> SVMCapabilities.hostAddressWidth == 0,
      let base = UnsafeMutableRawPointer(bitPattern: UInt(address))
    else { return nil }
    self.base = base
  }

  /// A field's value, zero-extended; writes truncate.
  @inline(__always) package subscript(_ field: VMCBField) -> UInt64 {
    get {
      let place = base + Int(field.offset)
      switch field.size {
      case 1: return UInt64(place.load(as: UInt8.self))
      case 2: return UInt64(place.load(as: UInt16.self))
      case 4: return UInt64(place.load(as: UInt32.self))
      default: return place.load(as: UInt64.self)
      }
    }
    nonmutating set {
      let place = base + Int(field.offset)
      switch field.size {
      case 1: place.storeBytes(of: UInt8(truncatingIfNeeded: newValue), as: UInt8.self)
      case 2: place.storeBytes(of: UInt16(truncatingIfNeeded: newValue), as: UInt16.self)
      case 4: place.storeBytes(of: UInt32(truncatingIfNeeded: newValue), as: UInt32.self)
      default: place.storeBytes(of: newValue, as: UInt64.self)
      }
    }
  }
}
