// SPDX-License-Identifier: Apache-2.0
//
// The vendor seam: the operations that the hypervisor needs from VT-x or SVM for one vCPU. A
// backend owns the vCPU's control block and uses the processor's instructions; nothing above it
// names a field of a VMCS or a VMCB. All methods but `init` and `load` need the vCPU loaded on the
// physical CPU given last.

import SystemPackage
import X86
import X86CPU

/// Guest registers that the control block holds (the general registers, CR2 and the syscall MSRs
/// are in the physical CPU itself; see GuestContext).
package enum ControlBlockRegister: Int, Sendable, CaseIterable {
  case rip, rsp, rflags
  /// The guest's values, not the processor's.
  case cr0, cr3, cr4, efer, pat, dr7, debugctl
  case sysenterCS, sysenterESP, sysenterEIP
  case gdtrBase, gdtrLimit, idtrBase, idtrLimit
  case pdptr0, pdptr1, pdptr2, pdptr3
  /// Blocking by STI, MOV SS and NMI (`Interruptibility`).
  case interruptibility
  case pendingDebug
}

/// How the run loop continues after an exit.
enum Disposition {
  /// Enter again.
  case resume
  /// `kvm_run` is filled: KVM_RUN returns 0.
  case userSpace
}

protocol VirtualizationBackend: AnyObject {
  /// Whether a physical CPU has this vendor's virtualization.
  static func isOffered(by cpu: PhysicalCPU) -> Bool
  /// Makes a physical CPU ready to enter guests (VMXON; EFER.SVME).
  static func enable(_ cpu: PhysicalCPU) throws(Errno)

  /// Bytes of KVM's nested state, its header and all that may follow; 0 where there is none.
  static var nestedStateSize: Int { get }

  /// - Parameter cpu: any; `load` names the one that counts.
  init(_ cpu: PhysicalCPU)

  /// What a guest that is a hypervisor needs of this vendor; nil: no guest can be one.
  func makeNested() -> (any NestedVirtualization)?

  /// Makes the control block current on `cpu`.
  func load(on cpu: PhysicalCPU)
  /// Writes cached fields back and frees the control block for another CPU.
  func unload(from cpu: PhysicalCPU)

  /// Enters the guest and returns after its exit.
  func run()
  /// The exit that `run` returned with. Call it once for each exit, as it may act on it, and after
  /// `takeInterruptedEvent`.
  func takeExit() -> GuestExit
  /// After `GuestExit.entryFailed`: the rules that the control block breaks.
  func explainFailedEntry() -> EntryExplanation?
  /// The control block as a file for `martlet doctor`.
  var savedControlBlock: [UInt8] { get }

  /// The processor changed guest registers outside the guest: check all of them at the next entry.
  func stateChangedInPlace()
  /// Length in bytes of the instruction that exited.
  var instructionLength: UInt64 { get }

  subscript(_ register: ControlBlockRegister) -> UInt64 { get set }
  func segment(_ register: SegmentRegister) -> SegmentState
  func setSegment(_ register: SegmentRegister, _ value: SegmentState)

  /// Queues an event that the next entry delivers once.
  func inject(_ event: GuestEvent)
  /// The event whose delivery the last exit interrupted, or one that was queued and not delivered.
  func takeInterruptedEvent() -> GuestEvent?
  /// An event in the vendor's format, for reporting to the client.
  func vendorInformation(of event: GuestEvent) -> UInt64
  /// Exits as soon as an interrupt can be delivered.
  func setInterruptWindow(_ open: Bool)
  /// Exits as soon as an NMI can be delivered, or delivers it (`takeDeliveredNMI`).
  func setNMIWindow(_ open: Bool)
  /// Whether the processor delivered the NMI of an open window without an exit. Resets the answer.
  func takeDeliveredNMI() -> Bool

  /// The hypercall instruction of the vendor's processors, and the other vendor's, which raises #UD
  /// there.
  var hypercall: (own: [UInt8], other: [UInt8]) { get }
  /// The granularity of the TSC multiplier.
  var tscMultiplierStep: UInt64 { get }
  func setTSCOffset(_ offset: UInt64)
  /// Guest ticks for each host tick, in units of 2^-48.
  func setTSCMultiplier(_ multiplier: UInt64)
  /// The CR4 bits that the guest may set without an exit.
  func setGuestCR4(allowed: UInt64)
  /// The guest's instructions, of those that controls can disable.
  func setInstructions(_ features: GuestFeatures)
  /// Sets the root of the nested page tables.
  func setNestedTables(_ root: UInt64)
  /// Which exceptions exit, and whether every instruction and accesses to debug registers do.
  func setDebugging(exceptions: UInt32, stepping: Bool, debugRegisters: Bool)
  /// Whether atomic accesses that cross a cache line exit.
  func setBusLockDetection(_ on: Bool)
  /// How long, in TSC ticks, the guest may delay an exit; nil: without limit.
  func setNotifyWindow(_ ticks: UInt32?)
  /// The MSRs that the guest accesses without an exit, of those that allow it.
  ///
  /// - Parameter watchesEFER: writes of EFER exit.
  func setMSRFilter(_ filter: MSRFilter?, watchesEFER: Bool)
  /// Flushes the physical CPU's cached guest translations.
  func flushGuestTranslations()
  /// Flushes the physical CPU's cached nested mappings.
  func invalidateNestedMappings()
}
