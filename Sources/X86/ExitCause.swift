// SPDX-License-Identifier: Apache-2.0
//
// Why the processor exited guest code, vendor-neutral. VT-x's exit reason and SVM's EXITCODE are
// each derived from it by a table; details of a cause are in the processor's `ExitRecord`.
//
// (`GuestExit` is the hypervisor's view of the same: a backend converts the vendor's information to
// it.)

public enum ExitCause: UInt8, CaseIterable, Sendable {
  /// No exit is recorded.
  case none

  // MARK: Events

  case exception
  /// Another thread kicked the processor.
  case externalInterrupt
  case nmi, initSignal, startupIPI, smi
  case tripleFault
  /// VT-x's interrupt window, SVM's VINTR.
  case interruptWindow
  case nmiWindow
  case preemptionTimer
  case monitorTrap
  case busLock
  case notify
  case ferrFreeze
  case taskSwitch
  /// VT-x's virtual APIC: TPR below threshold, an access to the APIC's page, a write to the virtual
  /// one, an EOI that exits.
  case tprBelowThreshold, apicAccess, apicWrite, virtualizedEOI

  // MARK: Memory

  /// VT-x: the log of modified pages is full.
  case pageLogFull

  /// An access that the nested page tables deny.
  case nestedFault
  /// A misconfigured EPT entry. (SVM: a nested fault with the reserved bit.)
  case nestedMisconfiguration

  // MARK: Registers, ports

  /// MOV to or from a control register, CLTS, LMSW; of SVM SMSW, too.
  case controlRegisterAccess
  /// MOV to CR0 or LMSW by SVM's selective intercept.
  case selectiveCR0Write
  case debugRegisterAccess
  /// IN, OUT, INS, OUTS.
  case ioInstruction
  case rdmsr, wrmsr

  // MARK: Instructions

  case cpuid, hlt, invd, wbinvd, invlpg, invpcid, rdpmc, rdtsc, rdtscp, rsm
  case pause, monitor, mwait
  case xsetbv, xsaves, xrstors, rdrand, rdseed
  case sgdt, sidt, sldt, str, lgdt, lidt, lldt, ltr
  /// VMCALL, VMMCALL.
  case hypercall
  case iret, pushf, popf
  /// INT n.
  case softwareInterrupt
  /// INT1.
  case icebp
  case rdpru

  // MARK: Instructions of virtualization

  case vmclear, vmlaunch, vmptrld, vmptrst, vmread, vmresume, vmwrite, vmxoff, vmxon
  case invept, invvpid, vmfunc
  case vmrun, vmload, vmsave, stgi, clgi, skinit, invlpga

  /// One more than the highest raw value: the size of a table by cause.
  public static let count = allCases.count

  /// For statistics and crash reports.
  public var name: String { String(describing: self) }
}
