// SPDX-License-Identifier: Apache-2.0
//
// A physical CPU's VMX state besides the guest's: whether it is in VMX operation, its current VMCS,
// and what changed in it since the last VM entry.
//
// Invariants:
// - `current` is nil, or a VMCS whose header says that it is active on this CPU; then the lazy
//   fields (see VMCSLayout) are in CPUState.
// - a field that differs from its value after the last successful VM entry or exit has its groups
//   in `dirty`.

import X86

/// How a VMX instruction fails (SDM volume 3, "Conventions" of the VMX instruction reference).
package enum VMXError: Error, Equatable, Sendable {
  /// #UD: the CPU is not in VMX operation.
  case notInVMXOperation
  /// VMfailInvalid: there is no current VMCS to hold an error number (or VMXON's region is wrong).
  case failInvalid
  /// VMfailValid: the number is also in the current VMCS's VM-instruction error field.
  case failValid(VMXInstructionError)
  /// The VMCS is active on another CPU (its number): undefined on real processors, rejected here.
  case activeElsewhere(Int)
  /// VMX abort: a VM exit could not be completed. The CPU has left VMX operation.
  case abort(VMXAbortIndicator)
}

package struct VMXUnit {
  let locations = VMCSLayout.locations
  /// Address of the VMXON region; 0 outside VMX operation.
  var vmxonRegion: UInt64 = 0
  /// The current VMCS.
  var current: UnsafeMutableRawPointer?
  var dirty: VMCSGroups = []
  /// The current VMCS's launch state is "launched".
  var launched = false
  /// EFER and PAT of root operation: guests keep them if the entry does not load its own.
  var rootEFER: UInt64 = 0xD01
  var rootPAT: UInt64 = 0x0007_0406_0007_0406
  /// The guest whose translations are in the TLB.
  var tlbEPT: UInt64 = .max
  var tlbVPID: UInt16 = 0
  /// Without VPIDs, every entry flushes.
  var flushesOnEntry = false
  /// Entries of the VM-entry MSR-load area; for the VM-exit areas, nonzero if any has entries.
  var entryMSRCount: UInt32 = 0
  var exitMSRCounts: UInt64 = 0
  /// The current VMCS's controls, as of the last VM entry.
  var controls = VMXControls()
  /// The exit-information fields of the current VMCS derive from `CPUState.exit`; those in its
  /// memory are outdated.
  var hasExitRecord = false
  /// A feature of `VirtualizationControls` is on.
  var isVirtualizing = false
  /// Why the last VM entry failed.
  package internal(set) var entryFailure: EntryFailure?
  /// VM entries since start.
  package internal(set) var entries: UInt64 = 0

  /// The value in memory of a field of the current VMCS.
  @inline(__always) func page(_ field: VMCSField) -> UInt64 {
    current.unsafelyUnwrapped.load(
      fromByteOffset: Int(locations[VMCSLayout.slot(field)].page), as: UInt64.self)
  }

  @inline(__always) func setPage(_ field: VMCSField, _ value: UInt64) {
    current.unsafelyUnwrapped.storeBytes(
      of: value, toByteOffset: Int(locations[VMCSLayout.slot(field)].page), as: UInt64.self)
  }

  @inline(__always) func page32(_ field: VMCSField) -> UInt32 {
    UInt32(truncatingIfNeeded: page(field))
  }
}

/// Header of a VMCS in memory.
struct VMCSHeader {
  let base: UnsafeMutableRawPointer

  private static let activeTag: UInt32 = 0x4143_5400

  private func word(_ offset: Int) -> UInt32 { base.load(fromByteOffset: offset, as: UInt32.self) }
  private func set(_ offset: Int, _ value: UInt32) {
    base.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
  }

  /// Without the shadow-VMCS indicator.
  var revision: UInt32 { word(VMCSLayout.revisionOffset) & ~VMCSLayout.shadowIndicator }

  var isShadow: Bool { word(VMCSLayout.revisionOffset) & VMCSLayout.shadowIndicator != 0 }

  var launched: Bool {
    get { word(VMCSLayout.launchStateOffset) == 1 }
    nonmutating set { set(VMCSLayout.launchStateOffset, newValue ? 1 : 0) }
  }

  var abort: UInt32 {
    get { word(VMCSLayout.abortOffset) }
    nonmutating set { set(VMCSLayout.abortOffset, newValue) }
  }

  /// The number of the CPU on which the VMCS is active.
  var activeOn: Int? {
    get {
      let word = word(VMCSLayout.activeOnOffset)
      return word & 0xFFFF_FF00 == Self.activeTag ? Int(word & 0xFF) : nil
    }
    nonmutating set {
      set(
        VMCSLayout.activeOnOffset,
        newValue.map { Self.activeTag | UInt32(truncatingIfNeeded: $0) & 0xFF } ?? 0)
    }
  }
}
