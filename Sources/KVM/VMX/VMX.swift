// SPDX-License-Identifier: Apache-2.0
//
// One vCPU on VT-x: its VMCS and VM entries. VMX+State has the registers, VMX+ExitTable decodes the
// exits.
//
// The guest runs with EPT, VPID and as an unrestricted guest, so real mode needs no special
// handling. Masks hide CR0.NE and CR4.VMXE, which VMX requires, from the guest; it owns all other
// CR0 bits and the CR4 bits in its CPUID.
//
// Invariant: the VMCS is clear (in memory) unless `cpu` is the physical CPU that it is current on.

import Synchronization
import SystemPackage
import X86
import X86CPU

final class VMX: VirtualizationBackend {
  /// The physical CPU on which the VMCS is current.
  private(set) unowned(unsafe) var cpu: PhysicalCPU
  /// The guest's own VMCS.
  let own = VMXRegion()
  /// The VMCS that runs: `own`, or that of a guest of the guest (Nested/VMX).
  private(set) var current: VMXRegion
  private var isLaunched = false
  /// The instruction error, if the last entry failed.
  var failure: VMXError?
  private let vpid = VMX.makeVPID()
  /// Of the VMCS that runs.
  private(set) var currentVPID: UInt16
  /// Controls of `own` have changed while another VMCS runs.
  var mustMerge = false
  /// Primary controls that stay 1 in the VMCS that runs: what the guest wants of its own guest.
  var guestPrimary: UInt32 = 0
  /// CR4 bits that the guest may set.
  private(set) var allowedCR4: UInt64 = 0
  private(set) var features: GuestFeatures = []
  /// The guest is in VMX operation.
  private(set) var isGuestInVMXOperation = false
  private static let nextVPID = Atomic<UInt16>(0)

  init(_ cpu: PhysicalCPU) {
    unsafe self.cpu = cpu
    current = own
    currentVPID = vpid
  }

  /// 0 is the host's; numbers may be reused, which the tables' address tells apart.
  static func makeVPID() -> UInt16 {
    max(1, nextVPID.wrappingAdd(1, ordering: .relaxed).newValue)
  }

  /// CPUID.01H:ECX.VMX (SDM volume 2, "CPUID").
  private static let featureBit: UInt32 = 1 << 5

  static func isOffered(by cpu: PhysicalCPU) -> Bool {
    cpu.cpu.cpuid(1, 0).ecx & featureBit != 0
  }

  static func enable(_ cpu: PhysicalCPU) throws(Errno) {
    // The region lives as long as the process, as the CPU's VMX operation does.
    let region = unsafe Unmanaged.passRetained(VMXRegion()).takeUnretainedValue()
    do throws(VMXError) { try cpu.vmxon(region.address) } catch { throw .ioError }
  }

  var instructionLength: UInt64 { unsafe cpu.vmread(.exitInstructionLength) }

  /// VMCALL, and the other vendor's VMMCALL.
  var hypercall: (own: [UInt8], other: [UInt8]) { ([0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9]) }
  var tscMultiplierStep: UInt64 { 1 }
  /// NMI windows exit.
  func takeDeliveredNMI() -> Bool { false }

  // MARK: The VMCS

  private var isInitialized = false
  private var msrBitmap = VMXMSRBitmap.shared

  func load(on cpu: PhysicalCPU) {
    unsafe self.cpu = cpu
    do throws(VMXError) {
      if !isInitialized { try cpu.vmclear(own.address) }
      try cpu.vmptrld(current.address)
      isLaunched = false
      if !isInitialized {
        isInitialized = true
        writeConstantFields()
      }
    } catch {
      failure = error
    }
  }

  func unload(from cpu: PhysicalCPU) {
    do throws(VMXError) { try cpu.vmclear(current.address) } catch { failure = error }
  }

  /// Makes another VMCS the one that runs. The one before is in its memory afterwards.
  func run(_ region: VMXRegion, vpid: UInt16? = nil) {
    isLaunched = false
    guestPrimary = 0
    setInterruptWindow(false)
    setNMIWindow(false)
    do throws(VMXError) {
      try unsafe cpu.vmclear(current.address)
      try unsafe cpu.vmptrld(region.address)
    } catch {
      failure = error
    }
    current = region
    currentVPID = vpid ?? self.vpid
  }

  static let nestedStateSize = 0
  func makeNested() -> (any NestedVirtualization)? { NestedVMX(self) }

  // Fields of the VMCS that runs.
  func read(_ field: VMCSField) -> UInt64 { unsafe cpu.vmread(field) }
  func write(_ field: VMCSField, _ value: UInt64) { unsafe cpu.vmwrite(field, value) }

  /// A control of the guest's own VMCS, whichever runs.
  func control(_ field: VMCSField) -> UInt64 {
    current === own ? read(field) : own.fields[field]
  }

  func setControl(_ field: VMCSField, _ value: UInt64) {
    if current === own { return write(field, value) }
    own.fields[field] = value
    mustMerge = true
  }

  func run() {
    failure = nil
    do throws(VMXError) {
      if isLaunched {
        try unsafe cpu.vmresume()
      } else {
        let reason = try unsafe cpu.vmlaunch()
        // A failed VMLAUNCH leaves the launch state "clear".
        isLaunched = reason != .invalidGuestState && reason != .msrLoading
      }
    } catch {
      isLaunched = false
      failure = error
    }
  }

  func explainFailedEntry() -> EntryExplanation? { unsafe cpu.vmxEntryExplanation }
  var savedControlBlock: [UInt8] { unsafe Array(cpu.currentVMCSText.utf8) }

  func flushGuestTranslations() {
    // Type 1: all of one VPID's.
    do throws(VMXError) { try unsafe cpu.invvpid(1, vpid: currentVPID) } catch { failure = error }
  }

  func invalidateNestedMappings() {
    // Type 2: all contexts.
    do throws(VMXError) { try unsafe cpu.invept(2) } catch { failure = error }
  }

  func stateChangedInPlace() {
    // The current VMCS is in the physical CPU: no copy. A reload makes the entry check all of it.
    let cpu = unsafe cpu
    unload(from: cpu)
    load(on: cpu)
  }

  // MARK: Controls

  private static let pin =
    VMXCapabilities.pin.required | PinControls.externalInterruptExiting | PinControls.nmiExiting
    | PinControls.virtualNMIs
  static let primary =
    VMXCapabilities.primary.required | PrimaryControls.useTSCOffsetting
    | PrimaryControls.hltExiting | PrimaryControls.mwaitExiting | PrimaryControls.rdpmcExiting
    | PrimaryControls.cr8LoadExiting | PrimaryControls.cr8StoreExiting
    | PrimaryControls.unconditionalIOExiting | PrimaryControls.useMSRBitmaps
    | PrimaryControls.monitorExiting | PrimaryControls.secondaryControls
  private static let secondary =
    (SecondaryControls.enableEPT | SecondaryControls.enableVPID
      | SecondaryControls.wbinvdExiting | SecondaryControls.unrestrictedGuest
      | SecondaryControls.pauseLoopExiting) & VMXCapabilities.secondary.allowed
  private static let exit =
    VMXCapabilities.exit.required | ExitControls.hostAddressSpaceSize
    | ExitControls.saveDebugControls | ExitControls.savePAT | ExitControls.loadPAT
    | ExitControls.saveEFER | ExitControls.loadEFER
  private static let entry =
    VMXCapabilities.entry.required | EntryControls.loadDebugControls | EntryControls.loadPAT
    | EntryControls.loadEFER

  /// The largest gap between PAUSEs of a loop, and the loop's longest duration, in TSC ticks. A
  /// software PAUSE alone takes more than the 128 ticks that suit real processors.
  private static let pauseLoop: (gap: UInt64, window: UInt64) = (4096, 20_000)

  private func writeConstantFields() {
    let fields: [(VMCSField, UInt64)] = [
      (.pinBasedControls, UInt64(Self.pin)), (.primaryControls, UInt64(Self.primary)),
      (.secondaryControls, UInt64(Self.secondary)), (.exitControls, UInt64(Self.exit)),
      (.entryControls, UInt64(Self.entry)), (.vpid, UInt64(vpid)),
      (.msrBitmap, msrBitmap.address), (.vmcsLinkPointer, .max),
      (.pleGap, Self.pauseLoop.gap), (.pleWindow, Self.pauseLoop.window),
      (.cr0Mask, CR0.ne.rawValue),
      // This program is root operation; the processor only checks that the host state is valid.
      (.hostCR0, CR0([.pe, .et, .ne, .pg]).rawValue),
      (.hostCR4, CR4([.pae, .vmxe]).rawValue), (.hostCSSelector, 8), (.hostTRSelector, 16),
      (.hostEFER, EFER([.lme, .lma]).rawValue), (.hostPAT, 0x0007_0406_0007_0406),
    ]
    for (field, value) in fields { unsafe cpu.vmwrite(field, value) }
  }

  func setNestedTables(_ root: UInt64) {
    setControl(.eptPointer, root | EPTPointer.writeBack | EPTPointer.fourLevels)
  }

  func setTSCOffset(_ offset: UInt64) { setControl(.tscOffset, offset) }

  func setTSCMultiplier(_ multiplier: UInt64) {
    setControl(.tscMultiplier, multiplier)
    setSecondary(SecondaryControls.useTSCScaling, multiplier != 1 << 48)
  }

  func setBusLockDetection(_ on: Bool) { setSecondary(SecondaryControls.busLockDetection, on) }

  func setNotifyWindow(_ ticks: UInt32?) {
    setControl(.notifyWindow, UInt64(ticks ?? 0))
    setSecondary(SecondaryControls.notifyExiting, ticks != nil)
  }

  func setGuestCR4(allowed: UInt64) {
    allowedCR4 = allowed
    setControl(.cr4Mask, ~allowed | CR4.vmxe.rawValue)
  }

  /// In VMX operation PE, NE and PG of CR0 stay 1 (SDM volume 3, "Restrictions on VMX Operation"),
  /// and VMREAD and VMWRITE of the guest go to the VMCS that `setShadow` names.
  func setGuestVMXOperation(_ on: Bool, _ bitmap: UInt64) {
    isGuestInVMXOperation = on
    let fixed = CR0([.pe, .pg]).rawValue
    let ne = CR0.ne.rawValue
    setControl(.cr0ReadShadow, control(.guestCR0) & fixed | control(.cr0ReadShadow) & ~fixed)
    setControl(.cr0Mask, on ? ne | fixed : ne)
    setControl(.vmreadBitmap, bitmap)
    setControl(.vmwriteBitmap, bitmap)
    setSecondary(SecondaryControls.vmcsShadowing, on)
    setControl(.vmcsLinkPointer, .max)
  }

  /// The shadow VMCS; nil: none.
  func setShadow(_ region: VMXRegion?) {
    setControl(.vmcsLinkPointer, region?.address ?? .max)
  }

  func setInstructions(_ features: GuestFeatures) {
    self.features = features
    setSecondary(
      SecondaryControls.enableRDTSCP, !features.isDisjoint(with: [.rdtscp, .rdpid]))
    setSecondary(SecondaryControls.enableINVPCID, features.contains(.invpcid))
    setSecondary(SecondaryControls.enableXSAVES, features.isSuperset(of: [.xsave, .xsaves]))
    setSecondary(SecondaryControls.rdrandExiting, !features.contains(.rdrand))
    setSecondary(SecondaryControls.rdseedExiting, !features.contains(.rdseed))
  }

  // MARK: Events

  func inject(_ event: GuestEvent) {
    unsafe cpu.vmwrite(.entryInterruptionInfo, vendorInformation(of: event))
    // An entry with a longer one, which only a client can queue, would be refused.
    if let code = event.errorCode { write(.entryExceptionErrorCode, UInt64(code & 0xFFFF)) }
    if event.isOfInstruction {
      unsafe cpu.vmwrite(.entryInstructionLength, UInt64(event.instructionLength))
    }
  }

  func vendorInformation(of event: GuestEvent) -> UInt64 {
    UInt64(InterruptionInfo(event).rawValue)
  }

  func takeInterruptedEvent() -> GuestEvent? {
    let info = unsafe InterruptionInfo(
      rawValue: UInt32(truncatingIfNeeded: cpu.vmread(.idtVectoringInfo)))
    let event = unsafe GuestEvent(
      info, errorCode: UInt32(truncatingIfNeeded: cpu.vmread(.idtVectoringErrorCode)),
      instructionLength: UInt32(truncatingIfNeeded: cpu.vmread(.exitInstructionLength)))
    if event?.kind == .nmi {
      // Its delivery blocked NMIs already, and will do so again.
      let state = unsafe cpu.vmread(.guestInterruptibility)
      unsafe cpu.vmwrite(.guestInterruptibility, state & ~UInt64(Interruptibility.blockingByNMI))
    }
    return event
  }

  private(set) var isInterruptWindowOpen = false
  private(set) var isNMIWindowOpen = false

  func setInterruptWindow(_ open: Bool) {
    isInterruptWindowOpen = open
    setPrimary(PrimaryControls.interruptWindowExiting, open)
  }

  func setNMIWindow(_ open: Bool) {
    isNMIWindowOpen = open
    setPrimary(PrimaryControls.nmiWindowExiting, open)
  }

  func setDebugging(exceptions: UInt32, stepping: Bool, debugRegisters: Bool) {
    setControl(.exceptionBitmap, UInt64(exceptions))
    for (bit, on) in [
      (PrimaryControls.monitorTrapFlag, stepping), (PrimaryControls.movDRExiting, debugRegisters),
    ] {
      let old = control(.primaryControls)
      setControl(.primaryControls, on ? old | UInt64(bit) : old & ~UInt64(bit))
    }
  }

  func setMSRFilter(_ filter: MSRFilter?, watchesEFER: Bool) {
    msrBitmap =
      filter == nil && !watchesEFER ? .shared : VMXMSRBitmap(filter, watchesEFER: watchesEFER)
    setControl(.msrBitmap, msrBitmap.address)
  }

  /// Which MSRs the guest reaches, by its own VMCS.
  var ownMSRBitmap: VMXMSRBitmap { msrBitmap }

  private func setSecondary(_ bit: UInt32, _ on: Bool) {
    let old = control(.secondaryControls)
    let new = on ? old | UInt64(bit) : old & ~UInt64(bit)
    if new != old { setControl(.secondaryControls, new) }
  }

  /// A window, of the VMCS that runs.
  private func setPrimary(_ bit: UInt32, _ on: Bool) {
    let old = read(.primaryControls)
    let wanted = on || guestPrimary & bit != 0
    let new = wanted ? old | UInt64(bit) : old & ~UInt64(bit)
    if new != old { write(.primaryControls, new) }
  }
}

/// A VMXON region or VMCS, with the revision identifier.
/// Sendable: its memory belongs to the processor, used by the thread that has the physical CPU.
@safe final class VMXRegion: @unchecked Sendable {
  private let page: UnsafeMutableRawPointer

  init() {
    unsafe page = .allocate(byteCount: 4096, alignment: 4096)
    unsafe page.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
    unsafe page.storeBytes(of: VMXCapabilities.revision, as: UInt32.self)
  }

  deinit { unsafe page.deallocate() }

  var address: UInt64 { unsafe UInt64(UInt(bitPattern: page)) }
  var bytes: UnsafeMutableRawPointer { unsafe page }
  /// Of a VMCS that is current nowhere.
  var fields: VMCSPage { unsafe VMCSPage(base: page) }
}

/// The MSRs that the guest accesses without an exit (SDM volume 3, "MSR-Bitmap Address").
/// Sendable: written by `init` alone.
@safe final class VMXMSRBitmap: @unchecked Sendable {
  static let shared = VMXMSRBitmap()
  private let page: UnsafeMutableRawPointer

  /// - Parameters:
  ///   - filter: denied MSRs exit, even if they usually do not.
  ///   - watchesEFER: writes of EFER exit too.
  init(_ filter: MSRFilter? = nil, watchesEFER: Bool = false) {
    unsafe page = .allocate(byteCount: 4096, alignment: 4096)
    unsafe page.initializeMemory(as: UInt8.self, repeating: 0xFF, count: 4096)
    for msr in Self.readable where filter?.allows(msr.rawValue, isWrite: false) ?? true {
      allow(msr.rawValue, 0)
    }
    for msr in Self.writable where filter?.allows(msr.rawValue, isWrite: true) ?? true {
      if watchesEFER, msr == .efer { continue }
      allow(msr.rawValue, 2048)
    }
    openBytes = (0..<4096).filter { byte($0) != 0xFF }
  }

  /// Offsets of the bytes with a bit that is 0.
  private(set) var openBytes: [Int] = []

  func byte(_ offset: Int) -> UInt8 { unsafe page.load(fromByteOffset: offset, as: UInt8.self) }

  deinit { unsafe page.deallocate() }

  var address: UInt64 { unsafe UInt64(UInt(bitPattern: page)) }

  /// Their values are in the control block or in the physical CPU, which checks them.
  private static let writable: [MSR] = [
    .sysenterCS, .sysenterESP, .sysenterEIP, .pat, .efer, .star, .lstar, .cstar, .fmask, .fsBase,
    .gsBase, .kernelGSBase,
  ]
  private static let readable: [MSR] = writable + [.timeStampCounter]

  private func allow(_ msr: UInt32, _ base: Int) {
    let place = base + (msr >= 0xC000_0000 ? 1024 : 0) + Int(msr & 0x1FFF) / 8
    let old = unsafe page.load(fromByteOffset: place, as: UInt8.self)
    unsafe page.storeBytes(of: old & ~(1 << UInt8(msr & 7)), toByteOffset: place, as: UInt8.self)
  }
}
