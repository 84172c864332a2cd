// SPDX-License-Identifier: Apache-2.0
//
// The controls of the current VMCS, unpacked for the run, and the exit information on its way back.

/// The execution controls of the running VMCS in the form in which instructions consult them.
/// VM entry fills it from the VMCS; nothing else writes it.
package struct VMXControls {
  package var pin: UInt32 = 0
  package var primary: UInt32 = 0
  package var secondary: UInt32 = 0
  package var exit: UInt32 = 0
  package var entry: UInt32 = 0
  package var exceptionBitmap: UInt32 = 0
  package var pageFaultMask: UInt32 = 0
  package var pageFaultMatch: UInt32 = 0
  package var cr0Mask: UInt64 = 0
  package var cr0Shadow: UInt64 = 0
  package var cr4Mask: UInt64 = 0
  package var cr4Shadow: UInt64 = 0
  package var cr3Targets = InlineArray<4, UInt64>(repeating: 0)
  package var cr3TargetCount: UInt32 = 0
  package var tscOffset: UInt64 = 0
  package var tscMultiplier: UInt64 = 1 << 48
  package var msrBitmap: UInt64 = 0
  package var ioBitmapA: UInt64 = 0
  package var ioBitmapB: UInt64 = 0
  package var eptPointer: UInt64 = 0
  package var vpid: UInt16 = 0
  package var pleGap: UInt32 = 0
  package var pleWindow: UInt32 = 0
  /// In TSC ticks.
  package var notifyWindow: UInt32 = 0
  /// Keeps `CPUState.native`, which follows, where StateLayoutTests want it.
  private var room: (UInt64, UInt64) = (0, 0)
  package var xssExitingBitmap: UInt64 = 0

  package init() {}
}

/// What a VM exit reports, field for field as in the VMCS's exit-information area.
package struct ExitInformation {
  package var reason: UInt32 = 0
  package var qualification: UInt64 = 0
  package var guestLinear: UInt64 = 0
  package var guestPhysical: UInt64 = 0
  package var interruptionInfo: UInt32 = 0
  package var interruptionErrorCode: UInt32 = 0
  package var idtVectoringInfo: UInt32 = 0
  package var idtVectoringErrorCode: UInt32 = 0
  package var instructionLength: UInt32 = 0
  package var instructionInfo: UInt32 = 0
  package var ioRCX: UInt64 = 0
  package var ioRSI: UInt64 = 0
  package var ioRDI: UInt64 = 0
  package var ioRIP: UInt64 = 0

  package init() {}
}
