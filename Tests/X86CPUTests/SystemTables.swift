// SPDX-License-Identifier: Apache-2.0
//
// Descriptor tables and TSS of the small guests of these tests, at addresses that they can rely
// on.
//
//     0x3000 GDT   0x4000 IDT   0x5000 TSS   0x9000 stack of CPL 0   0x8000 first RSP

import Support
import X86
import X86CPU

enum Tables {
  static let gdt = 0x3000
  static let idt = 0x4000
  static let tss = 0x5000
  static let innerStack: UInt64 = 0x9000
  static let stack: UInt64 = 0x8000

  static let code0: UInt16 = 0x08
  static let data0: UInt16 = 0x10
  static let code3: UInt16 = 0x1B
  static let data3: UInt16 = 0x23
  static let task: UInt16 = 0x28
  /// In IA-32e mode: a 32-bit code segment of DPL 3.
  static let compatible3: UInt16 = 0x3B
  /// Free for the test.
  static let spare: UInt16 = 0x40
}

/// A descriptor from its parts; `rights` are the two bytes of access rights.
func descriptor(base: UInt64 = 0, limit: UInt64 = 0xFFFFF, rights: UInt64) -> UInt64 {
  limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | (rights & 0xFF) << 40 | (limit >> 16 & 15) << 48
    | (rights >> 12 & 15) << 52 | (base >> 24 & 0xFF) << 56
}

extension TestMachine {
  func setDescriptor(_ selector: UInt16, _ raw: UInt64) {
    store(raw, at: Tables.gdt + Int(selector & ~7))
  }

  private func setTables(idtLimit: UInt32) {
    cpu.s.pointee.gdtr.base = UInt64(Tables.gdt)
    cpu.s.pointee.gdtr.limit = 0xFF
    cpu.s.pointee.idtr.base = UInt64(Tables.idt)
    cpu.s.pointee.idtr.limit = idtLimit
    cpu.segment(.ldtr).pointee.accessRights = 1 << 16
    cpu.segment(.tr).pointee = SegmentState(
      base: UInt64(Tables.tss), limit: 0x2067, accessRights: 0x8B, selector: Tables.task)
    setDescriptor(Tables.data0, descriptor(rights: 0xC093))
    setDescriptor(Tables.data3, descriptor(rights: 0xC0F3))
    setDescriptor(
      Tables.task, descriptor(base: UInt64(Tables.tss), limit: 0x2067, rights: 0x8B))
    cpu.gpr[4] = Tables.stack
  }

  /// 64-bit mode with tables; SS and CS of `cpl`.
  func setLongSystem(cpl: UInt8 = 0) {
    setLongMode(cpl: cpl)
    setTables(idtLimit: 0xFFF)
    setDescriptor(Tables.code0, descriptor(rights: 0xA09B))
    setDescriptor(Tables.code3, descriptor(rights: 0xA0FB))
    setDescriptor(Tables.compatible3, descriptor(rights: 0xC0FB))
    store(Tables.innerStack, at: Tables.tss + 4)
    setSelectors(cpl)
  }

  /// 32-bit protected mode with tables.
  func setProtectedSystem(cpl: UInt8 = 0) {
    setProtectedMode(cpl: cpl)
    setTables(idtLimit: 0x7FF)
    setDescriptor(Tables.code0, descriptor(rights: 0xC09B))
    setDescriptor(Tables.code3, descriptor(rights: 0xC0FB))
    store(UInt32(Tables.innerStack), at: Tables.tss + 4)
    store(Tables.data0, at: Tables.tss + 8)
    setSelectors(cpl)
  }

  private func setSelectors(_ cpl: UInt8) {
    cpu.segment(.cs).pointee.selector = cpl == 3 ? Tables.code3 : Tables.code0
    for register in [SegmentRegister.ss, .ds, .es, .fs, .gs] {
      cpu.segment(register).pointee.selector = cpl == 3 ? Tables.data3 : Tables.data0
    }
  }

  /// A gate of IA-32e mode. `type`: 14 interrupt, 15 trap.
  func setLongGate(
    _ vector: Int, to offset: UInt64, type: UInt64 = 14, dpl: UInt64 = 0, ist: UInt64 = 0,
    selector: UInt16 = Tables.code0, present: Bool = true
  ) {
    let rights: UInt64 = type | dpl << 5 | (present ? 0x80 : 0)
    let low =
      offset & 0xFFFF | UInt64(selector) << 16 | ist << 32 | rights << 40
      | (offset >> 16 & 0xFFFF) << 48
    store(low, at: Tables.idt + vector * 16)
    store(offset >> 32, at: Tables.idt + vector * 16 + 8)
  }

  /// A gate of protected mode.
  func setGate(
    _ vector: Int, to offset: UInt64, type: UInt64 = 14, dpl: UInt64 = 0,
    selector: UInt16 = Tables.code0, present: Bool = true
  ) {
    let rights: UInt64 = type | dpl << 5 | (present ? 0x80 : 0)
    store(
      offset & 0xFFFF | UInt64(selector) << 16 | rights << 40 | (offset >> 16 & 0xFFFF) << 48,
      at: Tables.idt + vector * 8)
  }

  /// Gates of all 32 exceptions, each to a HLT of its own: `handler(n)`.
  func setHandlers(long: Bool) {
    for vector in 0..<33 {
      load([0xF4], at: Int(handler(vector)))
      if long {
        setLongGate(vector, to: handler(vector))
      } else {
        setGate(vector, to: handler(vector))
      }
    }
  }

  func handler(_ vector: Int) -> UInt64 { UInt64(0x6000 + vector * 16) }

  /// The vector of the handler in whose HLT the guest stopped.
  var stoppedIn: Int? {
    let rip = Int(cpu.s.pointee.rip) - 0x6000
    return rip >= 0 && rip % 16 == 0 && rip / 16 < 33 ? rip / 16 : nil
  }

  /// The value `index` places above RSP, of `T`'s size.
  func stacked<T: FixedWidthInteger>(_ index: Int, as: T.Type = T.self) -> T {
    read(Int(cpu.gpr[4]) + index * MemoryLayout<T>.size)
  }
}
