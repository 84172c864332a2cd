// SPDX-License-Identifier: Apache-2.0
//
// One vCPU on SVM: its VMCB, written and read with the processor's verbs, and the entry into the
// guest. See SVM+State for the registers and SVM+ExitTable for what follows an exit.
//
// The guest runs with nested paging and an ASID of its own. Its control registers are its own;
// writes of CR4 exit, as its CPUID may offer less than the processor has. EFER.SVME, which VMRUN
// demands, is hidden from it: EFER's accesses exit. NMIs are virtual: one that waits is the
// processor's to deliver, and a guest's IRET ends the blocking without an exit.
//
// Invariant: the VMCB and what VMSAVE saves are in memory unless `cpu` is the physical CPU that
// holds it.

import Synchronization
import SystemPackage
import X86
import X86CPU

final class SVM: VirtualizationBackend {
  /// Where the VMCB is held.
  private(set) unowned(unsafe) var cpu: PhysicalCPU
  /// The guest's own VMCB.
  let page = SVMPages(1)
  /// The VMCB that runs: `page`, or that of a guest of the guest (Nested/SVM).
  private(set) var current: SVMPages
  /// The verb that failed, where the last entry did.
  var failure: SVMError?
  private let asid: UInt32
  /// That of the guest's own guests.
  let guestsASID: UInt32
  private static let nextASID = Atomic<UInt32>(0)
  /// CR4 bits that the guest may set.
  var allowedCR4: UInt64 = 0
  /// Bytes of the instruction that exited.
  private(set) var instructionLength: UInt64 = 0
  /// An NMI waits in the VMCB.
  private var hasNMIWindow = false
  /// A virtual interrupt stands for a window, in the place of the guest's own.
  private var hasInterruptWindow = false
  private var displacedInterrupt: UInt64 = 0
  /// The guest intercepts virtual interrupts of its own guest.
  var isVirtualInterruptGuests = false
  /// EFER.SVME as the guest has it; the processor has 1 always.
  var isGuestSVMEnabled = false
  /// Controls in `page` have changed while another VMCB runs.
  var mustMerge = false
  private var deliveredNMI = false
  /// Every instruction is to exit: RFLAGS.TF is 1 while the guest runs.
  private var isStepping = false
  /// DR6 as the guest has it, while #DB exits.
  private var keptDR6: UInt64?
  /// What has no field in a VMCB waits here while it is not loaded.
  private var waiting = (pendingDebug: UInt64(0), pdptrs: InlineArray<4, UInt64>(repeating: 0))
  private var tscRatio = SVMCapabilities.tscRatioOne
  private var isInitialized = false
  private var msrMap = SVMMSRMap.shared

  init(_ cpu: PhysicalCPU) {
    unsafe self.cpu = cpu
    current = page
    asid = Self.makeASID()
    guestsASID = Self.makeASID()
  }

  /// 0 is the host's; numbers may be reused, which the tables' address tells apart.
  private static func makeASID() -> UInt32 {
    let number = nextASID.wrappingAdd(1, ordering: .relaxed).newValue
    return number % (SVMCapabilities.asidCount &- 1) &+ 1
  }

  /// CPUID.8000_0001H:ECX.SVM (APM volume 3, "Extended Processor and Processor Feature
  /// Identifiers").
  private static let featureBit: UInt32 = 1 << 2

  static func isOffered(by cpu: PhysicalCPU) -> Bool {
    cpu.cpu.cpuid(0x8000_0001, 0).ecx & featureBit != 0
  }

  static func enable(_ cpu: PhysicalCPU) throws(Errno) {
    do throws(SVMError) { try cpu.enableSVM() } catch { throw .ioError }
  }

  /// VMMCALL, and the other vendor's VMCALL.
  var hypercall: (own: [UInt8], other: [UInt8]) { ([0x0F, 0x01, 0xD9], [0x0F, 0x01, 0xC1]) }
  /// TSC_RATIO has 32 bits of fraction.
  var tscMultiplierStep: UInt64 { 1 << 16 }

  static let nestedStateSize = NestedState.headerSize + VMCBField.blockSize
  func makeNested() -> (any NestedVirtualization)? { NestedSVM(self) }

  // MARK: The VMCB

  func load(on cpu: PhysicalCPU) {
    let isAnother = unsafe self.cpu !== cpu
    unsafe self.cpu = cpu
    if isAnother {
      // Its parked translations may be outdated.
      flushGuestTranslations()
      flushTranslations(of: guestsASID)
    }
    do throws(SVMError) {
      try cpu.vmcbHold(current.address)
      if !isInitialized {
        isInitialized = true
        writeConstantFields()
      }
      try cpu.vmload(page.address)
    } catch {
      failure = error
    }
    _ = cpu.writeSVMMSR(MSR.tscRatio.rawValue, tscRatio)
    unsafe cpu.cpu.s.pointee.pendingDebug = waiting.pendingDebug
    unsafe cpu.cpu.s.pointee.pdptrs = waiting.pdptrs
  }

  func unload(from cpu: PhysicalCPU) {
    waiting = unsafe (cpu.cpu.s.pointee.pendingDebug, cpu.cpu.s.pointee.pdptrs)
    do throws(SVMError) { try cpu.vmsave(page.address) } catch { failure = error }
    cpu.vmcbRelease()
  }

  /// Makes another VMCB the one that runs. The guest's state is in the processor afterwards, and
  /// that of the other in its memory.
  func run(_ pages: SVMPages) {
    setInterruptWindow(false)
    setNMIWindow(false)
    let isBlocked = unsafe cpu.cpu.s.pointee.interruptibility & Interruptibility.blockingByNMI != 0
    var word = VirtualInterrupt(rawValue: pages.vmcb[.virtualInterrupt])
    word.rawValue &= ~VirtualInterrupt.nmiMaskedBit
    if isBlocked { word.rawValue |= VirtualInterrupt.nmiMaskedBit }
    pages.vmcb[.virtualInterrupt] = word.rawValue
    do throws(SVMError) { try unsafe cpu.vmcbHold(pages.address) } catch { failure = error }
    unsafe cpu.cpu.s.pointee.cr8 = UInt64(word.tpr)
    current = pages
  }

  func stateChangedInPlace() {
    // What is held lives in the physical CPU, so it needs no copy: the next VMRUN has it all
    // checked.
    unsafe cpu.vmcbWrite(.cleanBits, 0)
  }

  func explainFailedEntry() -> EntryExplanation? { unsafe cpu.vmrunExplanation }
  var savedControlBlock: [UInt8] { unsafe cpu.heldVMCBBytes }

  func flushGuestTranslations() { flushTranslations(of: asid) }

  /// Translations of an ASID that `makeASID` has given, on this CPU.
  func flushTranslations(of asid: UInt32) {
    do throws(SVMError) { try unsafe cpu.invlpgb(asid: asid) } catch { failure = error }
  }

  func invalidateNestedMappings() {
    do throws(SVMError) { try unsafe cpu.invlpgb(asid: nil) } catch { failure = error }
  }

  private static let intercepts: SVMIntercepts = [
    .interrupt, .nmi, .initSignal, .virtualInterrupt, .rdpmc, .cpuid, .invd, .pause, .hlt,
    .invlpga, .ports, .msrs, .taskSwitch, .shutdown, .vmrun, .vmmcall, .vmload, .vmsave, .stgi,
    .clgi, .skinit, .wbinvd, .monitor, .mwait, .xsetbv, .rdpru,
  ]
  /// Reads of CR8; writes of CR4 and CR8.
  private static let controlRegisters: UInt64 = 1 << 8 | (1 << 4 | 1 << 8) << 16
  /// How many PAUSEs, and how close they must follow each other, in processor cycles.
  private static let pauseFilter: (count: UInt64, threshold: UInt64) = (100, 4096)

  private func writeConstantFields() {
    let bits = Self.intercepts.rawValue
    let fields: [(VMCBField, UInt64)] = [
      (.intercepts3, bits & 0xFFFF_FFFF), (.intercepts4, bits >> 32),
      (.controlRegisterIntercepts, Self.controlRegisters),
      (.pauseFilterCount, Self.pauseFilter.count),
      (.pauseFilterThreshold, Self.pauseFilter.threshold),
      (.ioPermissionMap, SVMPages.allPorts.address), (.msrPermissionMap, msrMap.address),
      (.asid, UInt64(asid)), (.nestedControl, NestedControl.paging),
      (.virtualInterrupt, VirtualInterrupt.maskingBit | VirtualInterrupt.nmiEnabledBit),
      (.efer, EFER.svme.rawValue),
    ]
    for (field, value) in fields { unsafe cpu.vmcbWrite(field, value) }
  }

  // MARK: Entry

  func run() {
    failure = nil
    prepare()
    do throws(SVMError) {
      try unsafe cpu.vmrun(current.address, keepsState: true)
    } catch {
      failure = error
    }
    let block = current.vmcb
    // What VMRUN has refused it has not looked at to the end.
    let isRefused = block[.exitCode] == SVMExitCode.invalid.rawValue
    block[.cleanBits] = isRefused ? 0 : UInt64(VMCBClean.all.rawValue)
    let next = block[.nextRIP]
    instructionLength = unsafe next == 0 ? 0 : next &- cpu.cpu.s.pointee.rip
    if hasNMIWindow { noteDeliveredNMI() }
    if isStepping { unsafe cpu.vmcbWrite(.rflags, cpu.vmcbRead(.rflags) & ~RFLAGS.tf.rawValue) }
  }

  private func prepare() {
    let s = unsafe cpu.cpu.s
    if unsafe current.vmcb[.virtualInterrupt] & 0xF != s.pointee.cr8 {
      changeVirtualInterrupt { _ in }
    }
    if unsafe s.pointee.pendingDebug & PendingDebug.causes != 0 { injectPendingDebug() }
    if isStepping { unsafe cpu.vmcbWrite(.rflags, cpu.vmcbRead(.rflags) | RFLAGS.tf.rawValue) }
    if interceptsDebug {
      // What the exception adds shall be told apart.
      keptDR6 = unsafe s.pointee.dr6
      unsafe s.pointee.dr6 = DR6.initial.rawValue
    }
  }

  private var interceptsDebug: Bool {
    page.vmcb[.exceptionIntercepts] & 1 << UInt64(ExceptionVector.debug.rawValue) != 0
  }

  /// The causes of a #DB that exited; DR6 is the guest's own again.
  func takeDebugCauses() -> UInt64 {
    let causes =
      unsafe cpu.cpu.s.pointee.dr6 & PendingDebug.all | cpu.cpu.s.pointee.dr6 & DR6.bd.rawValue
    restoreDR6(isDebug: true)
    return causes & ~PendingDebug.enabledBreakpoint
  }

  /// After any exit.
  func restoreDR6(isDebug: Bool) {
    guard let kept = keptDR6 else { return }
    keptDR6 = nil
    let s = unsafe cpu.cpu.s
    unsafe s.pointee.dr6 = unsafe isDebug ? kept : s.pointee.dr6 | kept & DR6.causes
  }

  /// A trap of an instruction that the hypervisor executed: no field of a VMCB has it, so it is
  /// injected, unless a load of SS holds it back.
  private func injectPendingDebug() {
    let s = unsafe cpu.cpu.s
    let isHeld = unsafe s.pointee.interruptibility & Interruptibility.blockingByMovSS != 0
    guard !isHeld, current.vmcb[.eventInjection] & SVMEvent.validBit == 0 else { return }
    let causes = unsafe s.pointee.pendingDebug & PendingDebug.dr6
    unsafe s.pointee.pendingDebug = 0
    unsafe s.pointee.dr6 = unsafe s.pointee.dr6 & ~PendingDebug.breakpoints | causes
    let vector = ExceptionVector.debug.rawValue
    inject(GuestEvent(exception: vector, errorCode: nil, instructionLength: 0))
  }

  // MARK: Controls

  /// A control of the guest's own VMCB, whichever runs.
  private func setControl(_ field: VMCBField, _ value: UInt64) {
    if current === page { return unsafe cpu.vmcbWrite(field, value) }
    page.vmcb[field] = value
    mustMerge = true
  }

  func setNestedTables(_ root: UInt64) { setControl(.nestedCR3, root) }

  func setTSCOffset(_ offset: UInt64) { setControl(.tscOffset, offset) }

  func setTSCMultiplier(_ multiplier: UInt64) {
    tscRatio = multiplier >> 16 & SVMCapabilities.tscRatioMask
    _ = unsafe cpu.writeSVMMSR(MSR.tscRatio.rawValue, tscRatio)
  }

  func setGuestCR4(allowed: UInt64) { allowedCR4 = allowed }

  /// RDTSCP and INVPCID are taken away by their intercepts. Of the others there is none.
  func setInstructions(_ features: GuestFeatures) {
    setIntercept(.rdtscp, features.isDisjoint(with: [.rdtscp, .rdpid]))
    setControl(
      .intercepts5, features.contains(.invpcid) ? 0 : UInt64(SVMIntercept5.invpcid))
  }

  /// SVM of this processor has neither.
  func setBusLockDetection(_ on: Bool) {}
  func setNotifyWindow(_ ticks: UInt32?) {}

  private func setIntercept(_ intercept: SVMIntercepts, _ on: Bool) {
    let (field, bit): (VMCBField, UInt64) =
      intercept.rawValue >> 32 == 0
      ? (.intercepts3, intercept.rawValue) : (.intercepts4, intercept.rawValue >> 32)
    let old = page.vmcb[field]
    setControl(field, on ? old | bit : old & ~bit)
  }

  func setDebugging(exceptions: UInt32, stepping: Bool, debugRegisters: Bool) {
    isStepping = stepping
    let debug: UInt32 = 1 << UInt32(ExceptionVector.debug.rawValue)
    setControl(.exceptionIntercepts, UInt64(stepping ? exceptions | debug : exceptions))
    setControl(.debugRegisterIntercepts, debugRegisters ? 0xFFFF_FFFF : 0)
  }

  func setMSRFilter(_ filter: MSRFilter?, watchesEFER: Bool) {
    msrMap = filter == nil ? .shared : SVMMSRMap(filter)
    setControl(.msrPermissionMap, msrMap.address)
  }

  // MARK: Events

  func inject(_ event: GuestEvent) {
    unsafe cpu.vmcbWrite(.eventInjection, vendorInformation(of: event))
    if event.isOfInstruction {
      unsafe cpu.vmcbWrite(.nextRIP, cpu.vmcbRead(.rip) &+ UInt64(event.instructionLength))
    }
  }

  func vendorInformation(of event: GuestEvent) -> UInt64 { SVMEvent(event).rawValue }

  func takeInterruptedEvent() -> GuestEvent? {
    let block = current.vmcb
    // A VMRUN that failed has left its event.
    let waits = SVMEvent(rawValue: block[.eventInjection])
    let info = waits.isValid ? waits : SVMEvent(rawValue: block[.exitInterruptInfo])
    guard info.isValid else { return nil }
    block[.eventInjection] = 0
    let event = GuestEvent(info, instructionLength: UInt32(truncatingIfNeeded: instructionLength))
    // Its delivery blocked NMIs already, and will again.
    if event?.kind == .nmi { setNMIBlocking(false) }
    return event
  }

  func setNMIBlocking(_ isBlocked: Bool) {
    let s = unsafe cpu.cpu.s
    unsafe s.pointee.interruptibility &= ~Interruptibility.blockingByNMI
    if isBlocked { unsafe s.pointee.interruptibility |= Interruptibility.blockingByNMI }
    changeVirtualInterrupt { _ in }
  }

  /// Changes the virtual interrupt, with CR8 and NMI blocking as the CPU has them.
  private func changeVirtualInterrupt(_ change: (inout VirtualInterrupt) -> Void) {
    let s = unsafe cpu.cpu.s
    var word = unsafe VirtualInterrupt(rawValue: cpu.vmcbRead(.virtualInterrupt))
    word.tpr = unsafe UInt8(truncatingIfNeeded: s.pointee.cr8)
    word.rawValue &= ~VirtualInterrupt.nmiMaskedBit
    if unsafe s.pointee.interruptibility & Interruptibility.blockingByNMI != 0 {
      word.rawValue |= VirtualInterrupt.nmiMaskedBit
    }
    change(&word)
    unsafe cpu.vmcbWrite(.virtualInterrupt, word.rawValue)
  }

  /// A virtual interrupt that VINTR's intercept keeps from being delivered.
  func setInterruptWindow(_ open: Bool) {
    if open == hasInterruptWindow { return }
    hasInterruptWindow = open
    changeVirtualInterrupt { word in
      let own = word.rawValue & VirtualInterrupt.requestMask
      word.rawValue &= ~VirtualInterrupt.requestMask
      if open {
        displacedInterrupt = own
        word.rawValue |= VirtualInterrupt.pendingBit | VirtualInterrupt.ignoresTPRBit
      } else {
        word.rawValue |= displacedInterrupt
        displacedInterrupt = 0
      }
    }
    if current !== page { interceptVirtualInterrupts() }
  }

  var isInterruptWindowOpen: Bool { hasInterruptWindow }

  /// Sets the intercept of virtual interrupts in a guest's guest: they exit if its hypervisor
  /// intercepts them, or if one represents a window.
  func interceptVirtualInterrupts() {
    let bit = SVMIntercepts.virtualInterrupt.rawValue
    let rest = current.vmcb[.intercepts3] & ~bit
    let exits = hasInterruptWindow || isVirtualInterruptGuests
    unsafe cpu.vmcbWrite(.intercepts3, exits ? rest | bit : rest)
  }

  /// The processor delivers the NMI by itself, without an exit.
  func setNMIWindow(_ open: Bool) {
    if open == hasNMIWindow { return }
    hasNMIWindow = open
    let bit = VirtualInterrupt.nmiPendingBit
    changeVirtualInterrupt { word in
      word.rawValue = open ? word.rawValue | bit : word.rawValue & ~bit
    }
  }

  private func noteDeliveredNMI() {
    if current.vmcb[.virtualInterrupt] & VirtualInterrupt.nmiPendingBit != 0 { return }
    hasNMIWindow = false
    deliveredNMI = true
  }

  func takeDeliveredNMI() -> Bool {
    defer { deliveredNMI = false }
    return deliveredNMI
  }

  var vmcb: VMCB { current.vmcb }
  /// Which MSRs the guest reaches, by its own VMCB.
  var ownMSRMap: SVMMSRMap { msrMap }
}

extension DR6 {
  /// What a debug exception sets.
  fileprivate static let causes = DR6([.b0, .b1, .b2, .b3, .bd, .bs, .bt]).rawValue
}

/// Pages that a VMCB, or the permission maps that it names, lie in.
/// Sendable: the processor's, used by the thread that has the physical CPU; shared maps are not
/// written after they are made.
@safe final class SVMPages: @unchecked Sendable {
  private let start: UnsafeMutableRawPointer

  init(_ count: Int, repeating byte: UInt8 = 0) {
    unsafe start = .allocate(byteCount: count * 4096, alignment: 4096)
    unsafe start.initializeMemory(as: UInt8.self, repeating: byte, count: count * 4096)
  }

  deinit { unsafe start.deallocate() }

  var address: UInt64 { unsafe UInt64(UInt(bitPattern: start)) }
  var bytes: UnsafeMutableRawPointer { unsafe start }
  var vmcb: VMCB { unsafe VMCB(base: start) }

  /// Every port exits.
  static let allPorts = SVMPages(Int(PermissionMap.portBytes / 4096), repeating: 0xFF)
}

/// Which MSRs the guest reaches without an exit (APM volume 2, "MSR Intercepts").
/// Sendable: written by `init` alone.
final class SVMMSRMap: @unchecked Sendable {
  static let shared = SVMMSRMap()
  private let pages = SVMPages(Int(PermissionMap.msrBytes / 4096), repeating: 0xFF)
  /// Offsets of the bytes with a bit that is 0.
  private(set) var openBytes: [Int] = []

  /// - Parameter filter: of the MSRs that need no exit, those it denies exit all the same.
  init(_ filter: MSRFilter? = nil) {
    for msr in Self.readable where filter?.allows(msr.rawValue, isWrite: false) ?? true {
      allow(msr, isWrite: false)
    }
    for msr in Self.writable where filter?.allows(msr.rawValue, isWrite: true) ?? true {
      allow(msr, isWrite: true)
    }
    let bytes = unsafe UnsafeRawBufferPointer(
      start: pages.bytes, count: Int(PermissionMap.msrBytes))
    openBytes = bytes.indices.filter { unsafe bytes[$0] != 0xFF }
  }

  /// A byte of the map.
  func byte(_ offset: Int) -> UInt8 {
    unsafe pages.bytes.load(fromByteOffset: offset, as: UInt8.self)
  }

  var address: UInt64 { pages.address }

  /// Their values are in the VMCB or in the physical CPU, and the processor checks them.
  private static let writable: [MSR] = [
    .sysenterCS, .sysenterESP, .sysenterEIP, .pat, .star, .lstar, .cstar, .fmask, .fsBase,
    .gsBase, .kernelGSBase,
  ]
  private static let readable: [MSR] = writable + [.timeStampCounter]

  private func allow(_ msr: MSR, isWrite: Bool) {
    guard let first = PermissionMap.msrBit(msr.rawValue) else { return }
    let bit = first + (isWrite ? 1 : 0)
    let old = unsafe pages.bytes.load(fromByteOffset: bit >> 3, as: UInt8.self)
    unsafe pages.bytes.storeBytes(
      of: old & ~(1 << UInt8(bit & 7)), toByteOffset: bit >> 3, as: UInt8.self)
  }
}
