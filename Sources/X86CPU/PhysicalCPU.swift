// SPDX-License-Identifier: Apache-2.0
//
// One physical CPU of the software processor: its state, TLB and block cache, and the instructions
// of VT-x or SVM, by vendor, as methods with which the hypervisor runs guests on it. Guest code
// executes only between VM entry and VM exit; "root mode", the host, is the program that calls the
// methods.
//
// One thread at a time uses a physical CPU (its owner in the hypervisor's pool); only `kick` and
// the shootdown queue are for other threads.
//
//     let cpu = try PhysicalCPU(number: 0)
//     try cpu.vmxon(region)
//     try cpu.vmclear(vmcs); try cpu.vmptrld(vmcs)
//     cpu.vmwrite(.guestRIP, 0x1000); ...
//     let reason = try cpu.vmlaunch()         // runs the guest until it exits

import Glibc
import Host
import Synchronization
import SystemPackage
import X86
import X86Decoder

/// Sendable: one thread at a time has the CPU (see above); other threads use only atomics.
package final class PhysicalCPU: @unchecked Sendable {
  /// 0 to 63, unique among the CPUs of this process.
  package let number: Int
  /// Its vendor: Intel's processors have VT-x, AMD's SVM.
  package let silicon: SiliconVendor
  package let cpu: CPU
  let tlbBanks: UnsafeMutablePointer<TLBEntry>
  package let blocks: BlockCache
  let secondTLB: UnsafeMutablePointer<SecondTLBEntry>
  static let physicalCacheMask: UInt64 = 2047
  let physicalCache: UnsafeMutablePointer<PhysicalPage>
  static let executePagesMask: UInt64 = 1023
  let executePages: UnsafeMutablePointer<ExecutePage>
  let writablePages: UnsafeMutablePointer<UInt32>
  /// The next free TLB context.
  var nextContext: UInt64 = 2
  var tlbCounts = TLBCounts()
  var pcidContexts: [TLBContext] = []
  /// The guest whose space is in use; nil if none is. See `enterTranslationSpace`.
  var currentSpace: TranslationSpaceKey?
  var parkedSpaces: [ParkedTranslationSpace] = []
  /// How often another thread has taken all translations (`takeTranslations`).
  let translationsTaken = Atomic<UInt64>(0)
  var lastTLBGeneration: UInt64 = 1
  /// Where pages larger than 4 KiB have entries.
  var largePages = NumberFilter()
  /// Linear pages from which code was entered at CPL 3, and below it, in the current epochs.
  var executedByUser = NumberFilter()
  var executedBySupervisor = NumberFilter()
  /// See `CPUState.physicalGeneration`.
  var physicalGeneration: UInt64 = 1
  /// Bounce buffer of 4 KiB for accesses without a single host pointer.
  let bounce: UnsafeMutableRawPointer
  /// Answers the accesses of `emulate`.
  var emulationContext: (any EmulationContext)?
  var emulationResult = EmulationResult.completed
  /// See `takeHostFault`.
  var hostFault: UInt?
  /// The jump table in which translated code finds its successors.
  let nativeJumps: NativeJumps
  let requestLine: RequestLine
  let shootdowns = ShootdownQueue()
  let signals = CPUSignals()
  /// Incremented when code must be compared before it is executed.
  var comparison: UInt64 = 0
  /// Requests taken from the queue.
  var taken: [ShootdownQueue.Request] = []
  /// The counts behind performance counters.
  let counts: UnsafeMutablePointer<EventCounts>
  /// This CPU's part of crash reports.
  let crashRecord: UnsafeMutablePointer<CrashRecord>
  /// VT-x: VMX operation and the current VMCS.
  let vmx: UnsafeMutablePointer<VMXUnit>
  /// SVM, and the VMCB whose state is in the CPU.
  let svm: UnsafeMutablePointer<SVMUnit>
  /// Blocks until `request` may have changed, at most until the host TSC of its argument: a halted
  /// guest without HLT exiting waits here. Without it such a guest exits as if kicked.
  package var waitForRequest: ((UInt64) -> Void)?
  /// Translates hot blocks, if there is one (see NativeCode.swift).
  package var translator: (any BlockTranslator)?

  /// - Parameters:
  ///   - number: 0 to 63, unique among this process's live CPUs.
  ///   - silicon: the processor's vendor.
  ///   - blockOps: capacity of the block cache in instructions.
  /// - Throws: if there is no memory for the state.
  package init(
    number: Int, silicon: SiliconVendor = .intel, blockOps: Int = 1 << 22
  ) throws(Errno) {
    guard CodePages.shared.isThere else { throw .noMemory }
    self.number = number
    self.silicon = silicon
    crashRecord = CrashRecords.table + (number & (CrashRecords.capacity - 1))
    let hugePages = blockOps >= Self.manyBlockOps
    let tables = try TableMemory(hugePages: hugePages)
    blocks = try BlockCache(opCapacity: blockOps, tables: tables, hugePages: hugePages)
    nativeJumps = try NativeJumps(tables)
    let size = Self.stateSize
    let raw = try NativeStack.allocate(stateSize: size)
    // The rest is zeroed memory, allocated when touched.
    raw.initializeMemory(as: UInt8.self, repeating: 0, count: CPU.heatOffset)
    // Each entry in one cache line.
    tlbBanks = try tables.take(TLB.entriesPerBank * TLB.bankCount, of: TLBEntry.self)
    tlbBanks.initialize(repeating: .invalid, count: TLB.entriesPerBank * TLB.bankCount)
    let secondCount = LargeTLB.start + LargeTLB.entriesPerBank * TLB.bankCount
    // Generation 0 is never valid, so zeroed entries are invalid.
    secondTLB = try tables.take(secondCount, of: SecondTLBEntry.self)
    // Aligned for vectors: see `dropWriteTranslations`.
    writablePages = try tables.take(TLB.entriesPerBank * TLB.bankCount, of: UInt32.self)
    writablePages.initialize(repeating: 0, count: TLB.entriesPerBank * TLB.bankCount)
    cpu = CPU(raw)
    physicalCache = try tables.take(Int(Self.physicalCacheMask) + 1, of: PhysicalPage.self)
    physicalCache.initialize(repeating: .invalid, count: Int(Self.physicalCacheMask) + 1)
    executePages = try tables.take(Int(Self.executePagesMask) + 1, of: ExecutePage.self)
    executePages.initialize(repeating: .invalid, count: Int(Self.executePagesMask) + 1)
    bounce = .allocate(byteCount: 4096, alignment: 64)
    counts = .allocate(capacity: 1)
    counts.initialize(to: EventCounts())
    vmx = .allocate(capacity: 1)
    vmx.initialize(to: VMXUnit())
    svm = .allocate(capacity: 1)
    svm.initialize(to: SVMUnit())
    cpu.s.initialize(
      to: CPUState(
        tlbBanks: tlbBanks, jumpCache: blocks.jumpCache, physicalCache: physicalCache,
        executePages: executePages, secondTLB: secondTLB, writablePages: writablePages,
        blocks: .passUnretained(blocks)))
    cpu.vector.initialize(to: VectorState())
    requestLine = RequestLine(cpu, table: nativeJumps)
    let jumps = nativeJumps
    blocks.nativeDropped = { jumps.empty() }
    blocks.nativeRetired = { [unowned self] in translator?.retire($0) }
    cpu.s.pointee.owner = Unmanaged.passUnretained(self).toOpaque()
    cpu.updateMode()
    CPURegistry.shared.add(self)
    announceToCrashReports()
  }

  /// From this capacity on a CPU is long-lived.
  private static let manyBlockOps = 1 << 20

  /// Size in bytes from `cpu.raw` on.
  private static var stateSize: Int {
    CPU.heatOffset + NativeState.heatCount * MemoryLayout<Int32>.stride
  }

  deinit {
    withdrawFromCrashReports()
    CPURegistry.shared.remove(shootdowns)
    largePages.deallocate()
    executedByUser.deallocate()
    executedBySupervisor.deallocate()
    bounce.deallocate()
    counts.deallocate()
    vmx.deallocate()
    svm.deallocate()
    NativeStack.deallocate(state: cpu.raw, stateSize: Self.stateSize)
  }

  /// Makes the guest exit with an external-interrupt exit at the next block. From any thread.
  package func kick() { request(CPURequest.kick) }

  /// Sets bits of `CPUState.request`. From any thread.
  package func request(_ bits: UInt64) {
    requestLine.raise(bits)
  }

  /// Clears bits of `CPUState.request`; returns those that were set.
  package func takeRequest(_ bits: UInt64) -> UInt64 {
    requestLine.take(bits)
  }
}
