// SPDX-License-Identifier: Apache-2.0
//
// The controls of the current VMCS, unpacked, and their vendor-neutral form for the processor
// (`Intercepts`).

import X86

/// The execution controls of the running VMCS, which VM entry reads.
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
  package var xssExitingBitmap: UInt64 = 0
  package var virtualization = VirtualizationControls()

  package init() {}

  /// In VMX non-root operation the pin-based controls have their default-1 bits set. They are 0
  /// only if the processor runs without a VMCS, as in unit tests.
  var isNonRoot: Bool { pin != 0 }

  /// The secondary controls, if activated.
  @inline(__always) var activeSecondary: UInt32 {
    primary & PrimaryControls.secondaryControls != 0 ? secondary : 0
  }
}

extension InterceptSet {
  /// The set if a control is 1, else empty.
  @inline(__always) fileprivate func when(_ control: UInt32, _ controls: UInt32) -> UInt64 {
    controls & control != 0 ? rawValue : 0
  }
}

extension VMXControls {
  var intercepts: InterceptSet {
    var bits = InterceptSet([.cpuid, .invd, .xsetbv, .hypercall]).rawValue
    if !isNonRoot { bits = 0 }
    bits |= pinIntercepts | primaryIntercepts | secondaryIntercepts
    return InterceptSet(rawValue: bits)
  }

  @inline(__always) private var pinIntercepts: UInt64 {
    var bits = InterceptSet.externalInterrupt.when(PinControls.externalInterruptExiting, pin)
    bits |= InterceptSet.nmi.when(PinControls.nmiExiting, pin)
    bits |= InterceptSet.virtualNMIs.when(PinControls.virtualNMIs, pin)
    return bits | InterceptSet.deadline.when(PinControls.preemptionTimer, pin)
  }

  @inline(__always) private var primaryIntercepts: UInt64 {
    var bits = InterceptSet.interruptWindow.when(PrimaryControls.interruptWindowExiting, primary)
    bits |= InterceptSet.nmiWindow.when(PrimaryControls.nmiWindowExiting, primary)
    bits |= InterceptSet.monitorTrap.when(PrimaryControls.monitorTrapFlag, primary)
    bits |= InterceptSet.offsetTSC.when(PrimaryControls.useTSCOffsetting, primary)
    bits |= InterceptSet([.rdtsc, .rdtscp]).when(PrimaryControls.rdtscExiting, primary)
    bits |= InterceptSet.hlt.when(PrimaryControls.hltExiting, primary)
    bits |= InterceptSet([.invlpg, .invpcid]).when(PrimaryControls.invlpgExiting, primary)
    bits |= InterceptSet.mwait.when(PrimaryControls.mwaitExiting, primary)
    bits |= InterceptSet.monitor.when(PrimaryControls.monitorExiting, primary)
    bits |= InterceptSet.rdpmc.when(PrimaryControls.rdpmcExiting, primary)
    return bits | InterceptSet.pause.when(PrimaryControls.pauseExiting, primary)
  }

  @inline(__always) private var secondaryIntercepts: UInt64 {
    let secondary = activeSecondary
    var bits = InterceptSet.scaledTSC.when(SecondaryControls.useTSCScaling, secondary)
    bits |= InterceptSet.descriptorTables.when(
      SecondaryControls.descriptorTableExiting, secondary)
    bits |= InterceptSet.wbinvd.when(SecondaryControls.wbinvdExiting, secondary)
    bits |= InterceptSet.pauseLoop.when(SecondaryControls.pauseLoopExiting, secondary)
    bits |= InterceptSet.rdrand.when(SecondaryControls.rdrandExiting, secondary)
    bits |= InterceptSet.rdseed.when(SecondaryControls.rdseedExiting, secondary)
    bits |= InterceptSet.busLock.when(SecondaryControls.busLockDetection, secondary)
    return bits | InterceptSet.notify.when(SecondaryControls.notifyExiting, secondary)
  }

  var enabled: EnabledInstructions {
    let secondary = activeSecondary
    var enabled = EnabledInstructions()
    if !isNonRoot || secondary & SecondaryControls.enableRDTSCP != 0 { enabled.insert(.rdtscp) }
    if !isNonRoot || secondary & SecondaryControls.enableINVPCID != 0 { enabled.insert(.invpcid) }
    if secondary & SecondaryControls.enableXSAVES != 0 { enabled.insert(.xsaves) }
    return enabled
  }

  var portLayout: BitmapLayout {
    if primary & PrimaryControls.useIOBitmaps != 0 { return .vmx }
    return primary & PrimaryControls.unconditionalIOExiting != 0 ? .all : .none
  }

  var msrLayout: BitmapLayout {
    if !isNonRoot { return .none }
    return primary & PrimaryControls.useMSRBitmaps != 0 ? .vmx : .all
  }

  var cr0Required: UInt32 {
    if !isNonRoot { return 0 }
    var fixed = CR0.fixedInVMX
    if activeSecondary & SecondaryControls.unrestrictedGuest != 0 { fixed.subtract([.pe, .pg]) }
    return UInt32(truncatingIfNeeded: fixed.rawValue)
  }

  /// CR3 and CR8, by number, if their accesses exit.
  @inline(__always) func controlRegisters(_ cr3: UInt32, _ cr8: UInt32) -> UInt16 {
    (primary & cr3 != 0 ? 1 << 3 : 0) | (primary & cr8 != 0 ? 1 << 8 : 0)
  }
}

extension PhysicalCPU {
  /// Applies controls to the processor.
  package func adopt(_ controls: VMXControls) {
    vmx.pointee.controls = controls
    let s = cpu.s
    s.pointee.intercepts.set = controls.intercepts
    s.pointee.intercepts.enabled = controls.enabled
    s.pointee.intercepts.exceptions = controls.exceptionBitmap
    s.pointee.intercepts.pageFaultMask = controls.pageFaultMask
    s.pointee.intercepts.pageFaultMatch = controls.pageFaultMatch
    s.pointee.intercepts.crReads = controls.controlRegisters(
      PrimaryControls.cr3StoreExiting, PrimaryControls.cr8StoreExiting)
    s.pointee.intercepts.crWrites = controls.controlRegisters(
      PrimaryControls.cr3LoadExiting, PrimaryControls.cr8LoadExiting)
    let debug: UInt16 = controls.primary & PrimaryControls.movDRExiting != 0 ? .max : 0
    s.pointee.intercepts.drReads = debug
    s.pointee.intercepts.drWrites = debug
    s.pointee.intercepts.mode = controls.isNonRoot ? .vmx : .none
    adoptMasks(controls)
    adoptAddresses(controls)
    s.pointee.intercepts.tscOffset = controls.tscOffset
    s.pointee.intercepts.tscMultiplier = controls.tscMultiplier
    s.pointee.intercepts.pauseGap = controls.pleGap
    s.pointee.intercepts.pauseWindow = controls.pleWindow
    s.pointee.intercepts.notifyWindow = controls.notifyWindow
    s.pointee.intercepts.xssExits = controls.xssExitingBitmap
    adoptVirtualization(controls)
  }

  private func adoptMasks(_ controls: VMXControls) {
    let s = cpu.s
    s.pointee.intercepts.cr0Mask = controls.cr0Mask
    s.pointee.intercepts.cr0Shadow = controls.cr0Shadow
    s.pointee.intercepts.cr4Mask = controls.cr4Mask
    s.pointee.intercepts.cr4Shadow = controls.cr4Shadow
    s.pointee.intercepts.cr0Required = controls.cr0Required
    s.pointee.intercepts.cr4Required =
      controls.isNonRoot ? UInt32(truncatingIfNeeded: CR4.vmxe.rawValue) : 0
    s.pointee.intercepts.cr3Targets = controls.cr3Targets
    s.pointee.intercepts.cr3TargetCount = UInt8(truncatingIfNeeded: controls.cr3TargetCount)
  }

  private func adoptAddresses(_ controls: VMXControls) {
    let s = cpu.s
    s.pointee.intercepts.portLayout = controls.portLayout
    s.pointee.intercepts.portBitmap = controls.ioBitmapA
    s.pointee.intercepts.portBitmapHigh = controls.ioBitmapB
    s.pointee.intercepts.msrLayout = controls.msrLayout
    s.pointee.intercepts.msrBitmap = controls.msrBitmap
    let hasEPT = controls.activeSecondary & SecondaryControls.enableEPT != 0
    s.pointee.intercepts.nested = hasEPT ? .ept : .none
    s.pointee.intercepts.nestedRoot = controls.eptPointer
  }
}

extension CPU {
  /// The last applied controls. Tests change them without a VMCS.
  package var vmxControls: VMXControls {
    get { owner.vmx.pointee.controls }
    nonmutating set { owner.adopt(newValue) }
  }

  package var exitFields: ExitFields { ExitFields(of: self) }
}
