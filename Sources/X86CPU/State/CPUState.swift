// SPDX-License-Identifier: Apache-2.0
//
// The state of one physical CPU of the software processor, as one plain block of memory.
//
// The interpreter and the translator access it through one pointer (`CPU`), so every field has a
// fixed offset and none is reference counted. One host thread at a time owns a physical CPU; other
// threads write only `request`.
//
// Invariants whenever guest code is not executing (at exits, faults, requests):
// - `rip` is the address of the next instruction (offset in CS, not linear).
// - the arithmetic flags are in `flagResult` and `flagAux` (see CPU+Flags), every other flag in
//   `rflags`, whose arithmetic bits are 0 and whose bit 1 is 1.
// - `zero` is 0.
// - `modeKey`, `codeMode`, `cpl`, `tlb` and `tlbContext` agree with CR0, CR3, CR4, EFER, RFLAGS and
//   the segment registers: code that changes those calls `CPU.updateMode()`.
//
// While a block runs, `blockRIP` is the RIP of its first instruction and `rip` is stale.

import X86
import X86Decoder

/// A segment register with its hidden part.
package struct SegmentState {
  package var base: UInt64 = 0
  /// In bytes, granularity applied.
  package var limit: UInt32 = 0xFFFF
  package var accessRights: UInt32 = 0x93
  package var selector: UInt16 = 0

  package init() {}

  package init(base: UInt64, limit: UInt32, accessRights: UInt32, selector: UInt16) {
    self.base = base
    self.limit = limit
    self.accessRights = accessRights
    self.selector = selector
  }

  package var rights: SegmentAccessRights { SegmentAccessRights(rawValue: accessRights) }
}

/// GDTR or IDTR.
package struct DescriptorTableState {
  package var base: UInt64 = 0
  package var limit: UInt32 = 0xFFFF
}

/// x87, MMX, SSE, AVX and AVX-512 registers; they follow `CPUState` in memory, 64-byte aligned
/// (`CPU.vector`).
package struct VectorState {
  /// All 0 except the control words: FCW 0x37F, MXCSR 0x1F80 and its mask.
  package init() {
    fx[0] = 0x37F
    fx[3] = 0x0000_FFFF_0000_1F80
  }

  /// ZMM0 to ZMM31, 64 bytes each; XMM and YMM are their low parts.
  package var zmm = InlineArray<256, UInt64>(repeating: 0)
  /// The 512-byte image that FXSAVE64 writes: x87 state and MXCSR are authoritative here; its XMM
  /// part is not.
  package var fx = InlineArray<64, UInt64>(repeating: 0)
  /// K0 to K7.
  package var opmask = InlineArray<8, UInt64>(repeating: 0)
  /// Scratch for host execution (see Vector).
  package var scratch = InlineArray<64, UInt64>(repeating: 0)
  /// The x87 part of `fx` before an instruction that changes it and then stores.
  var keptX87 = InlineArray<20, UInt64>(repeating: 0)
}

package struct CPUState {
  /// RAX to R15 by encoding number.
  package var gpr = InlineArray<16, UInt64>(repeating: 0)

  // The fields that translated code uses most come first, within short displacements.

  /// The host address of the stack's last page, with the addend from linear to host addresses.
  /// Writable, and valid for the current TLB bank and context while `stackLimit` is nonzero.
  package var stackPage: UInt64 = 0
  package var stackAddend: UInt64 = 0
  /// Eight bytes fit in the stack's page at offsets below this; 0 if no page is known.
  package var stackLimit: UInt64 = 0
  /// Always 0: the target of absent base, index and segment base pointers.
  package var zero: UInt64 = 0
  /// The TLB bank of the current privilege and SMAP state.
  package var tlb: UnsafeMutablePointer<TLBEntry>
  /// Low 12 bits of every valid tag of the current bank and address space (see TLB).
  package var tlbContext: UInt64 = 0
  /// Requests to exit guest code at the next block (`CPURequest`). Atomic: other threads write it
  /// through `PhysicalCPU`.
  package var request: UInt64 = 0
  /// Instructions retired since start.
  package var retired: UInt64 = 0
  /// Linear address of the running translation's page.
  package var codePage: UInt64 = 0
  /// The arithmetic flags as LAHF and SETO give them: OF in bit 0; SF, ZF, AF, PF, CF in bits 15:8.
  package var hostFlags: UInt64 = 0
  /// Where translated code looks up successors: `NativeJumps`, or the empty table while a request
  /// is pending, so that one look-up serves both. Atomic.
  package var jumps: UInt64 = 0
  /// The tag of jump-cache entries besides the address (see BlockCache).
  package var blockContext: UInt64 = 0

  package var rip: UInt64 = 0
  /// RIP of the first instruction of the running block; base of RIP-relative addresses.
  package var blockRIP: UInt64 = 0
  /// See CPU+Flags.
  package var flagResult: UInt64 = 1
  package var flagAux: UInt64 = 0
  /// RFLAGS without the six arithmetic flags.
  package var rflags: UInt64 = 2
  /// An exception that a handler raised with `CPU.raise`, for the run loop to deliver.
  package var pendingException: UInt64 = 0
  /// The future CR2 of the page fault in `pendingException`.
  package var faultAddress: UInt64 = 0

  package var segments = InlineArray<8, SegmentState>(repeating: SegmentState())
  package var gdtr = DescriptorTableState()
  package var idtr = DescriptorTableState()

  package var cr0: UInt64 = 0x6000_0010
  package var cr2: UInt64 = 0
  package var cr3: UInt64 = 0
  package var cr4: UInt64 = 0
  package var cr8: UInt64 = 0
  package var efer: UInt64 = 0
  package var xcr0: UInt64 = 1
  package var dr = InlineArray<4, UInt64>(repeating: 0)
  package var dr6: UInt64 = 0xFFFF_0FF0
  package var dr7: UInt64 = 0x400
  package var pdptrs = InlineArray<4, UInt64>(repeating: 0)

  // MSRs that instructions use implicitly; the others are in the MSR model.
  package var star: UInt64 = 0
  package var lstar: UInt64 = 0
  package var cstar: UInt64 = 0
  package var fmask: UInt64 = 0
  package var kernelGSBase: UInt64 = 0
  package var sysenterCS: UInt64 = 0
  package var sysenterESP: UInt64 = 0
  package var sysenterEIP: UInt64 = 0
  package var pat: UInt64 = 0x0007_0406_0007_0406
  package var tscAux: UInt64 = 0
  package var debugctl: UInt64 = 0
  package var xss: UInt64 = 0
  package var pkru: UInt64 = 0

  /// CodeMode.rawValue of CS.
  package var codeMode: UInt8 = 0
  package var cpl: UInt8 = 0
  /// What decoded blocks depend on besides their bytes (see `CPU.updateMode`).
  package var modeKey: UInt16 = 0
  /// 1: SS addresses with 32 bits; 2: with 64 bits; 0: with 16.
  package var stackMode: UInt8 = 0
  /// Nonzero: instructions are executed one by one with checks between them (`SlowReason`).
  package var slow: UInt32 = 0
  /// Blocking by STI, MOV SS, SMI, NMI (`Interruptibility`).
  package var interruptibility: UInt32 = 0
  /// Active, HLT, shutdown, wait-for-SIPI (`ActivityState`).
  package var activity: UInt32 = 0
  /// IRET has just unblocked NMIs: an exit during its completion reports it.
  package var unblockedNMI = false
  /// Pending debug exceptions (`PendingDebug`).
  package var pendingDebug: UInt64 = 0

  /// The intercepts of the last VM entry, which alone writes them.
  package var intercepts = Intercepts()
  /// The last exit.
  package var exit = ExitRecord()
  /// Host TSC at which the guest must exit (`InterceptSet.deadline`); .max: never.
  package var deadline: UInt64 = .max
  /// The event that VM entry injects, until it is delivered. (StateLayoutTests fix the place of
  /// `native`, below: a field added before it must replace another.)
  package var injection: GuestEvent?

  /// MSRs and timers that only system instructions use.
  package var system = SystemState()

  /// Answers accesses that EPT does not map while the hypervisor emulates one instruction; see
  /// `PhysicalCPU.emulate`. An unmanaged `EmulationContext`.
  package var emulation: UnsafeMutableRawPointer?
  /// The unmanaged `PhysicalCPU` that owns this state.
  package var owner: UnsafeMutableRawPointer?

  // Tables of the owner, here to avoid reference counting.
  package var tlbBanks: UnsafeMutablePointer<TLBEntry>
  package var jumpCache: UnsafeMutablePointer<JumpCacheEntry>
  package var physicalCache: UnsafeMutablePointer<PhysicalPage>
  package var executePages: UnsafeMutablePointer<ExecutePage>

  package var secondTLB: UnsafeMutablePointer<SecondTLBEntry>
  /// The owner's block cache.
  var blocks: Unmanaged<BlockCache>
  /// The context of the address space, and that of the supervisor's bank: the same, or
  /// `globalContext` while all pages in that bank are global (`supervisorDataIsGlobal`).
  package var addressSpace: UInt64 = 0
  package var supervisorTLBContext: UInt64 = 0
  var globalContext: UInt64 = 1
  var supervisorDataIsGlobal = false
  /// No supervisor code was executed from a non-global page, so links to it are the same in every
  /// address space.
  var supervisorCodeIsGlobal = true
  /// Part of `blockContext` at CPL 3: changes when linear pages may mean other code.
  var userJumpEpoch: UInt64 = 0
  /// `CodePages`' bitmap, without the check that it is initialized.
  let codePages = CodePages.shared.address
  /// The low bits of the host page for which each TLB entry was last writable.
  var writablePages: UnsafeMutablePointer<UInt32>
  /// Changes when entries of global pages are dropped.
  package var tlbGeneration: UInt64 = 1
  /// Changes when cached guest-physical translations are dropped; its low bits are not 0.
  package var physicalGeneration: UInt64 = 1

  /// TLB entries made after page walks, since start.
  package var tlbFills: UInt64 = 0

  /// Translated code's state (see NativeCode). Its offset matters: see StateLayoutTests.
  package var native = NativeState()

  /// The micro-op whose handler is running, in case a host fault aborts it
  /// (PhysicalCPU+HostFault); else nil.
  package var running: MicroOpPointer?
  /// The old RSP and RBP, while a handler that changes them early runs.
  var keptStack: (rsp: UInt64, rbp: UInt64)?
  /// Part of `blockContext` below CPL 3: changes when linear pages may mean other code.
  var supervisorJumpEpoch: UInt64 = 0
  /// Whether `VectorState.keptX87` has the old x87 state.
  var keepsX87 = false
  /// Of the guest's vendor; loading a guest sets them.
  package var rules = VendorRules.intel
  /// SVM's virtual interrupt and NMI, and the guest's global interrupt flag, in the VMCB's format.
  package var virtualInterrupt = VirtualInterrupt(rawValue: 0)
  /// The PDPTEs must be loaded before the guest's first instruction: a VMCB has none.
  var mustLoadPDPTEs = false
  /// All ones, and 1, opaque to the compiler: see `CPU.guarded`.
  var ones: UInt64 = .max
  var one: UInt64 = 1
  /// `retired` when the guest was entered.
  package var retiredAtEntry: UInt64 = 0
  package var virtualAPIC = VirtualAPIC()
  package var pageTracking = PageTracking()

  init(
    tlbBanks: UnsafeMutablePointer<TLBEntry>, jumpCache: UnsafeMutablePointer<JumpCacheEntry>,
    physicalCache: UnsafeMutablePointer<PhysicalPage>,
    executePages: UnsafeMutablePointer<ExecutePage>,
    secondTLB: UnsafeMutablePointer<SecondTLBEntry>, writablePages: UnsafeMutablePointer<UInt32>,
    blocks: Unmanaged<BlockCache>
  ) {
    tlb = tlbBanks
    self.tlbBanks = tlbBanks
    self.jumpCache = jumpCache
    self.physicalCache = physicalCache
    self.executePages = executePages
    self.secondTLB = secondTLB
    self.writablePages = writablePages
    self.blocks = blocks
  }
}

extension UnsafeMutablePointer<CPUState> {
  /// Bits of `request` as the CPU's own thread reads them, without an atomic operation: it sees a
  /// missed bit at the next block. Tests/ThreadSanitizer/suppressions.txt names this function.
  @inline(__always) package var requests: UInt64 { pointee.request }
}

/// Bits of `CPUState.request`.
package enum CPURequest {
  /// Another thread wants the guest to exit: an external-interrupt exit.
  package static let kick: UInt64 = 1 << 0
  /// Other CPUs' code pages changed: process the shootdown queue.
  package static let shootdown: UInt64 = 1 << 1
  /// The deadline or the time slice has passed.
  package static let timer: UInt64 = 1 << 2
  /// Event delivery must check a change (virtual interrupt, window, trap).
  package static let events: UInt64 = 1 << 3
  /// An interrupt, an NMI, an INIT signal or a start-up IPI is pending (`CPUSignals`).
  package static let signal: UInt64 = 1 << 4
}

/// Bits of `CPUState.slow`.
package enum SlowReason {
  /// RFLAGS.TF.
  package static let trapFlag: UInt32 = 1 << 0
  /// An instruction breakpoint is enabled in DR7.
  package static let breakpoints: UInt32 = 1 << 1
  /// STI or MOV SS blocking for one instruction.
  package static let interruptShadow: UInt32 = 1 << 2
  /// Monitor trap flag.
  package static let monitorTrap: UInt32 = 1 << 3
  /// A data breakpoint matched in the running instruction.
  package static let dataBreakpoint: UInt32 = 1 << 4
  /// RFLAGS.RF is set: cleared after one instruction.
  package static let resumeFlag: UInt32 = 1 << 5
  /// Instructions are counted (`EventCounts`). Does not force single steps.
  package static let counting: UInt32 = 1 << 6
}
