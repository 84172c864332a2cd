// SPDX-License-Identifier: Apache-2.0
//
// Intercepts and the guest's virtualization, in the form in which instructions, events and
// translated code read them. It is vendor-neutral: VT-x fills it from the VMCS's controls
// (`VMXControls`), SVM from the VMCB's control area.

import X86

/// Selects the vendor's order of checks and its virtualization instructions.
package enum VirtualizationMode: UInt8, Sendable {
  /// No guest: nothing exits, as in unit tests of instructions.
  case none
  case vmx
  case svm
}

/// Layout of the bitmaps of ports and MSRs that exit.
package enum BitmapLayout: UInt8, Sendable {
  case none
  case all
  /// VT-x. Ports: 4 KiB for 0 to 7FFFH, 4 KiB (`high`) for the rest. MSRs: 4 KiB, reads of
  /// 0 to 1FFFH, reads of C0000000H to C0001FFFH, then writes of both.
  case vmx
  /// SVM. Ports: 12 KiB, a bit for each, three more bits after the last. MSRs: 8 KiB, two bits for
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
  /// Translated code tests its lowest byte (`StateOffset.intercepts`).
  package var set: InterceptSet = []
  package var enabled = EnabledInstructions.all
  /// Exception vectors 0 to 31. VT-x: exception bitmap. SVM: exception intercepts.
  package var exceptions: UInt32 = 0
  /// The bit for #PF is inverted unless the error code, masked, is `pageFaultMatch`. VT-x only:
  /// both are 0 with SVM.
  package var pageFaultMask: UInt32 = 0
  package var pageFaultMatch: UInt32 = 0
  /// Control registers, by number, whose reads and writes exit. VT-x: CR3 and CR8 by controls
  /// (writes of CR0 and CR4 by their masks, below). SVM: the intercept vector.
  package var crReads: UInt16 = 0
  package var crWrites: UInt16 = 0
  /// The same for debug registers. VT-x: all or none (MOV-DR exiting).
  package var drReads: UInt16 = 0
  package var drWrites: UInt16 = 0
  /// The hypervisor's bits: the guest reads them from the shadow, and exits when it writes other
  /// values. VT-x: guest/host masks and read shadows. SVM: masks 0.
  package var cr0Mask: UInt64 = 0
  package var cr0Shadow: UInt64 = 0
  package var cr4Mask: UInt64 = 0
  package var cr4Shadow: UInt64 = 0
  /// Bits that the guest's MOV to CR0 and CR4 must leave set, else #GP. VT-x: those fixed in VMX
  /// operation, minus CR0.PE and PG for an unrestricted guest. SVM: 0.
  package var cr0Required: UInt32 = 0
  package var cr4Required: UInt32 = 0
  /// CR3 values whose write does not exit (VT-x: CR3 targets).
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

  /// Whether walks of the guest's tables are writes to nested paging. (For SVM they are reads
  /// here.)
  @inline(__always) var walksWrite: Bool {
    nested == .ept && nestedRoot & EPTPointer.accessedDirty != 0
  }
}
