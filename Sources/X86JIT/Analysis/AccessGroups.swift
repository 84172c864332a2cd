// SPDX-License-Identifier: Apache-2.0
//
// Which memory accesses of a block share a TLB check. Accesses whose addresses differ by a constant
// are mostly in one page: the first access checks the page for all of them, and the others add
// their distance to its host address.
//
//     mov rax, [rsi + rcx*8 + 16]      looks for 16 bytes at rsi + rcx*8 + 8
//     mov rdx, [rsi + rcx*8 + 8]       [host address + 0]
//
// The analysis follows registers through additions of constants, moves and pushes. Handlers and
// system instructions may change address translation, and end all groups.

import X86
import X86CPU
import X86Decoder

struct AccessGroup {
  /// The first instruction, which checks, the last, and their number.
  private(set) var leader = 0
  private(set) var last = 0
  private(set) var count = 0
  /// The bytes that are accessed, relative to what the members' addresses have in common.
  var low: Int64
  var high: Int64
  var writes = false
  /// Near the stack pointer.
  var isStack: Bool
  /// `low` stays at or above this: the first member reaches it with a displacement of 32 bits.
  var lowest: Int64
  /// Addresses of aligned accesses: `alignmentMask` of the address at `alignedAt` is 0.
  var alignmentMask: UInt8 = 0
  var alignedAt: Int64 = 0

  var size: Int { Int(high &- low) }
}

/// One access, for grouping.
private struct Access {
  var key: AccessPlan.Key
  /// Of the first byte, relative to what the key stands for.
  var relative: Int64
  var size: Int64
  var writes: Bool
  /// The instruction's own displacement; nil where addresses wrap as it does.
  var displacement: Int64?
  var alignmentMask: UInt8 = 0

  /// The furthest byte before it that its instruction can address with another displacement.
  var lowest: Int64 {
    guard let displacement else { return .min }
    return relative &- (displacement &- Int64(Int32.min))
  }
}

/// A register's value as one that it had before, plus a constant.
private struct SymbolicRegisters {
  private var roots = InlineArray<16, Int> { $0 }
  private var deltas = InlineArray<16, Int64>(repeating: 0)
  private var next = 16
  /// Of registers to which another has been added that the block does not change: that one, and the
  /// root since; -1 for all others.
  private var added = InlineArray<16, UInt8>(repeating: 0)
  private var sumRoots = InlineArray<16, Int>(repeating: -1)
  /// Registers that the block changes, as bits.
  private let changed: UInt32

  init(changed: UInt32) { self.changed = changed }

  private static let limit: Int64 = 1 << 24

  subscript(_ register: UInt8) -> (root: Int, delta: Int64) {
    get { (roots[Int(register)], deltas[Int(register)]) }
    set {
      roots[Int(register)] = newValue.root
      deltas[Int(register)] = newValue.delta
      if newValue.delta.magnitude > Self.limit.magnitude { forget(register) }
    }
  }

  mutating func forget(_ register: UInt8) {
    roots[Int(register)] = next
    deltas[Int(register)] = 0
    next += 1
  }

  mutating func forgetAll() {
    for register in 0..<16 as Range<UInt8> { forget(register) }
  }

  mutating func execute(_ i: Instruction, _ kind: LoweringKind) {
    if kind == .handler || kind == .system { return forgetAll() }
    let first = i.operands[0]
    let second = i.operands[1]
    let word = i.mode.wordSize
    let isWhole = first.kind == .general && first.size == word
    switch i.mnemonic {
    case .add where isWhole && second.kind == .immediate: self[first.number].delta &+= i.immediate
    case .sub where isWhole && second.kind == .immediate: self[first.number].delta &-= i.immediate
    case .inc where isWhole: self[first.number].delta &+= 1
    case .dec where isWhole: self[first.number].delta &-= 1
    case .mov where isWhole && second.kind == .general && second.size == word:
      self[first.number] = self[second.number]
    case .lea
    where isWhole && i.addressSize == word && i.base < 16 && i.index == Instruction.noRegister:
      let base = self[i.base]
      self[first.number] = (base.root, base.delta &+ i.displacement)
    case .add where isWhole && second.kind == .general: add(second.number, to: first.number)
    case .push where kind == .push: self[4].delta &-= Int64(word)
    case .pop where kind == .pop:
      self[4].delta &+= Int64(word)
      forget(first.number)
    default:
      let changed = i.changedRegisters
      for register in 0..<16 as Range<UInt8> where changed >> UInt32(register) & 1 != 0 {
        forget(register)
      }
    }
  }

  private mutating func add(_ other: UInt8, to register: UInt8) {
    let isFirst = self[register] == (Int(register), 0)
    forget(register)
    if isFirst && changed >> UInt32(other) & 1 == 0 {
      added[Int(register)] = other
      sumRoots[Int(register)] = next - 1
    }
  }

  /// The register that the block has added to another, to whose value at the block's start.
  func added(to register: UInt8) -> UInt8? {
    let root = sumRoots[Int(register)]
    return root >= 0 && self[register] == (root, 0) ? added[Int(register)] : nil
  }
}

struct AccessPlan {
  struct Key: Equatable {
    var base: Int
    var index: Int
    var scale: UInt8
  }

  /// An access with a check, with the registers of its address as bits.
  struct Look {
    var index: Int
    var registers: UInt32
  }

  /// The group that the next access of a key may belong to.
  struct OpenGroup {
    var key: Key
    var group: Int
  }

  let groups: UnsafeMutablePointer<AccessGroup>
  private var groupCount = 0
  /// The group of each instruction, or -1.
  let group: UnsafeMutablePointer<Int>
  /// Where in its group an instruction accesses, relative to what the members have in common.
  let relative: UnsafeMutablePointer<Int64>
  /// What the addresses of each instruction's access have in common with others.
  let keys: UnsafeMutablePointer<Key?>
  /// By how much each register is more at the block's end than at its start; nil if that is not
  /// known.
  private(set) var steps = InlineArray<16, Int64?>(repeating: nil)
  /// The register by whose value, which the block does not change, each register is more.
  private(set) var registerSteps = InlineArray<16, UInt8?>(repeating: nil)

  private let lookMemory: UnsafeMutablePointer<Look>
  private var lookCount = 0
  /// Accesses with a check for themselves or a group, away from the stack.
  var looks: UnsafeBufferPointer<Look> {
    UnsafeBufferPointer(start: lookMemory, count: lookCount)
  }

  /// As many as there are places for their host addresses.
  static let maximumGroups = NativeState.groupCount
  private static let maximumSize: Int64 = 1024

  /// Of the block whose first instruction is at `start` of the memory.
  init(_ memory: TranslationMemory, _ start: Int) {
    groups = memory.groups + start
    group = memory.group + start
    relative = memory.relative + start
    keys = memory.keys + start
    lookMemory = memory.looks + start
  }

  mutating func find(_ code: BlockCode, _ memory: TranslationMemory) {
    var changed: UInt32 = 0
    for i in code.instructions { changed |= i.changedRegisters }
    var registers = SymbolicRegisters(changed: changed)
    var open = UnsafeMutableBufferPointer(start: memory.openGroups, count: 0)
    for n in code.instructions.indices {
      let kind = code.kinds[n]
      (group[n], relative[n], keys[n]) = (-1, 0, nil)
      if kind == .handler || kind == .system {
        open = UnsafeMutableBufferPointer(start: memory.openGroups, count: 0)
      }
      if let access = Self.access(
        code.instructions[n], kind, code.nextOffset(n), registers)
      {
        add(access, n, &open)
      }
      registers.execute(code.instructions[n], kind)
    }
    for register in 0..<16 as Range<UInt8> {
      let value = registers[register]
      if value.root == Int(register) { steps[Int(register)] = value.delta }
      registerSteps[Int(register)] = registers.added(to: register)
    }
    findLooks(code)
  }

  /// Groups of one are none.
  private mutating func findLooks(_ code: BlockCode) {
    for n in code.instructions.indices where group[n] >= 0 {
      if groups[group[n]].count == 1 || group[n] >= Self.maximumGroups { group[n] = -1 }
    }
    for n in code.instructions.indices where keys[n] != nil {
      if code.kinds[n] == .push || code.kinds[n] == .pop { continue }
      let (base, index) = (code.instructions[n].base, code.instructions[n].index)
      if base == 4 { continue }
      if group[n] >= 0 && (groups[group[n]].leader != n || groups[group[n]].isStack) { continue }
      var registers: UInt32 = 0
      if base < 16 { registers |= 1 << UInt32(base) }
      if index < 16 { registers |= 1 << UInt32(index) }
      (lookMemory + lookCount).initialize(to: Look(index: n, registers: registers))
      lookCount += 1
    }
  }

  /// How an address advances from one round of the block to the next.
  enum Step: Equatable {
    case by(Int64)
    /// By the value of a register that the block does not change.
    case register(UInt8)
  }

  /// Nil if that is not known.
  func step(of key: Key) -> Step? {
    var step: Int64 = 0
    if key.base >= 0 {
      guard key.base < 16 else { return nil }
      if let added = registerSteps[key.base] {
        return key.index < 0 || key.index < 16 && steps[key.index] == 0 ? .register(added) : nil
      }
      guard let known = steps[key.base] else { return nil }
      step = known
    }
    if key.index >= 0 {
      guard key.index < 16, let known = steps[key.index] else { return nil }
      step &+= known << Int64(key.scale)
    }
    return .by(step)
  }

  private mutating func add(
    _ access: Access, _ n: Int, _ open: inout UnsafeMutableBufferPointer<OpenGroup>
  ) {
    relative[n] = access.relative
    keys[n] = access.key
    let known = open.firstIndex { $0.key == access.key }
    if let known, groups[open[known].group].admits(access) {
      let g = open[known].group
      groups[g].add(access, n)
      group[n] = g
      return
    }
    var new = AccessGroup(
      low: access.relative, high: access.relative &+ access.size,
      isStack: access.key.base == 4 && access.key.index < 0, lowest: access.lowest)
    new.add(access, n)
    (groups + groupCount).initialize(to: new)
    group[n] = groupCount
    if let known {
      open[known].group = groupCount
    } else {
      let count = open.count
      open = UnsafeMutableBufferPointer(start: open.baseAddress, count: count + 1)
      open.initializeElement(at: count, to: OpenGroup(key: access.key, group: groupCount))
    }
    groupCount += 1
  }

  private static func access(
    _ i: Instruction, _ kind: LoweringKind, _ next: Int, _ registers: SymbolicRegisters
  ) -> Access? {
    switch kind {
    case .push where i.operands[0].kind != .memory: return stack(i, true, registers)
    case .pop: return stack(i, false, registers)
    case .modRM, .vex, .vector: break
    default: return nil
    }
    guard let m = i.memoryOperand, i.addressSize == i.mode.wordSize, i.segment != .fs,
      i.segment != .gs,
      !i.attributes.contains(.x87), i.operands[m].size > 0
    else { return nil }
    var key = Key(base: -1, index: -1, scale: 0)
    var displacement: Int64? = i.mode == .bits64 ? i.displacement : nil
    var relative = i.displacement
    if i.base == Instruction.ripRegister {
      key.base = -2
      relative &+= Int64(next)
      displacement = relative
    } else if i.base != Instruction.noRegister {
      key.base = registers[i.base].root
      relative &+= registers[i.base].delta
    }
    if i.index != Instruction.noRegister {
      key.index = registers[i.index].root
      key.scale = i.scale
      relative &+= registers[i.index].delta << Int64(i.scale)
    }
    let operand = i.operands[m]
    return Access(
      key: key, relative: relative, size: Int64(operand.size),
      writes: operand.access.contains(.write), displacement: displacement,
      alignmentMask: i.attributes.contains(.aligned) ? operand.size - 1 : 0)
  }

  private static func stack(
    _ i: Instruction, _ writes: Bool, _ registers: SymbolicRegisters
  ) -> Access {
    let size = Int64(i.mode.wordSize)
    return Access(
      key: Key(base: registers[4].root, index: -1, scale: 0),
      relative: registers[4].delta &- (writes ? size : 0), size: size, writes: writes,
      displacement: writes ? -size : 0)
  }

  fileprivate static func fits(_ low: Int64, _ high: Int64) -> Bool {
    (0...maximumSize).contains(high &- low)
  }
}

extension AccessGroup {
  fileprivate func admits(_ access: Access) -> Bool {
    let newLow = min(low, access.relative)
    let newHigh = max(high, access.relative &+ access.size)
    guard AccessPlan.fits(newLow, newHigh), newLow >= lowest else { return false }
    // One test of the address has to suffice for all aligned members.
    let common = Int64(min(alignmentMask, access.alignmentMask))
    return common == 0 || (access.relative &- alignedAt) & common == 0
  }

  fileprivate mutating func add(_ access: Access, _ n: Int) {
    if count == 0 { leader = n }
    last = n
    count += 1
    low = min(low, access.relative)
    high = max(high, access.relative &+ access.size)
    writes = writes || access.writes
    if access.alignmentMask > alignmentMask {
      alignmentMask = access.alignmentMask
      alignedAt = access.relative
    }
  }
}
