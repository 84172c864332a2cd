// SPDX-License-Identifier: Apache-2.0
//
// Where a hostile vCPU begins: registers in each of the processor's modes, some of them out of
// any order.

import CHost
import Support
import TestRandom
import X86
import X86Decoder

/// The registers that a hostile vCPU starts with, in one of the processor's modes.
struct HostileState {
  var random: SplitMix
  let mode: CodeMode
  private typealias Place = HostileMemory.Place
  private typealias Selector = HostileMemory.Selector

  init(random: SplitMix, mode: CodeMode) {
    self.random = random
    self.mode = mode
  }

  mutating func special(_ old: kvm_sregs) -> kvm_sregs {
    var s = old
    let isUser = random.oneIn(3)
    let isPaged = mode == .bits64 || random.oneIn(2)
    let isReal = mode == .bits16 && random.oneIn(2)
    (s.gdt.base, s.gdt.limit) = (UInt64(Place.gdt), 0x1FF)
    setControls(&s, isPaged: isPaged && !isReal, isReal: isReal)
    let data = segment(isUser ? Selector.userData : Selector.data, type: 3, isUser)
    (s.ds, s.es, s.fs, s.gs, s.ss) = (data, data, data, data, data)
    s.cs = segment(codeSelector(isUser), type: 11, isUser)
    (s.cs.l, s.cs.db) = (mode == .bits64 ? 1 : 0, mode == .bits32 ? 1 : 0)
    if mode == .bits16 { s.cs.base = UInt64(Place.code) }
    if isReal {
      for path in [\kvm_sregs.ds, \.es, \.ss, \.fs, \.gs, \.cs] {
        s[keyPath: path].limit = 0xFFFF
        (s[keyPath: path].g, s[keyPath: path].db, s[keyPath: path].dpl) = (0, 0, 0)
      }
      s.cs.selector = UInt16(Place.code >> 4)
    }
    // Bases that make addresses wrap, and limits that end inside of an access.
    let edges = HostileCode.edges
    if random.oneIn(3) { s.fs.base = edges[random.below(edges.count)] }
    if random.oneIn(3) { s.gs.base = edges[random.below(edges.count)] }
    if random.oneIn(6) && mode != .bits64 {
      s.ds.base = edges[random.below(edges.count)] & 0xFFFF_FFFF
      s.es.base = 0xFFFF_FFF0
    }
    setSystemSegments(&s)
    return s
  }

  private mutating func setControls(_ s: inout kvm_sregs, isPaged: Bool, isReal: Bool) {
    var cr0 = CR0([.et, .ne])
    var cr4 = CR4([.osfxsr, .osxmmexcpt])
    if !isReal { cr0.insert(.pe) }
    if isPaged { cr0.insert(.pg) }
    if random.oneIn(2) { cr0.insert(.wp) }
    if random.oneIn(3) { cr0.insert(.am) }
    if random.oneIn(12) { cr0.insert(.ts) }
    for bit in [CR4.pse, .pge, .pce, .de, .tsd, .umip, .fsgsbase, .smep, .smap, .pke, .vme, .pvi]
    where random.oneIn(4) { cr4.insert(bit) }
    if !random.oneIn(4) { cr4.insert(.osxsave) }
    s.efer = random.oneIn(2) ? EFER([.sce, .nxe]).rawValue : EFER.sce.rawValue
    s.cr3 = UInt64(Place.oldTables)
    (s.idt.base, s.idt.limit) = (UInt64(Place.interrupts32), 0x7FF)
    if isReal { (s.idt.base, s.idt.limit) = (0, 0x3FF) }
    if mode == .bits64 || isPaged && random.oneIn(3) {
      // 64-bit mode, and compatibility mode.
      s.efer |= EFER([.lme, .lma]).rawValue
      s.cr3 = UInt64(Place.tables)
      cr4.insert(.pae)
      (s.idt.base, s.idt.limit) = (UInt64(Place.interrupts64), 0xFFF)
    } else if isPaged && random.oneIn(2) {
      cr4.insert(.pae)
      s.cr3 = UInt64(Place.paeTables)
    }
    if random.oneIn(30) { s.idt.limit = UInt16(random.below(0x1000)) }
    (s.cr0, s.cr4, s.cr8) = (cr0.rawValue, cr4.rawValue, UInt64(random.below(16)))
  }

  private func codeSelector(_ isUser: Bool) -> UInt16 {
    switch mode {
    case .bits64: isUser ? Selector.user64 : Selector.code64
    case .bits32: isUser ? Selector.user32 : Selector.code32
    case .bits16: isUser ? Selector.user32 : Selector.code16
    }
  }

  private mutating func segment(_ selector: UInt16, type: UInt8, _ isUser: Bool) -> kvm_segment {
    var segment = kvm_segment()
    (segment.selector, segment.type, segment.present, segment.s) = (selector, type, 1, 1)
    segment.dpl = isUser ? 3 : 0
    let isSmall = random.oneIn(12) && mode != .bits64
    segment.limit = isSmall ? UInt32(Place.data + random.below(0x8000)) : .max
    (segment.g, segment.db) = (isSmall ? 0 : 1, 1)
    return segment
  }

  private func setSystemSegments(_ s: inout kvm_sregs) {
    s.tr = kvm_segment()
    (s.tr.base, s.tr.limit, s.tr.selector) = (UInt64(Place.tss), 0x67, Selector.tss)
    (s.tr.type, s.tr.present) = (11, 1)
    s.ldt = kvm_segment()
    (s.ldt.base, s.ldt.limit, s.ldt.type, s.ldt.present) = (UInt64(Place.gdt), 0x1FF, 2, 1)
    s.ldt.selector = 0x60
  }

  mutating func registers(_ memory: inout HostileMemory) -> kvm_regs {
    var r = kvm_regs()
    for path in [
      \kvm_regs.rax, \.rbx, \.rcx, \.rdx, \.rsi, \.rdi, \.rbp, \.r8, \.r9, \.r10, \.r11, \.r12,
      \.r13, \.r14, \.r15,
    ] { r[keyPath: path] = memory.address() }
    r.rsp = random.oneIn(6) ? memory.address() : UInt64(Place.stack + random.below(0x8000))
    let start = memory.starts[random.below(memory.starts.count)]
    r.rip = UInt64(mode == .bits16 ? start - Place.code : start)
    let flags = random.next() & 0xCD5
    let rare: UInt64 = random.oneIn(6) ? random.next() & 0x25_7300 : 0
    r.rflags = flags | rare | 2
    return r
  }
}
