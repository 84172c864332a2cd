// SPDX-License-Identifier: Apache-2.0
//
// What a hypervisor can intercept, vendor-neutral, and the instructions that it can disable for a
// guest. VM entry builds the two sets from VT-x's control fields, VMRUN from a VMCB's intercept
// vectors; instructions and translated code check only these.
//
//     if c.intercepts(.hlt) { throw c.exit(.hlt, i) }
//
// After each bit: VT-x's control (SDM volume 3, "VM-Execution Control Fields"), then SVM's
// intercept (APM volume 2, "Instruction Intercepts" and "Interrupt Intercepts"); "-" if a vendor
// has none.

/// Instructions and events that exit. Intercepts of more than a bit (exceptions, control and debug
/// registers, ports, MSRs) are fields of the processor's `Intercepts`.
public struct InterceptSet: OptionSet, Hashable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  // MARK: Tested by translated code: the lowest byte

  /// An event waits until the guest enables interrupts. VT-x: interrupt-window exiting. SVM: V_IRQ,
  /// whose virtual interrupt is delivered then, or exits by the VINTR intercept
  /// (`virtualInterrupt`).
  @inlinable public static var interruptWindow: Self { Self(rawValue: 1 << 0) }
  /// VT-x: RDTSC exiting (also for RDTSCP). SVM: RDTSC.
  @inlinable public static var rdtsc: Self { Self(rawValue: 1 << 1) }
  /// VT-x: RDTSC exiting. SVM: RDTSCP.
  @inlinable public static var rdtscp: Self { Self(rawValue: 1 << 2) }
  /// Not an exit: the guest's time-stamp counter has an offset. VT-x: use TSC offsetting. SVM:
  /// always.
  @inlinable public static var offsetTSC: Self { Self(rawValue: 1 << 3) }
  /// Not an exit: with an offset, the counter is scaled as well. VT-x: use TSC scaling. SVM: a
  /// ratio (TSC_RATIO) other than 1.
  @inlinable public static var scaledTSC: Self { Self(rawValue: 1 << 4) }

  // MARK: Between instructions

  /// An event waits until NMIs are unblocked. VT-x: NMI-window exiting. SVM: - (IRET's intercept
  /// serves).
  @inlinable public static var nmiWindow: Self { Self(rawValue: 1 << 8) }
  /// The guest exits at `CPUState.deadline`. VT-x: activate VMX-preemption timer. SVM: -
  @inlinable public static var deadline: Self { Self(rawValue: 1 << 9) }
  /// Exits after one instruction. VT-x: monitor trap flag. SVM: -
  @inlinable public static var monitorTrap: Self { Self(rawValue: 1 << 10) }
  /// VT-x: external-interrupt exiting. SVM: INTR. The processor's only interrupts are kicks, which
  /// exit with or without it; a guest's interrupts are injected.
  @inlinable public static var externalInterrupt: Self { Self(rawValue: 1 << 11) }
  /// VT-x: NMI exiting. SVM: NMI. Without it (or with `virtualNMIs`) IRET unblocks NMIs.
  @inlinable public static var nmi: Self { Self(rawValue: 1 << 12) }
  /// Not an exit: NMI blocking belongs to the guest. VT-x: virtual NMIs. SVM: always, as EVENTINJ
  /// injects NMIs.
  @inlinable public static var virtualNMIs: Self { Self(rawValue: 1 << 13) }
  /// A virtual interrupt (V_IRQ) that could be delivered. VT-x: -. SVM: VINTR.
  @inlinable public static var virtualInterrupt: Self { Self(rawValue: 1 << 14) }
  /// VT-x: always. SVM: INIT.
  @inlinable public static var initSignal: Self { Self(rawValue: 1 << 15) }
  /// VT-x: - (dual-monitor treatment is not offered). SVM: SMI.
  @inlinable public static var smi: Self { Self(rawValue: 1 << 16) }
  /// A triple fault. VT-x: always. SVM: shutdown.
  @inlinable public static var shutdown: Self { Self(rawValue: 1 << 17) }
  /// VT-x: always. SVM: task switch.
  @inlinable public static var taskSwitch: Self { Self(rawValue: 1 << 18) }
  /// Frozen by an x87 error with CR0.NE 0. VT-x: -. SVM: FERR_FREEZE.
  @inlinable public static var ferrFreeze: Self { Self(rawValue: 1 << 19) }
  /// An atomic access that crosses a cache line. VT-x: bus-lock detection. SVM: bus-lock threshold.
  @inlinable public static var busLock: Self { Self(rawValue: 1 << 20) }
  /// No instruction boundary for `Intercepts.notifyWindow`. VT-x: notify exiting. SVM: -
  @inlinable public static var notify: Self { Self(rawValue: 1 << 21) }
  /// PAUSEs in a loop. VT-x: PAUSE-loop exiting, at CPL 0. SVM: the pause filter, whose count and
  /// threshold differ from VT-x's window and gap.
  @inlinable public static var pauseLoop: Self { Self(rawValue: 1 << 22) }

  // MARK: Instructions of both vendors

  /// VT-x: always. SVM: CPUID.
  @inlinable public static var cpuid: Self { Self(rawValue: 1 << 24) }
  /// VT-x: HLT exiting. SVM: HLT.
  @inlinable public static var hlt: Self { Self(rawValue: 1 << 25) }
  /// VT-x: INVLPG exiting. SVM: INVLPG.
  @inlinable public static var invlpg: Self { Self(rawValue: 1 << 26) }
  /// VT-x: INVLPG exiting. SVM: INVPCID.
  @inlinable public static var invpcid: Self { Self(rawValue: 1 << 27) }
  /// VT-x: RDPMC exiting. SVM: RDPMC.
  @inlinable public static var rdpmc: Self { Self(rawValue: 1 << 28) }
  /// VT-x: PAUSE exiting. SVM: PAUSE, without a filter.
  @inlinable public static var pause: Self { Self(rawValue: 1 << 29) }
  /// VT-x: MONITOR exiting. SVM: MONITOR.
  @inlinable public static var monitor: Self { Self(rawValue: 1 << 30) }
  /// VT-x: MWAIT exiting. SVM: MWAIT, armed or not.
  @inlinable public static var mwait: Self { Self(rawValue: 1 << 31) }
  /// If an address is armed. VT-x: -. SVM: MWAIT_CONDITIONAL.
  @inlinable public static var armedMWAIT: Self { Self(rawValue: 1 << 32) }
  /// WBINVD and WBNOINVD. VT-x: WBINVD exiting. SVM: WBINVD.
  @inlinable public static var wbinvd: Self { Self(rawValue: 1 << 33) }
  /// VT-x: always. SVM: INVD.
  @inlinable public static var invd: Self { Self(rawValue: 1 << 34) }
  /// VT-x: always. SVM: XSETBV.
  @inlinable public static var xsetbv: Self { Self(rawValue: 1 << 35) }
  /// VMCALL, VMMCALL. VT-x: always. SVM: VMMCALL, which is #UD without it.
  @inlinable public static var hypercall: Self { Self(rawValue: 1 << 36) }
  /// SGDT, SIDT, SLDT, STR. VT-x: descriptor-table exiting (all eight). SVM: GDTR_READ, IDTR_READ,
  /// LDTR_READ, TR_READ.
  @inlinable public static var sgdt: Self { Self(rawValue: 1 << 37) }
  @inlinable public static var sidt: Self { Self(rawValue: 1 << 38) }
  @inlinable public static var sldt: Self { Self(rawValue: 1 << 39) }
  @inlinable public static var str: Self { Self(rawValue: 1 << 40) }
  /// LGDT, LIDT, LLDT, LTR. VT-x: descriptor-table exiting. SVM: GDTR_WRITE, IDTR_WRITE,
  /// LDTR_WRITE, TR_WRITE.
  @inlinable public static var lgdt: Self { Self(rawValue: 1 << 41) }
  @inlinable public static var lidt: Self { Self(rawValue: 1 << 42) }
  @inlinable public static var lldt: Self { Self(rawValue: 1 << 43) }
  @inlinable public static var ltr: Self { Self(rawValue: 1 << 44) }

  // MARK: Instructions of one vendor

  /// VT-x: RDRAND exiting. SVM: -
  @inlinable public static var rdrand: Self { Self(rawValue: 1 << 45) }
  /// VT-x: RDSEED exiting. SVM: -
  @inlinable public static var rdseed: Self { Self(rawValue: 1 << 46) }
  /// VT-x: - (there is no rule for it: #UD). SVM: RSM.
  @inlinable public static var rsm: Self { Self(rawValue: 1 << 47) }
  /// VT-x: -. SVM: IRET, before it has any effect.
  @inlinable public static var iret: Self { Self(rawValue: 1 << 48) }
  /// VT-x: -. SVM: PUSHF, POPF, before any exception.
  @inlinable public static var pushf: Self { Self(rawValue: 1 << 49) }
  @inlinable public static var popf: Self { Self(rawValue: 1 << 50) }
  /// INT n. VT-x: -. SVM: INTn, before any exception.
  @inlinable public static var softwareInterrupt: Self { Self(rawValue: 1 << 51) }
  /// INT1. VT-x: - (the exception bitmap's #DB). SVM: ICEBP; the #DB intercept does not apply.
  @inlinable public static var icebp: Self { Self(rawValue: 1 << 52) }
  /// MOV to CR0, or LMSW, that changes bits other than TS and MP. VT-x: -. SVM: CR0_SEL_WRITE.
  @inlinable public static var selectiveCR0Write: Self { Self(rawValue: 1 << 53) }
  /// VT-x: -. SVM: RDPRU.
  @inlinable public static var rdpru: Self { Self(rawValue: 1 << 54) }
  /// SVM's own; each is #UD if EFER.SVME is 0. VT-x: #UD.
  @inlinable public static var vmrun: Self { Self(rawValue: 1 << 55) }
  @inlinable public static var vmload: Self { Self(rawValue: 1 << 56) }
  @inlinable public static var vmsave: Self { Self(rawValue: 1 << 57) }
  @inlinable public static var stgi: Self { Self(rawValue: 1 << 58) }
  @inlinable public static var clgi: Self { Self(rawValue: 1 << 59) }
  @inlinable public static var skinit: Self { Self(rawValue: 1 << 60) }
  @inlinable public static var invlpga: Self { Self(rawValue: 1 << 61) }

  // MARK: Groups

  /// Instructions that translated code executes without checking: with one of these set, code is
  /// not translated (`ModeKey.interpreted`).
  @inlinable public static var untranslated: Self { [.pushf, .popf] }
  /// Windows checked between instructions.
  @inlinable public static var windows: Self { [.interruptWindow, .nmiWindow] }
  @inlinable public static var descriptorTables: Self {
    [.sgdt, .sidt, .sldt, .str, .lgdt, .lidt, .lldt, .ltr]
  }
}

/// Instructions that the hypervisor must enable for a guest, else #UD. SVM has no such controls:
/// all are enabled.
public struct EnabledInstructions: OptionSet, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// RDTSCP and RDPID. VT-x: enable RDTSCP.
  @inlinable public static var rdtscp: Self { Self(rawValue: 1 << 0) }
  /// VT-x: enable INVPCID.
  @inlinable public static var invpcid: Self { Self(rawValue: 1 << 1) }
  /// XSAVES and XRSTORS. VT-x: enable XSAVES/XRSTORS.
  @inlinable public static var xsaves: Self { Self(rawValue: 1 << 2) }
  /// TPAUSE, UMONITOR, UMWAIT. VT-x: enable user wait and pause (not offered).
  @inlinable public static var userWait: Self { Self(rawValue: 1 << 3) }

  @inlinable public static var all: Self { Self(rawValue: 0xF) }
}
