// SPDX-License-Identifier: Apache-2.0
//
// Random blocks of 2 to 16 instructions. Some registers have roles, so that most memory operands
// reach the sandbox: RSP and two others point into it, one is a small index; few instructions write
// them. Branches go forward over a few instructions, around small counted loops, through registers,
// memory and the stack, to a subroutine and back; never to anything but an instruction's start.

import X86
import X86Decoder

/// Registers with a meaning that lasts through the block.
struct BlockRoles {
  /// Pointers into the sandbox; RSP is the first.
  var bases: [UInt8]
  /// A small number.
  var index: UInt8
  /// Of the loops that the current instruction is in.
  var counters: [UInt8] = []

  var pointers: [UInt8] { bases + [index] }
}

struct BlockGenerator {
  var random: OracleRandom
  private var encodings: EncodingGenerator
  private let rows: BlockRows
  private(set) var roles: BlockRoles
  private(set) var block = Block()
  private var labels = 0
  private var groups = 0
  /// The next instruction belongs to the last one's group.
  private var isTied = false
  /// Instructions to come.
  private var left: Int
  private let weights: [Int]
  /// Neither memory nor stack: in a subroutine.
  private var registersOnly = false

  /// By `BlockRows.Kind`.
  private static let mixes = [
    [8, 3, 3, 0, 0, 0, 0], [8, 4, 1, 0, 0, 0, 0], [6, 1, 4, 0, 0, 0, 0], [4, 1, 1, 6, 0, 0, 0],
    [4, 1, 1, 0, 6, 2, 0], [3, 1, 1, 0, 1, 6, 0], [3, 1, 1, 0, 0, 2, 6], [4, 1, 2, 2, 2, 2, 2],
  ]

  init(random: OracleRandom, rows: BlockRows) {
    self.random = random
    self.rows = rows
    encodings = EncodingGenerator(random: OracleRandom(self.random.next()))
    var others = (0..<16).filter { $0 != 4 }.map { UInt8($0) }
    others.shuffle(using: &self.random)
    roles = BlockRoles(bases: [4, others[0], others[1]], index: others[2])
    left = 2 + self.random.below(15)
    weights = Self.mixes[self.random.below(Self.mixes.count)]
  }

  mutating func generate() {
    while left > 0 { step(depth: 0) }
  }

  private mutating func step(depth: Int) {
    switch random.below(25) {
    case 0..<3: if depth < 3 { jumpForward(depth) } else { single() }
    case 3..<5: if depth < 2 { loop(depth) } else { single() }
    case 5: transfer()
    case 6: loadControl()
    case 7: stepPointer()
    case 8..<13: plainMove()
    default: single()
    }
  }

  private mutating func sequence(_ count: Int, depth: Int) {
    let end = max(0, left - count)
    while left > end { step(depth: depth) }
  }

  // MARK: Single instructions

  private mutating func single() {
    left -= 1
    let wantsMemory = !registersOnly && random.below(5) < 3
    var row = pick()
    for attempt in 0..<80 {
      if attempt % 16 == 15 { row = pick() }
      guard let encoding = encodings.encoding(of: row, slot: 0) else { continue }
      let i = encoding.instruction
      if attempt < 48 && (i.memoryIndex != nil) != wantsMemory { continue }
      guard accepts(i) else { continue }
      var reference = BlockItem.Reference.none
      if i.base == Instruction.ripRegister {
        let target = encoding.end &+ UInt64(bitPattern: i.displacement)
        let position = encoding.bytes.count - Int(i.encoding.immediateLength) - 4
        reference = .data(position: position, target: target)
      }
      append(encoding.bytes, reference)
      return
    }
  }

  private mutating func pick() -> RowTemplate {
    var place = random.below(weights.reduce(0, +))
    var kind = 0
    while place >= weights[kind] || rows.rows[kind].isEmpty {
      place = max(0, place - weights[kind])
      kind = (kind + 1) % weights.count
    }
    return rows.rows[kind][random.below(rows.rows[kind].count)]
  }

  private mutating func accepts(_ i: Instruction) -> Bool {
    if !BlockRules.isAllowed(i) { return false }
    if registersOnly && BlockRules.touchesMemory(i) { return false }
    for counter in roles.counters where BlockRules.writes(i, counter) { return false }
    for pointer in roles.pointers where BlockRules.writes(i, pointer) {
      if registersOnly || !random.oneIn(12) { return false }
    }
    if BlockRules.isRare(i, roles) && !random.oneIn(8) { return false }
    return BlockRules.reachesSandbox(i, roles) || random.oneIn(24)
  }

  /// What programs do most: loads and stores near a pointer, flags untouched.
  private mutating func plainMove() {
    if registersOnly { return single() }
    left -= 1
    let register = freeRegister()
    let base = roles.bases[random.below(3)]
    var place = [0x40 | (register & 7) << 3 | base & 7]
    if base & 7 == 4 { place.append(0x24) }
    place.append(UInt8(truncatingIfNeeded: (random.below(24) - 8) * (random.oneIn(8) ? 5 : 8)))
    let extended: UInt8 = (register >> 3) << 2 | base >> 3
    let usesVectors =
      weights[BlockRows.Kind.sse.rawValue] + weights[BlockRows.Kind.avx.rawValue] > 0
    switch random.below(usesVectors ? 12 : 8) {
    case 0...2: append([0x48 | extended, 0x8B] + place)
    case 3, 4: append([0x48 | extended, 0x89] + place)
    case 5: append([0x40 | extended, random.oneIn(2) ? 0x8B : 0x89] + place)
    case 6: append([0x40 | extended, 0x0F, random.oneIn(2) ? 0xB6 : 0xBF] + place)
    case 7: append([0x40 | extended, 0x88] + place)
    case 8: append([0x40 | extended, 0x0F, random.oneIn(2) ? 0x10 : 0x11] + place)
    case 9: append([0xF2, 0x40 | extended, 0x0F, random.oneIn(2) ? 0x10 : 0x11] + place)
    case 10: append([0x66, 0x40 | extended, 0x0F, random.oneIn(2) ? 0x6F : 0x7F] + place)
    default: append([0xF3, 0x40 | extended, 0x0F, random.oneIn(2) ? 0x6F : 0x7F] + place)
    }
  }

  /// Moves a base register by a little, or makes it equal another.
  private mutating func stepPointer() {
    if registersOnly { return single() }
    left -= 1
    let base = roles.bases[random.below(3)]
    let other = roles.bases[random.below(3)]
    let (b, low) = (base >> 3, base & 7)
    let step = UInt8(truncatingIfNeeded: (random.below(16) - 8) * 8)
    switch random.below(8) {
    case 0, 1: append([0x48 | b, 0x83, 0xC0 | low, step])
    case 2: append([0x48 | b, 0x83, 0xE8 | low, step])
    case 3, 4:
      append([0x48 | b * 5, 0x8D, 0x40 | low << 3 | low] + (low == 4 ? [0x24, step] : [step]))
    case 5: append([0x48 | b, 0xFF, 0xC0 | low | (random.oneIn(2) ? 8 : 0)])
    case 6: append([0x48 | (other >> 3) << 2 | b, 0x89, 0xC0 | (other & 7) << 3 | low])
    default: append([0x48 | (other >> 3) << 2 | b, 0x87, 0xC0 | (other & 7) << 3 | low])
    }
  }

  // MARK: Items

  private mutating func append(_ bytes: [UInt8], _ reference: BlockItem.Reference = .none) {
    let decoded = bytes.withUnsafeBytes { try? Decoder.decode($0, mode: .bits64) }
    guard let decoded else { return }
    let registers = random.byte()
    let compare: [UInt8] = [0x48 | registers >> 6 & 1 | registers >> 5 & 4, 0x39, 0xC0 | registers]
    if !isTied { groups += 1 }
    isTied = false
    block.items.append(
      BlockItem(
        content: .code(bytes: bytes, instruction: decoded, reference: reference), compare: compare,
        group: groups))
  }

  /// Appends an instruction that needs the one before it.
  private mutating func appendTied(_ bytes: [UInt8]) {
    isTied = true
    append(bytes)
  }

  private mutating func newLabel() -> Int {
    labels += 1
    return labels
  }

  private mutating func place(_ label: Int, anyFlags: Bool = false) {
    block.items.append(BlockItem(content: .label(label, anyFlags: anyFlags)))
  }

  /// Opcode bytes and a displacement of `size` bytes to a label.
  private mutating func branch(_ opcode: [UInt8], _ size: Int, _ label: Int) {
    append(
      opcode + Array(repeating: 0, count: size),
      .label(position: opcode.count, size: size, label: label))
  }

  private mutating func conditional(_ condition: UInt8, _ label: Int) {
    if random.oneIn(3) {
      branch([0x70 | condition], 1, label)
    } else {
      branch([0x0F, 0x80 | condition], 4, label)
    }
  }

  private mutating func jump(_ label: Int) {
    if random.oneIn(2) { branch([0xEB], 1, label) } else { branch([0xE9], 4, label) }
  }

  /// A register without a role.
  private mutating func freeRegister() -> UInt8 {
    let taken = roles.pointers + roles.counters
    while true {
      let register = UInt8(random.below(16))
      if !taken.contains(register) { return register }
    }
  }

  /// ModRM, SIB and displacement of a place near one of the base registers, and REX.B for it.
  private mutating func nearBase(_ reg: UInt8) -> (rexB: UInt8, bytes: [UInt8]) {
    let base = roles.bases[1 + random.below(2)]
    let displacement = UInt8(random.below(32)) &* 8 &- 128
    var bytes = [0x40 | (reg & 7) << 3 | base & 7]
    if base & 7 == 4 { bytes.append(0x24) }
    return (base >> 3, bytes + [displacement])
  }
}

// MARK: Branches

extension BlockGenerator {
  private mutating func jumpForward(_ depth: Int) {
    let label = newLabel()
    left -= 1
    switch random.below(10) {
    case 0: branch(random.oneIn(3) ? [0x67, 0xE3] : [0xE3], 1, label)
    case 1 where !(roles.pointers + roles.counters).contains(1):
      branch([0xE0 | UInt8(random.below(3))], 1, label)
    default: conditional(random.byte() & 15, label)
    }
    sequence(1 + random.below(3), depth: depth + 1)
    place(label)
  }

  /// Counts a register down from a small number.
  private mutating func loop(_ depth: Int) {
    let head = newLabel()
    let taken = roles.pointers + roles.counters
    let isLoop = random.oneIn(6) && !taken.contains(1)
    let candidates: [UInt8] = [3, 5, 8, 9, 10, 11, 12, 13, 14, 15].filter { !taken.contains($0) }
    let counter = isLoop ? 1 : candidates[random.below(candidates.count)]
    let b = counter >> 3
    let start = UInt8(1 + random.below(random.oneIn(4) ? 60 : 5))
    append((b != 0 ? [0x41] : []) + [0xB8 | counter & 7, start, 0, 0, 0])
    place(head, anyFlags: true)
    roles.counters.append(counter)
    left -= 3
    sequence(1 + random.below(isLoop ? 3 : 5), depth: depth + 1)
    roles.counters.removeLast()
    if isLoop { return branch([0xE2], 1, head) }
    countDown(counter, head)
  }

  private mutating func countDown(_ counter: UInt8, _ head: Int) {
    let b = counter >> 3
    let low = counter & 7
    switch random.below(5) {
    case 0:  // sub r, 1; ja
      append([0x48 | b, 0x83, 0xE8 | low, 1])
      branch([0x0F, 0x87], 4, head)
    case 1:  // lea r, [r - 1]; test r, r; jnz
      append([0x48 | b * 5, 0x8D, 0x40 | low << 3 | low] + (low == 4 ? [0x24, 0xFF] : [0xFF]))
      append([0x48 | b * 5, 0x85, 0xC0 | low << 3 | low])
      branch([0x0F, 0x85], 4, head)
    case 2:  // dec r; jz out; jmp head
      let out = newLabel()
      append([0x48 | b, 0xFF, 0xC8 | low])
      conditional(4, out)
      branch([0xE9], 4, head)
      place(out)
    case 3:  // add r32, -1; jg
      append((b != 0 ? [0x41] : []) + [0x83, 0xC0 | low, 0xFF])
      branch([0x0F, 0x8F], 4, head)
    default:  // dec r; jnz
      append([0x48 | b, 0xFF, 0xC8 | low])
      branch([0x0F, 0x85], 4, head)
    }
  }

  /// Ways of going on that are not conditional.
  private mutating func transfer() {
    if registersOnly { return single() }
    let label = newLabel()
    left -= 2
    let register = freeRegister()
    let r = register >> 3
    switch random.below(6) {
    case 0: jump(label)
    case 1:
      loadAddress(register, label)
      appendTied((r != 0 ? [0x41] : []) + [0xFF, 0xE0 | register & 7])
    case 2:
      loadAddress(register, label)
      let (b, bytes) = nearBase(register)
      appendTied([0x48 | r << 2 | b, 0x89] + bytes)
      appendTied((b != 0 ? [0x41] : []) + [0xFF, bytes[0] & ~0x38 | 4 << 3] + bytes.dropFirst())
    case 3:
      loadAddress(register, label)
      appendTied((r != 0 ? [0x41] : []) + [0x50 | register & 7])
      appendTied([0xC3])
    default: return subroutine(label)
    }
    if random.oneIn(3) { single() }
    place(label)
  }

  private mutating func loadAddress(_ register: UInt8, _ label: Int) {
    branch([0x48 | (register >> 3) << 2, 0x8D, 5 | (register & 7) << 3], 4, label)
  }

  private mutating func subroutine(_ entry: Int) {
    let back = newLabel()
    let over = newLabel()
    if random.oneIn(3) {
      let register = freeRegister()
      loadAddress(register, entry)
      appendTied((register >> 3 != 0 ? [0x41] : []) + [0xFF, 0xD0 | register & 7])
    } else {
      branch([0xE8], 4, entry)
    }
    place(back, anyFlags: true)
    if random.oneIn(2) { single() }
    jump(over)
    place(entry, anyFlags: true)
    registersOnly = true
    for _ in 0..<(1 + random.below(2)) { single() }
    registersOnly = false
    append([0xC3])
    place(over)
  }

  // MARK: Control registers

  /// Puts a good value into memory and loads it from there.
  private mutating func loadControl() {
    if registersOnly { return single() }
    left -= 2
    switch random.below(3) {
    case 0:
      append([0x9C])
      appendTied([0x9D])
    case 1:
      let (b, bytes) = nearBase(0)
      let word = random.next()
      var value: UInt32 = 0x1F80 | UInt32(truncatingIfNeeded: word) & 0x6000
      if word >> 16 & 3 == 0 { value |= UInt32(truncatingIfNeeded: word >> 18) & 0x8040 }
      if word >> 40 & 7 == 0 { value &= ~(0x80 << UInt32((word >> 44) % 3)) }
      let prefix: [UInt8] = b != 0 ? [0x41] : []
      append(
        prefix + [0xC7] + bytes
          + (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) })
      appendTied(prefix + [0x0F, 0xAE, bytes[0] & ~0x38 | 2 << 3] + bytes.dropFirst())
    default:
      let (b, bytes) = nearBase(0)
      var high = random.byte() & 0x0F
      if high & 3 == 1 { high |= 2 }
      let prefix: [UInt8] = b != 0 ? [0x41] : []
      append([0x66] + prefix + [0xC7] + bytes + [0x7F, high])
      appendTied(prefix + [0xD9, bytes[0] & ~0x38 | 5 << 3] + bytes.dropFirst())
    }
  }
}
