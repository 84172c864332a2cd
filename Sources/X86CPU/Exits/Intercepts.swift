// SPDX-License-Identifier: Apache-2.0
//
// What exits and how the guest is virtualized, in the form in which instructions, events and
// translated code consult it. It is no vendor's: VT-x fills it from the controls of the VMCS
// (`VMXControls`), SVM from the VMCB's control area.

import X86

/// Whose order of checks counts, and whose instructions of virtualization there are.
package enum VirtualizationMode: UInt8, Sendable {
  /// No guest: nothing exits, as in unit tests of instructions.
  case none
  case vmx
  case svm
}

/// Accesses to ports or MSRs that exit.
package enum BitmapLayout: UInt8, Sendable {
  case none
  case all
  /// VT-x. Ports: 4 KiB for 0 to 7FFFH, 4 KiB (`high`) for the rest. MSRs: 4 KiB, reads of
  /// 0 to 1FFFH, reads of C0000000H to C0001FFFH, then writes of both.
  case vmx
  /// SVM. Ports: 12 KiB, a bit for each, three bits more behind the last. MSRs: 8 KiB, two bits for
  /// each (read, write), of 0, C0000000H, C0010000H and the 1FFFH above each.
  case svm
}

/// How guest-physical addresses become host-physical ones.
package enum NestedFormat: UInt8, Sendable {
  /// They are the same.
  case none
  /// VT-x's EPT.
  case ept
  /// SVM's nested paging: ordinary long-mode tables, walked as by user accesses.
  case longMode
}

package struct Intercepts: Sendable {
  /// Its lowest byte is tested by translated code (`StateOffset.intercepts`).
  package var set: InterceptSet = []
  package var enabled = EnabledInstructions.all
  /// Vectors 0 to 31. VT-x: exception bitmap. SVM: exception vector of the intercepts.
  package var exceptions: UInt32 = 0
  /// A page fault whose error code, masked, is not `pageFaultMatch` counts the other way round.
  /// VT-x only: with SVM both are 0.
  package var pageFaultMask: UInt32 = 0
  package var pageFaultMatch: UInt32 = 0
  /// Control registers by number whose reads and writes exit. VT-x: CR3 and CR8 by controls (writes
  /// of CR0 and CR4 by their masks, below). SVM: the vector as it is.
  package var crReads: UInt16 = 0
  package var crWrites: UInt16 = 0
  /// The same for debug registers. VT-x: all or none (MOV-DR exiting).
  package var drReads: UInt16 = 0
  package var drWrites: UInt16 = 0
  /// Bits that are the hypervisor's: the guest reads them from the shadow, and exits where it
  /// writes others. VT-x: guest/host masks and read shadows. SVM: masks 0.
  package var cr0Mask: UInt64 = 0
  package var cr0Shadow: UInt64 = 0
  package var cr4Mask: UInt64 = 0
  package var cr4Shadow: UInt64 = 0
  /// Bits that the guest's MOV to CR0 and CR4 must leave 1, else #GP. VT-x: those that VMX
  /// operation fixes, of CR0 less PE and PG for an unrestricted guest. SVM: 0.
  package var cr0Required: UInt32 = 0
  package var cr4Required: UInt32 = 0
  /// Values of CR3 whose write does not exit (VT-x: CR3 targets).
  package var cr3Targets = InlineArray<4, UInt64>(repeating: 0)
  package var cr3TargetCount: UInt8 = 0
  package var mode = VirtualizationMode.none
  package var nested = NestedFormat.none
  package var portLayout = BitmapLayout.none
  package var msrLayout = BitmapLayout.none
  /// Host-physical; `portBitmapHigh` is VT-x's second page.
  package var portBitmap: UInt64 = 0
  package var portBitmapHigh: UInt64 = 0
  package var msrBitmap: UInt64 = 0
  /// VT-x: EPT pointer, with its flags. SVM: nested CR3.
  package var nestedRoot: UInt64 = 0
  package var tscOffset: UInt64 = 0
  /// In units of 2^-48. (SVM's TSC_RATIO, 2^-32, is shifted.)
  package var tscMultiplier: UInt64 = 1 << 48
  /// PAUSE-loop exiting, in TSC ticks.
  package var pauseGap: UInt32 = 0
  package var pauseWindow: UInt32 = 0
  /// In TSC ticks.
  package var notifyWindow: UInt32 = 0
  /// Components of XSAVES and XRSTORS that exit (VT-x: XSS-exiting bitmap).
  package var xssExits: UInt64 = 0

  package init() {}

  /// Walks of the guest's tables are writes to nested paging. (SVM's are reads here.)
  @inline(__always) var walksWrite: Bool {
    nested == .ept && nestedRoot & EPTPointer.accessedDirty != 0
  }
}
