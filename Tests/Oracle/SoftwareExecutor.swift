// SPDX-License-Identifier: Apache-2.0
//
// Runs a slot or a block on the software processor, interpreted or translated: 64-bit mode, CPL 3,
// every exception intercepted. Landing pads are UD2.
//
// Code pages are execute-only by EPT: a block that reads its own code leaves with an EPT violation,
// because the host has other landing pads there.

import Support
import Synchronization
import X86
import X86CPU
import X86JIT

package final class SoftwareExecutor: Executor {
  package let name: String
  package let machine: TestMachine
  package let sandbox: UnsafeMutableRawPointer
  private let cpu: CPU
  /// Where the landing pad of the block is; nil for a slot, where any UD2 is one but the first.
  private var blockEnd: UInt64?

  private enum Physical {
    static let root = 0x10000
    static let pageTables = 0x20000
    static let sandbox = 0x180000
    /// The second 2 MiB.
    static let code = 0x200000
  }

  /// - Parameters:
  ///   - translated: whether a translator takes every block at its first execution.
  ///   - codeBytes: the translator's code memory.
  ///   - hotEntries: entries of a block after which it is translated with those that follow it.
  ///   - verifies: translated accesses without a look at the TLB are compared with one.
  ///   - counts: translated code counts instructions.
  package init(
    translated: Bool, codeBytes: Int = 4 << 20, hotEntries: Int32 = 2, verifies: Bool = false,
    counts: Bool = true
  ) {
    name = translated ? "translator" : "interpreter"
    machine = TestMachine(
      megabytes: 4, threshold: translated ? 1 : 0, codeBytes: codeBytes,
      hotEntries: hotEntries, verifies: verifies, counts: counts)
    machine.setLongMode(cpl: 3)
    machine.setRights(EPTEntry.execute, ofLargePage: 1)
    sandbox = machine.memory + Physical.sandbox
    cpu = machine.cpu
    let s = cpu.s
    s.pointee.cr4 |= CR4.osxsave.rawValue | CR4.fsgsbase.rawValue
    s.pointee.xcr0 = HostFeatures.current.xcr0 & 0xE7 | 1
    cpu.vmxControls.exceptionBitmap = .max
    // Linux's selectors of a 64-bit process, and a TSS without an I/O bitmap.
    for register in [SegmentRegister.ds, .es, .fs, .gs] {
      cpu.segment(register).pointee.selector = 0
    }
    cpu.segment(.cs).pointee.selector = 0x33
    cpu.segment(.ss).pointee.selector = 0x2B
    cpu.segment(.tr).pointee.limit = 0x20
    mapPages()
    cpu.updateMode()
    cpu.flushTLB()
  }

  /// 4 KiB pages for slots and sandbox, in the tables that the machine has made.
  private func mapPages() {
    machine.store(UInt64(0x12007), at: 0x11000)
    for n in 0..<512 { machine.store(UInt64(0), at: 0x12000 + n * 8) }
    map(Layout.slots, size: Layout.slotBytes, to: Physical.code, bits: 5)
    map(Layout.sandbox, size: Layout.writableSize, to: Physical.sandbox, bits: 7 | 1 << 63)
    map(
      Layout.sandbox + UInt64(Layout.writableSize), size: Layout.sandboxSize - Layout.writableSize,
      to: Physical.sandbox + Layout.writableSize, bits: 5 | 1 << 63)
  }

  private var tables: Int = 0

  private func map(_ linear: UInt64, size: Int, to physical: Int, bits: UInt64) {
    let directoryEntry = 0x12000 + Int(linear >> 21 & 511) * 8
    if machine.read(directoryEntry, as: UInt64.self) == 0 {
      machine.store(UInt64(Physical.pageTables + tables * 4096) | 7, at: directoryEntry)
      tables += 1
    }
    let table = Int(machine.read(directoryEntry, as: UInt64.self) & ~0xFFF)
    for page in stride(from: 0, to: size, by: 4096) {
      let entry = table + Int((linear + UInt64(page)) >> 12 & 511) * 8
      machine.store(UInt64(physical + page) | bits | 0x60, at: entry)
    }
  }

  /// Adds the translator's figures, if there is one.
  func addStatistics(to report: inout OracleReport) {
    guard let statistics = machine.translator?.statistics else { return }
    report.translated += Int(statistics.blocks)
    report.regions += Int(statistics.regions)
    report.refused += Int(statistics.refused)
    guard let found = machine.translator?.verification, found.count > 0 else { return }
    report.verified += Int(found.count)
    report.verifiedDiffering += Int(found.differences)
    report.differing += Int(found.differences)
    if found.differences == 0 { return }
    let text = (0..<5).map { String(found.first[$0], radix: 16) }.joined(separator: " ")
    report.mismatches.append("access without a look (linear, host, walk, size, page): \(text)")
  }

  package func startRound() {
    PhysicalCPU.noteHostWrite(machine.memory + Physical.code, count: Layout.slotBytes)
  }

  package func load(_ bytes: UnsafeRawBufferPointer, slot: Int) {
    let base = machine.memory + Physical.code + slot * Layout.slotSize
    for pad in Layout.padOffsets { emitPad(base + pad) }
    let start = base + Layout.instructionOffset
    start.copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
    emitPad(start + bytes.count)
    blockEnd = nil
  }

  package func load(_ bytes: UnsafeRawBufferPointer, block: UInt64) {
    let start = machine.memory + Physical.code + Int(block - Layout.slots)
    start.copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
    emitPad(start + bytes.count)
    blockEnd = block + UInt64(bytes.count)
  }

  /// How other threads reach the processor.
  struct Line: Sendable {
    fileprivate let processor: PhysicalCPU
    fileprivate let isStopped: Flag

    /// The guest leaves, however long it would go on.
    func stop() {
      isStopped.value.store(true, ordering: .sequentiallyConsistent)
      processor.kick()
    }

    /// The guest leaves and is entered again, or looks at its events.
    func disturb(leaving: Bool) {
      if leaving { processor.kick() } else { processor.request(CPURequest.events) }
    }
  }

  fileprivate final class Flag: Sendable {
    let value = Atomic(false)
  }

  private let isStopped = Flag()
  var line: Line { Line(processor: machine.processor, isStopped: isStopped) }
  /// How often the guest left and was entered again.
  private(set) var disturbances = 0

  /// Translations of addresses go, so that every access is looked up anew.
  package func forgetAddresses() { cpu.flushTLB() }

  private func emitPad(_ place: UnsafeMutableRawPointer) {
    place.storeBytes(of: 0x0B0F, as: UInt16.self)
  }

  package func run(
    _ input: UnsafePointer<Registers>, vector: UnsafeMutablePointer<VectorState>?,
    into outcome: UnsafeMutablePointer<Outcome>
  ) {
    let s = cpu.s
    s.pointee.gpr = input.pointee.gpr
    cpu.flags = input.pointee.flags
    cpu.updateSlow()
    s.pointee.rip = input.pointee.rip
    cpu.segment(.gs).pointee.base = input.pointee.gsBase
    cpu.segment(.fs).pointee.base = input.pointee.fsBase
    if let vector { cpu.vector.pointee = vector.pointee }
    s.pointee.retired = 0
    enter()
    if let vector { vector.pointee = cpu.vector.pointee }
    outcome.pointee.registers.gpr = s.pointee.gpr
    outcome.pointee.registers.flags = cpu.flags
    outcome.pointee.registers.rip = s.pointee.rip
    outcome.pointee.registers.gsBase = cpu.segment(.gs).pointee.base
    outcome.pointee.registers.fsBase = cpu.segment(.fs).pointee.base
    outcome.pointee.fault = fault(since: input.pointee.rip)
    outcome.pointee.retired = s.pointee.retired
  }

  /// Until the guest leaves by itself or is stopped.
  private func enter() {
    isStopped.value.store(false, ordering: .relaxed)
    while true {
      cpu.s.pointee.exit.cause = .none
      cpu.runGuest()
      _ = machine.processor.takeRequest(CPURequest.kick)
      if cpu.s.pointee.exit.cause != .externalInterrupt
        || isStopped.value.load(ordering: .sequentiallyConsistent)
      {
        return
      }
      disturbances += 1
    }
  }

  private func fault(since start: UInt64) -> Fault {
    let exit = cpu.exitFields
    var fault = Fault()
    guard exit.reason == ExitReason.exceptionOrNMI.rawValue else {
      // Another VM exit: no number of a vector.
      fault.vector = Fault.exit | UInt64(exit.reason)
      return fault
    }
    let info = InterruptionInfo(rawValue: exit.interruptionInfo)
    if info.vector == ExceptionVector.invalidOpcode.rawValue {
      let rip = cpu.s.pointee.rip
      if blockEnd.map({ $0 == rip }) ?? (rip != start) { return fault }
    }
    fault.vector = UInt64(info.vector)
    fault.errorCode = UInt64(exit.interruptionErrorCode)
    if info.vector == ExceptionVector.pageFault.rawValue { fault.address = exit.qualification }
    return fault
  }
}
