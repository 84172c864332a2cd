// SPDX-License-Identifier: Apache-2.0
//
// One physical CPU of the software processor: its state, TLB and block cache, and the verbs of VT-x
// or of SVM, by its vendor, with which the hypervisor runs guests on it. Guest code executes
// between VM entry and VM exit only; "root mode", the host, is the program that calls the verbs.
//
// A physical CPU is used by one thread at a time (whoever holds it from the hypervisor's pool);
// only `kick` and the shootdown queue are for other threads.
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

/// Sendable: one thread at a time has the CPU (the head of this file); others reach atomics alone.
package final class PhysicalCPU: @unchecked Sendable {
  /// 0 to 63, unique among the CPUs of this process.
  package let number: Int
  /// Whose processor it is: Intel's has VT-x, AMD's SVM.
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
  /// The next TLB context that is free.
  var nextContext: UInt64 = 2
  var tlbCounts = TLBCounts()
  var pcidContexts: [TLBContext] = []
  /// The guest whose translations the TLB enters; nil: nobody's. See `enterTranslationSpace`.
  var currentSpace: TranslationSpaceKey?
  var parkedSpaces: [ParkedTranslationSpace] = []
  /// How often another thread has taken all translations (`takeTranslations`).
  let translationsTaken = Atomic<UInt64>(0)
  var lastTLBGeneration: UInt64 = 1
  /// Where pages larger than 4 KiB have entries.
  var largePages = NumberFilter()
  /// Linear pages from which code was entered at CPL 3, and below it, since the epoch of those ways
  /// last changed.
  var executedByUser = NumberFilter()
  var executedBySupervisor = NumberFilter()
  /// See `CPUState.physicalGeneration`.
  var physicalGeneration: UInt64 = 1
  /// For accesses that have no single host pointer: 4 KiB.
  let bounce: UnsafeMutableRawPointer
  /// Whose accesses `emulate` serves.
  var emulationContext: (any EmulationContext)?
  var emulationResult = EmulationResult.completed
  /// See `takeHostFault`.
  var hostFault: UInt?
  /// Where translated code finds its successors.
  let nativeJumps: NativeJumps
  let requestLine: RequestLine
  let shootdowns = ShootdownQueue()
  let signals = CPUSignals()
  /// Goes up when code has to be compared before it is executed.
  var comparison: UInt64 = 0
  /// What is taken from the queue to be done.
  var taken: [ShootdownQueue.Request] = []
  /// What performance counters are made of.
  let counts: UnsafeMutablePointer<EventCounts>
  /// What crash reports tell of this CPU.
  let crashRecord: UnsafeMutablePointer<CrashRecord>
  /// VT-x: VMX operation and the current VMCS.
  let vmx: UnsafeMutablePointer<VMXUnit>
  /// SVM and the VMCB whose state is here.
  let svm: UnsafeMutablePointer<SVMUnit>
  /// Blocks until `request` may have changed, at most until the host TSC of its argument: where a
  /// guest without HLT exiting waits. Without it such a guest exits as if kicked.
  package var waitForRequest: ((UInt64) -> Void)?
  /// Translates hot blocks, if there is one (see NativeCode.swift).
  package var translator: (any BlockTranslator)?

  /// - Parameters:
  ///   - number: 0 to 63, not used by another CPU of this process that is alive.
  ///   - silicon: whose processor it is.
  ///   - blockOps: capacity of the block cache in instructions.
  /// - Throws: where there is no memory for the state.
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
    // What follows is 0 as it comes, and not there until it is touched.
    raw.initializeMemory(as: UInt8.self, repeating: 0, count: CPU.heatOffset)
    // Each entry in one cache line.
    tlbBanks = try tables.take(TLB.entriesPerBank * TLB.bankCount, of: TLBEntry.self)
    tlbBanks.initialize(repeating: .invalid, count: TLB.entriesPerBank * TLB.bankCount)
    let secondCount = LargeTLB.start + LargeTLB.entriesPerBank * TLB.bankCount
    // None of generation 0 is valid, so the table begins as zeros.
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

  /// From so many on a CPU is one that is there to stay.
  private static let manyBlockOps = 1 << 20

  /// Bytes from `cpu.raw` on.
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

  /// From any thread: the guest leaves with an external-interrupt exit at the next block.
  package func kick() { request(CPURequest.kick) }

  /// From any thread: sets bits of `CPUState.request`.
  package func request(_ bits: UInt64) {
    requestLine.raise(bits)
  }

  /// Clears bits of `CPUState.request`; returns those that were set.
  package func takeRequest(_ bits: UInt64) -> UInt64 {
    requestLine.take(bits)
  }
}
