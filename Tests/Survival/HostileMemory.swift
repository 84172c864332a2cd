// SPDX-License-Identifier: Apache-2.0
//
// The memory of a hostile guest: page tables of every kind, descriptor tables with every kind of
// descriptor, interrupt tables whose handlers are blocks of random code, and that code. The guest
// reaches all of it, so that it changes its own tables and its own code.

import Host
import Support
import TestRandom
import X86
import X86CPU
import X86Decoder

struct HostileMemory {
  static let size = 1 << 20
  enum Place {
    static let gdt = 0x1000
    static let tss = 0x1800
    static let interrupts64 = 0x2000
    static let interrupts32 = 0x3000
    /// PML4, PDPT, page directory, page table; those of PAE paging; those of 32-bit paging.
    static let tables = 0x10000
    static let paeTables = 0x14000
    static let oldTables = 0x15000
    /// The page directory of the fourth GiB, where the chips are.
    static let chips = 0x17000
    static let code = 0x20000
    static let codeSize = 0x8000
    static let data = 0x28000
    static let stack = 0x30000
  }
  /// Selectors of the table's first descriptors.
  enum Selector {
    static let code64: UInt16 = 0x08
    static let code32: UInt16 = 0x10
    static let code16: UInt16 = 0x18
    static let data: UInt16 = 0x20
    static let user64: UInt16 = 0x2B
    static let user32: UInt16 = 0x33
    static let userData: UInt16 = 0x3B
    static let tss: UInt16 = 0x40
  }

  let base: UnsafeMutableRawPointer
  var random: SplitMix
  /// Where blocks begin.
  var starts: [Int] = []

  init(base: UnsafeMutableRawPointer, seed: UInt64) {
    self.base = base
    random = SplitMix(seed: seed)
  }

  /// Fills everything anew; code is mostly of `mode`.
  mutating func fill(_ mode: CodeMode, blocks: Int) {
    base.initializeMemory(as: UInt8.self, repeating: 0, count: 0x40000)
    fillTables()
    fillSegments()
    fillCode(mode, blocks: blocks)
    fillInterrupts()
    for _ in 0..<64 {
      store(number(), Place.data + random.below(0x8000))
    }
    PhysicalCPU.noteHostWrite(base, count: Self.size)
  }

  private func store<T: FixedWidthInteger>(_ value: T, _ place: Int) {
    base.storeBytes(of: value, toByteOffset: min(place, Self.size - 8), as: T.self)
  }

  mutating func number() -> UInt64 {
    HostileCode.edges[random.below(HostileCode.edges.count)]
  }

  /// An address: of data and its page ends, of tables, of code, of nothing.
  mutating func address() -> UInt64 {
    switch random.below(16) {
    case 0..<6: return UInt64(Place.data + random.below(0x8000))
    case 6..<9: return UInt64(Place.data + random.below(8) << 12) &- UInt64(random.below(70))
    case 9: return UInt64(Place.code + random.below(Place.codeSize))
    case 10: return UInt64(random.below(Place.code))
    case 11:
      return [0xFEE0_0000, 0xFEC0_0000][random.below(2)] | UInt64(random.below(0x400)) & ~0xF
    case 12: return 0xFFFF_8000_0000_0000 | UInt64(Place.data + random.below(0x8000))
    case 13: return 0 &- UInt64(random.below(0x2000))
    case 14: return number() &- UInt64(random.below(70))
    default: return random.next()
    }
  }
}

// MARK: Page tables

extension HostileMemory {
  /// Every table leads to the next, so that all linear addresses lead to the memory, but for those
  /// of the chips; now and then an entry is anything.
  private mutating func fillTables() {
    let t = Place.tables
    for n in 0..<512 {
      let isEdge = n == 0 || n == 511 || n == 255 || n == 256
      store(entry(t + 0x1000, isEdge ? 200 : 3), t + n * 8)
      store(entry(n & 511 == 3 ? Place.chips : t + 0x2000, 100), t + 0x1000 + n * 8)
      let large = UInt64(n & 3) << 21 | 0xE7
      store(random.oneIn(20) && n > 0 ? large : entry(t + 0x3000, 100), t + 0x2000 + n * 8)
      store(entry((n & 0xFF) << 12, 60), t + 0x3000 + n * 8)
      store(0xC000_0000 | UInt64(n) << 21 | 0xE7, Place.chips + n * 8)
    }
    for n in 0..<4 {
      store(UInt64(n == 3 ? Place.chips : t + 0x2000) | 1, Place.paeTables + n * 8)
    }
    for n in 0..<1024 {
      let table = UInt32(truncatingIfNeeded: entry(Place.oldTables + 0x1000, 100))
      let large = UInt32(n) << 22 | 0xE7
      store(n >= 0x3F8 ? large : random.oneIn(20) && n > 0 ? 0xE7 : table, Place.oldTables + n * 4)
      let page = UInt32(truncatingIfNeeded: entry((n & 0xFF) << 12, 60))
      store(page, Place.oldTables + 0x1000 + n * 4)
    }
  }

  private mutating func entry(_ address: Int, _ rarity: Int) -> UInt64 {
    let normal = UInt64(address) | 7 | UInt64(random.below(4)) << 5
    if !random.oneIn(rarity) { return normal }
    switch random.below(6) {
    case 0: return 0
    case 1: return random.next()
    case 2: return normal | 1 << 63
    case 3: return normal & ~UInt64(2 << random.below(2))
    case 4: return normal | 1 << UInt64(random.below(64))
    default: return number() | 7
    }
  }
}

// MARK: Segments and interrupts

extension HostileMemory {
  private mutating func fillSegments() {
    let fixed: [UInt64] = [
      0, 0x00AF_9B00_0000_FFFF, 0x00CF_9B00_0000_FFFF, 0x000F_9B00_0000_FFFF,
      0x00CF_9300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_FB00_0000_FFFF,
      0x00CF_F300_0000_FFFF, UInt64(Place.tss) << 16 | 0x8900_0000_0067, 0,
    ]
    for (n, value) in fixed.enumerated() { store(value, Place.gdt + n * 8) }
    for n in fixed.count..<64 {
      switch random.below(4) {
      case 0: store(random.next(), Place.gdt + n * 8)
      case 1: store(gate(type: UInt64(random.below(16))), Place.gdt + n * 8)
      default:
        let type = UInt64(random.below(256)) << 40
        store(0x00CF_0000_0000_FFFF | type | UInt64(random.below(16)) << 16, Place.gdt + n * 8)
      }
    }
    for n in 0..<26 { store(UInt32(Place.stack + 0x7000), Place.tss + n * 4) }
    for n in 0..<12 { store(UInt64(Place.stack + n * 0x800), Place.tss + 4 + n * 8) }
    if random.oneIn(4) { store(address(), Place.tss + 4 + random.below(12) * 8) }
  }

  /// To a block, of any type.
  private mutating func gate(type: UInt64) -> UInt64 {
    let target = UInt64(starts.isEmpty ? Place.code : starts[random.below(starts.count)])
    let selectors = [Selector.code64, Selector.code32, Selector.code16, Selector.tss, 0x60, 0x2B]
    let selector = UInt64(selectors[random.oneIn(4) ? random.below(selectors.count) : 0])
    let present: UInt64 = random.oneIn(12) ? 0 : 0x80
    return target & 0xFFFF | selector << 16 | (present | type | UInt64(random.below(4)) << 5) << 40
      | (target >> 16 & 0xFFFF) << 48 | UInt64(random.below(8) & random.below(8)) << 32
  }

  private mutating func fillInterrupts() {
    for n in 0..<256 {
      let type: UInt64 = random.oneIn(10) ? UInt64(random.below(16)) : 0xE | UInt64(random.below(2))
      store(gate(type: type), Place.interrupts64 + n * 16)
      if random.oneIn(30) { store(number(), Place.interrupts64 + n * 16 + 8) }
      let old = gate(type: type) & ~(0xFFFF << 16) & ~(0xFF << 32)
      store(old | UInt64(Selector.code32) << 16, Place.interrupts32 + n * 8)
      let start = starts[random.below(starts.count)] - Place.code
      store(UInt32(start & 0xFFFF) | UInt32(Place.code >> 4) << 16, n * 4)
    }
  }
}

// MARK: Code

extension HostileMemory {
  private mutating func fillCode(_ mode: CodeMode, blocks: Int) {
    starts.removeAll(keepingCapacity: true)
    var position = Place.code + random.below(64)
    var code = HostileCode(seed: random.next(), mode: mode)
    for _ in 0..<blocks {
      // Some blocks begin shortly before a page's end.
      if random.oneIn(8) { position = (position | 0xFFF) - random.below(40) }
      if position > Place.code + Place.codeSize - 512 { position = Place.code + random.below(512) }
      starts.append(position)
      var bytes: [UInt8] = []
      for _ in 0..<(1 + random.below(6)) { append(&code, &bytes) }
      appendEnd(&code, position, &bytes)
      base.advanced(by: position).copyMemory(from: bytes, byteCount: bytes.count)
      position += bytes.count
    }
  }

  private mutating func append(_ code: inout HostileCode, _ bytes: inout [UInt8]) {
    if random.oneIn(5) {
      HostileSequence.append(&code, self.address(), &bytes)
      return
    }
    while true {
      let row = HostileCode.rows[random.below(HostileCode.rows.count)]
      // A halted guest tests nothing.
      if row.mnemonic == .hlt && !random.oneIn(20) { continue }
      bytes += code.instruction(of: row)
      return
    }
  }

  /// Mostly on to another block; a loop; a huge constant as the last instruction; nothing.
  private mutating func appendEnd(
    _ code: inout HostileCode, _ position: Int, _ bytes: inout [UInt8]
  ) {
    let target = random.oneIn(3) ? position : starts[random.below(starts.count)]
    let size = code.mode == .bits16 ? 2 : 4
    func relative(_ opcode: [UInt8]) {
      let distance = target - (position + bytes.count + opcode.count + size)
      bytes += opcode
      code.append(UInt64(bitPattern: Int64(distance)), size, &bytes)
    }
    switch random.below(8) {
    case 0..<3: relative([0xE9])
    case 3: relative([0xE8])
    case 4: relative([0x0F, 0x80 | random.byte() & 0xF])
    case 5:
      // dec ecx; jnz
      bytes += code.mode == .bits64 ? [0xFF, 0xC9] : [0x49]
      relative([0x0F, 0x85])
    case 6:
      // mov ecx, a few; then whatever follows
      bytes.append(0xB9)
      code.append(UInt64(random.below(100)), size, &bytes)
    default: break
    }
  }
}
