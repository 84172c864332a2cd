// SPDX-License-Identifier: Apache-2.0
//
// The vendor seam: what the hypervisor asks of VT-x or SVM for one vCPU. A backend owns the vCPU's
// control block and is written in the processor's verbs; nothing above it names a field of a VMCS
// or a VMCB. All methods but `init` and `load` need the vCPU loaded on the physical CPU given last.

import SystemPackage
import X86
import X86CPU

/// Guest registers that the control block holds (the general registers, CR2 and the syscall MSRs
/// are in the physical CPU itself; see GuestContext).
package enum ControlBlockRegister: Int, Sendable, CaseIterable {
  case rip, rsp, rflags
  /// As the guest sees them, not as the processor runs them.
  case cr0, cr3, cr4, efer, pat, dr7, debugctl
  case sysenterCS, sysenterESP, sysenterEIP
  case gdtrBase, gdtrLimit, idtrBase, idtrLimit
  case pdptr0, pdptr1, pdptr2, pdptr3
  /// Blocking by STI, MOV SS and NMI (`Interruptibility`).
  case interruptibility
  case pendingDebug
}

/// How the run loop goes on after an exit.
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
  /// Writes everything cached back and makes the control block free to load elsewhere.
  func unload(from cpu: PhysicalCPU)

  /// Enters the guest and returns after its exit.
  func run()
  /// What the exit that `run` returned from was. Once for each exit, as it may act on it: after
  /// `takeInterruptedEvent`.
  func takeExit() -> GuestExit
  /// After `GuestExit.entryFailed`: which rules the control block breaks.
  func explainFailedEntry() -> EntryExplanation?
  /// The control block as a file that `martlet doctor` reads.
  var savedControlBlock: [UInt8] { get }

  /// The processor changed guest registers outside the guest: the next entry checks all of them.
  func stateChangedInPlace()
  /// Bytes of the instruction that exited.
  var instructionLength: UInt64 { get }

  subscript(_ register: ControlBlockRegister) -> UInt64 { get set }
  func segment(_ register: SegmentRegister) -> SegmentState
  func setSegment(_ register: SegmentRegister, _ value: SegmentState)

  /// Queues an event for the next entry, which delivers it once.
  func inject(_ event: GuestEvent)
  /// The event that the last exit interrupted on its way into the guest, if any; or one that was
  /// queued and not delivered.
  func takeInterruptedEvent() -> GuestEvent?
  /// An event in the vendor's format, for reports to the client.
  func vendorInformation(of event: GuestEvent) -> UInt64
  /// Exit as soon as an interrupt could be delivered.
  func setInterruptWindow(_ open: Bool)
  /// Exit as soon as an NMI could be delivered, or deliver it (`takeDeliveredNMI`).
  func setNMIWindow(_ open: Bool)
  /// Whether the processor delivered, without an exit, the NMI that a window was opened for. Once
  /// for each.
  func takeDeliveredNMI() -> Bool

  /// The hypercall instruction of the vendor's processors, and the other vendor's, which is
  /// undefined there.
  var hypercall: (own: [UInt8], other: [UInt8]) { get }
  /// What the multiplier of the time-stamp counter is a multiple of.
  var tscMultiplierStep: UInt64 { get }
  func setTSCOffset(_ offset: UInt64)
  /// Guest counts for each of the host's, in units of 2^-48.
  func setTSCMultiplier(_ multiplier: UInt64)
  /// Which CR4 bits the guest may set without an exit.
  func setGuestCR4(allowed: UInt64)
  /// Which instructions the guest has, of those that controls can take away.
  func setInstructions(_ features: GuestFeatures)
  /// Names the root of the nested page tables.
  func setNestedTables(_ root: UInt64)
  /// Which exceptions exit, whether every instruction does, and accesses to debug registers.
  func setDebugging(exceptions: UInt32, stepping: Bool, debugRegisters: Bool)
  /// Whether atomic accesses that lie in two cache lines exit.
  func setBusLockDetection(_ on: Bool)
  /// How long, in TSC ticks, the guest may keep everybody out; nil: without end.
  func setNotifyWindow(_ ticks: UInt32?)
  /// Which MSRs the guest reaches without an exit, of those that may be.
  ///
  /// - Parameter watchesEFER: writes of EFER exit.
  func setMSRFilter(_ filter: MSRFilter?, watchesEFER: Bool)
  /// Drops what the physical CPU has cached of the guest's own translations.
  func flushGuestTranslations()
  /// Drops what the physical CPU has cached of nested tables.
  func invalidateNestedMappings()
}
