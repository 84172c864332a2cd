// SPDX-License-Identifier: Apache-2.0
//
// A physical CPU with a little guest memory, for tests of the processor alone: no hypervisor, no
// VMCS. Guest-physical memory is one buffer behind real EPT tables.
//
//     let m = TestMachine()
//     m.setLongMode()
//     m.load([0x48, 0x01, 0xD8, 0xF4], at: 0x1000)   // add rax, rbx; hlt
//     m.run(from: 0x1000)
//     #expect(m.cpu.gpr[0] == 3)

import Glibc
import Synchronization
import X86
import X86CPU
import X86JIT

package final class TestMachine {
  package let processor: PhysicalCPU
  package var cpu: CPU { processor.cpu }
  /// Guest-physical memory from 0.
  package let memory: UnsafeMutableRawPointer
  package let memorySize: Int
  private let other: TestMachine?
  private let tables: UnsafeMutableRawPointer
  private static let nextNumber = Atomic<Int>(0)

  /// The translator, where the machine has one.
  package private(set) var translator: Translator?

  /// How machines are made where the caller does not say: `MARTLET_TRANSLATOR=N` gives all a
  /// translator with threshold N, so that any suite runs both ways.
  private static let defaultThreshold =
    getenv("MARTLET_TRANSLATOR").flatMap { UInt32(String(cString: $0)) } ?? 0

  /// - Parameters:
  ///   - silicon: whose processor it is.
  ///   - megabytes: guest memory, a multiple of 2.
  ///   - threshold: executions before a block is translated; 0 for the interpreter alone.
  ///   - codeBytes: the translator's code memory.
  ///   - guardsSpeculation: see `TranslatorTuning`.
  ///   - verifies: see `AccessVerification`; else as `MARTLET_VERIFY=1` says.
  ///   - counts: translated code counts instructions.
  ///   - store: translations of earlier machines.
  ///   - other: a machine whose memory is this one's, too.
  ///   - hotEntries: the translator's entries of a block before it becomes a region; else 2 with a
  ///     threshold of 1.
  package init(
    silicon: SiliconVendor = .intel, megabytes: Int = 8, threshold: UInt32? = nil,
    codeBytes: Int = 1 << 20, hotEntries: Int32? = nil, guardsSpeculation: Bool = true,
    verifies: Bool? = nil, counts: Bool = true, store: TranslationStore? = nil,
    sharing other: TestMachine? = nil
  ) {
    self.other = other
    processor = try! PhysicalCPU(
      number: Self.nextNumber.add(1, ordering: .relaxed).newValue % 64, silicon: silicon,
      blockOps: 1 << 14)
    memorySize = other?.memorySize ?? megabytes << 20
    memory = other?.memory ?? .allocate(byteCount: memorySize, alignment: 2 << 20)
    if other == nil { memory.initializeMemory(as: UInt8.self, repeating: 0, count: memorySize) }
    tables = .allocate(byteCount: 3 * 4096, alignment: 4096)
    tables.initializeMemory(as: UInt8.self, repeating: 0, count: 3 * 4096)
    buildEPT()
    cpu.vmxControls.primary =
      PrimaryControls.hltExiting | PrimaryControls.secondaryControls
      | PrimaryControls.unconditionalIOExiting
    cpu.vmxControls.secondary = SecondaryControls.enableEPT | SecondaryControls.unrestrictedGuest
    let threshold = threshold ?? Self.defaultThreshold
    if threshold > 0 {
      translator = try? Translator.install(
        on: processor, threshold: threshold, hotEntries: hotEntries ?? (threshold == 1 ? 2 : 2000),
        codeBytes: codeBytes, guardsSpeculation: guardsSpeculation,
        countsInstructions: counts, verifies: verifies ?? (getenv("MARTLET_VERIFY") != nil),
        store: store)
    }
  }

  deinit {
    if other == nil {
      PhysicalCPU.noteHostWrite(memory, count: memorySize)
      memory.deallocate()
    }
    tables.deallocate()
  }

  /// One table per level; 2 MiB leaves.
  private func buildEPT() {
    let base = UInt64(UInt(bitPattern: tables))
    let entries = tables.assumingMemoryBound(to: UInt64.self)
    entries[0] = base + 4096 | 7
    entries[512] = base + 8192 | 7
    for n in 0..<(memorySize >> 21) {
      let host = UInt64(UInt(bitPattern: memory)) + UInt64(n) << 21
      entries[1024 + n] = host | 7 | EPTEntry.memoryTypeWriteBack | EPTEntry.pageSize
    }
    cpu.vmxControls.eptPointer = base | 6 | 3 << 3
    cpu.flushTLB()
  }

  /// The root of the tables. They serve nested paging of either vendor: what differs between the
  /// formats is in bits that neither minds.
  package var nestedRoot: UInt64 { UInt64(UInt(bitPattern: tables)) }

  /// Rights by EPT of 2 MiB of guest-physical memory (`EPTEntry.read`, `write`, `execute`).
  package func setRights(_ rights: UInt64, ofLargePage number: Int) {
    let entries = tables.assumingMemoryBound(to: UInt64.self)
    entries[1024 + number] = entries[1024 + number] & ~7 | rights
    cpu.flushTLB()
  }

  package func load(_ bytes: [UInt8], at address: Int) {
    memory.advanced(by: address).copyMemory(from: bytes, byteCount: bytes.count)
    PhysicalCPU.noteHostWrite(memory + address, count: bytes.count)
  }

  package func store<T: FixedWidthInteger>(_ value: T, at address: Int) {
    memory.storeBytes(of: value, toByteOffset: address, as: T.self)
    PhysicalCPU.noteHostWrite(memory + address, count: MemoryLayout<T>.size)
  }

  package func read<T: FixedWidthInteger>(_ address: Int, as: T.Type = T.self) -> T {
    memory.loadUnaligned(fromByteOffset: address, as: T.self)
  }

  /// Real mode as after reset, but with CS, DS, ES, SS based at 0.
  package func setRealMode() {
    let s = cpu.s
    s.pointee.cr0 = CR0.et.rawValue
    s.pointee.cr4 = 0
    s.pointee.efer = 0
    for register in SegmentRegister.allCases {
      let rights: UInt32 =
        switch register {
        case .cs: 0x9B
        case .ldtr: 0x82
        case .tr: 0x8B
        default: 0x93
        }
      cpu.segment(register).pointee = SegmentState(
        base: 0, limit: 0xFFFF, accessRights: rights, selector: 0)
    }
    cpu.updateMode()
    cpu.flushTLB()
  }

  /// Flat 32-bit protected mode without paging, CPL 0 or 3.
  package func setProtectedMode(cpl: UInt8 = 0) {
    setRealMode()
    cpu.s.pointee.cr0 |= CR0.pe.rawValue
    let dpl = UInt32(cpl) << 5
    for register in [SegmentRegister.es, .ss, .ds, .fs, .gs] {
      cpu.segment(register).pointee = SegmentState(
        base: 0, limit: .max, accessRights: 0xC093 | dpl, selector: 0x10 | UInt16(cpl))
    }
    cpu.segment(.cs).pointee = SegmentState(
      base: 0, limit: .max, accessRights: 0xC09B | dpl, selector: 0x8 | UInt16(cpl))
    cpu.updateMode()
  }

  /// 64-bit mode with identity page tables at 0x10000 (2 MiB pages, user-accessible), CPL 0 or 3.
  package func setLongMode(cpl: UInt8 = 0) {
    setProtectedMode(cpl: cpl)
    let s = cpu.s
    store(UInt64(0x11000 | 7), at: 0x10000)
    store(UInt64(0x12000 | 7), at: 0x11000)
    for n in 0..<(memorySize >> 21) { store(UInt64(n) << 21 | 0x87, at: 0x12000 + n * 8) }
    s.pointee.cr3 = 0x10000
    s.pointee.cr4 = CR4.pae.rawValue | CR4.osfxsr.rawValue | CR4.osxmmexcpt.rawValue
    s.pointee.efer = EFER.lme.rawValue | EFER.lma.rawValue | EFER.sce.rawValue | EFER.nxe.rawValue
    s.pointee.cr0 |= CR0.pg.rawValue | CR0.wp.rawValue | CR0.ne.rawValue
    cpu.segment(.cs).pointee.accessRights = 0xA09B | UInt32(cpl) << 5
    cpu.updateMode()
    cpu.flushTLB()
  }

  /// Where the tables of modes with paging are.
  package static let tables = 0x10000..<0x14000

  /// 64-bit mode where the first 2 MiB are 4 KiB pages, one of them absent. Nor does the guest
  /// reach the tables: what it runs cannot change what addresses mean.
  package func setLongModeWithSmallPages(absent: Int) {
    setLongMode()
    storeSmallPages(absent: absent, UInt64.self)
    store(UInt64(0x13007), at: 0x12000)
    cpu.flushTLB()
  }

  /// The same with 32-bit paging, in flat protected mode.
  package func setProtectedModeWithSmallPages(absent: Int) {
    setProtectedMode()
    storeSmallPages(absent: absent, UInt32.self)
    store(UInt32(0x13007), at: 0x10000)
    cpu.s.pointee.cr3 = 0x10000
    cpu.s.pointee.cr0 |= CR0.pg.rawValue
    cpu.s.pointee.cr4 |= CR4.osfxsr.rawValue | CR4.osxmmexcpt.rawValue
    cpu.updateMode()
    cpu.flushTLB()
  }

  private func storeSmallPages<T: FixedWidthInteger>(absent: Int, _ entry: T.Type) {
    for page in 0..<512 where page != absent && !Self.tables.contains(page << 12) {
      store(T(page) << 12 | 0x67, at: 0x13000 + page * MemoryLayout<T>.size)
    }
  }

  /// Runs until a VM exit and returns its basic reason.
  @discardableResult
  package func run(from rip: UInt64? = nil) -> ExitReason {
    if let rip { cpu.s.pointee.rip = rip }
    cpu.runGuest()
    return ExitReason(rawValue: UInt16(truncatingIfNeeded: cpu.exitFields.reason))
  }
}
