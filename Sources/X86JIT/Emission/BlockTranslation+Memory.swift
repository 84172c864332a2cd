// SPDX-License-Identifier: Apache-2.0
//
// Memory operands: the linear address, then an inline TLB check. R13 holds the address, first
// linear, then host. Clobbers R14, R15 and flags.

import X86
import X86CPU
import X86Decoder

extension BlockTranslation {
  /// The memory operand of `n` as an address of host registers, without its segment's base. Loads
  /// guest registers without a host register to R13 (base) and R14 (index).
  func guestAddress(_ n: Int) -> Place {
    let i = instructions[n]
    var place = Place.memory(nil, Int32(truncatingIfNeeded: i.displacement))
    if i.base == Instruction.ripRegister {
      a.load(.r13, .state(StateOffset.codePage))
      place.base = .r13
      place.displacement = Int32(truncatingIfNeeded: i.displacement &+ Int64(nextOffset(n)))
    } else if i.base != Instruction.noRegister {
      place.base = inRegister(i.base, .r13)
    }
    if i.index != Instruction.noRegister {
      place.index = inRegister(i.index, .r14)
      place.scale = i.scale
    }
    return place
  }

  /// The host register of a guest register, or `scratch` with its value.
  private func inRegister(_ guest: UInt8, _ scratch: HostRegister) -> HostRegister {
    if let host = RegisterMap.host(guest) { return host }
    a.load(scratch, RegisterMap.place(guest))
    return scratch
  }

  /// R13 = linear address of the memory operand of `n` plus some bytes. In 32-bit code: jumps to
  /// `miss` if its segment is FS or GS and needs a check.
  func linearAddress(_ n: Int, _ miss: Label? = nil, plus distance: Int = 0) {
    let i = instructions[n]
    var place = guestAddress(n)
    place.displacement &+= Int32(truncatingIfNeeded: distance)
    if i.addressSize == 4 { a.lea32(.r13, place) } else { a.lea(.r13, place) }
    if i.segment == .fs || i.segment == .gs {
      let base = Place.state(SegmentOffset.base(i.segment))
      if isWide { return a.arithmetic(.add, .r13, base) }
      if let miss { checkSegment(i, miss) }
      a.emit(Form(0x03), reg: HostRegister.r13.rawValue, rm: base)
    }
  }

  /// The segment has 4 GiB, and the operand at offset R13 does not exceed them.
  private func checkSegment(_ i: Instruction, _ miss: Label) {
    let size = i.memoryOperand.map { Int32(i.operands[$0].size) } ?? 1
    a.testByte(.state(StateOffset.wholeSegments), UInt8(1) << i.segment.rawValue)
    a.jump(if: Self.equal, miss)
    a.lea(.r14, .memory(.r13, size - 1))
    a.shiftRight(.r14, 32)
    a.jump(if: Self.notEqual, miss)
  }

  /// R13 = host address of the linear address in R13, or a jump to `miss`. `n` is the accessing
  /// instruction, if its page may be cached.
  func translateAddress(size: Int, write: Bool, _ miss: Label, for n: Int? = nil) {
    if let n, slowFrom == nil, loopPages[n] >= 0 {
      translate(in: RememberedPage(access: Int(loopPages[n])), size: size, write: write, miss)
    } else {
      lookUpAddress(size: size, write: write, miss)
    }
  }

  private func lookUpAddress(size: Int, write: Bool, _ miss: Label) {
    lastByte(size)
    lookUpPage(write: write, miss)
    noteFaults(miss)
  }

  /// R13 = host address of the linear address in it, whose page is that of the last byte, the
  /// address in R15; or a jump to `miss`.
  func lookUpPage(write: Bool, _ miss: Label) {
    if isCompact || slowFrom != nil {
      a.call(write ? thunks.memory.lookWrite : thunks.memory.lookRead)
      a.jump(if: Self.notEqual, miss)
    } else {
      a.lookUpTLB(tag: write ? StateOffset.writeTag : StateOffset.readTag, miss)
      if guardsSpeculation {
        a.load(.r15, .memory(.r14, Int32(StateOffset.addend)))
        a.lea(.r13, .memory(.r13, index: .r15))
        poison(if: Self.notEqual)
      } else {
        a.arithmetic(.add, .r13, .memory(.r14, Int32(StateOffset.addend)))
      }
    }
  }

  /// The TLB check in a thunk (see Thunks+Memory).
  private func callLook(_ thunk: UInt, _ size: Int, _ miss: Label) {
    lastByte(size)
    a.call(thunk)
    a.jump(if: Self.notEqual, miss)
  }

  /// R15 = address of the last byte of an access at R13.
  private func lastByte(_ size: Int) {
    if size > 1 {
      a.lea(.r15, .memory(.r13, Int32(size - 1)))
    } else {
      a.move(.r15, .r13)
    }
  }

  /// R13 = 0 on the condition on which the code before has jumped elsewhere: if the host
  /// mispredicted that jump, it executes the access behind it with an address that the guest chose.
  private func poison(if condition: UInt8) {
    if guardsSpeculation { a.move(if: condition, .r13, .state(StateOffset.zero)) }
  }

  static let notEqual: UInt8 = 5

  /// R13 = host address of the memory operand of `n`.
  func accessOperand(_ n: Int, _ operand: Operand, _ miss: Label) {
    clobberFlags(n)
    linearAddress(n, miss)
    translateOperand(n, operand, miss)
  }

  /// R13 = host address of the memory operand of `n`, whose linear address is in R13.
  func translateOperand(_ n: Int, _ operand: Operand, _ miss: Label) {
    let size = Int(operand.size)
    if instructions[n].base == GeneralRegister.rsp.rawValue && !usesSegmentBase(n) {
      translateStackAddress(size: size, miss)
    } else {
      translateAddress(
        size: size, write: operand.access.contains(.write), miss, for: n)
    }
  }

  private func usesSegmentBase(_ n: Int) -> Bool {
    instructions[n].segment == .fs || instructions[n].segment == .gs
  }

  // MARK: Cached pages

  /// The same for an address near the stack pointer: the state caches the stack's page, which is
  /// writable, so most accesses need no look-up. Code that changes address translation drops it.
  func translateStackAddress(size: Int, _ miss: Label) {
    if isCompact || slowFrom != nil {
      if size > 8 { return lookUpAddress(size: size, write: true, miss) }
      a.call(thunks.memory.accessStack)
      a.jump(if: Self.notEqual, miss)
      return noteFaults(miss)
    }
    let way = PageWay(
      look: a.label(), back: a.label(), page: .stack, size: size, write: true, miss: miss)
    begin(way)
    if size <= 8 {
      a.arithmetic(.cmp, .r15, .state(way.page.limit))
      a.jump(if: Self.notBelow, way.look)
      poison(if: Self.notBelow)
    } else {
      a.arithmetic(.cmp, .register(.r15), immediate: Int32(4096 - size))
      a.jump(if: Self.above, way.look)
      poison(if: Self.above)
      a.arithmetic(.cmp, .state(way.page.limit), immediate: 0)
      a.jump(if: Self.equal, way.look)
      poison(if: Self.equal)
    }
    finish(way)
  }

  /// R13 = host address of the linear address in R13: from the access's cached page if the address
  /// is in it; else by a look-up, whose page is cached. All accesses to the page have one size.
  private func translate(in page: RememberedPage, size: Int, write: Bool, _ miss: Label) {
    let way = PageWay(
      look: a.label(), back: a.label(), page: page, size: size, write: write, miss: miss)
    begin(way)
    a.arithmetic(.cmp, .r15, .state(page.limit))
    a.jump(if: Self.notBelow, way.look)
    poison(if: Self.notBelow)
    finish(way)
  }

  /// R13 = the host address, if the page is the cached one; R15 = the offset in it.
  ///
  /// Compares the host address, not the linear one: whatever mixture of old and new words the host
  /// speculates with, an address that passes is in a page that was cached.
  private func begin(_ way: PageWay) {
    a.arithmetic(.add, .r13, .state(way.page.addend))
    a.move(.r15, .r13)
    a.arithmetic(.sub, .r15, .state(way.page.start))
  }

  private func finish(_ way: PageWay) {
    verify(way)
    a.bind(way.back)
    noteFaults(way.miss)
    pageWays.append(way)
  }

  static let above: UInt8 = 7
  static let notBelow: UInt8 = 3

  /// Out of line: the look-up, which caches the page.
  func emitPageWays() {
    for way in pageWays {
      a.bind(way.look)
      a.arithmetic(.sub, .r13, .state(way.page.addend))
      if way.page == .stack {
        callLook(thunks.memory.lookStack, way.size, way.miss)
        a.jump(way.back)
        continue
      }
      callLook(
        way.write ? thunks.memory.lookWrite : thunks.memory.lookRead, way.size, way.miss)
      a.load(.r15, .memory(.r14, Int32(StateOffset.addend)))
      a.store(.state(way.page.addend), .r15)
      a.move(.r15, .r13)
      a.arithmetic(.and, .register(.r15), immediate: -4096)
      a.store(.state(way.page.start), .r15)
      a.store(
        .state(way.page.limit), immediate: Int32(truncatingIfNeeded: 4097 - way.size))
      a.jump(way.back)
    }
  }
}

/// Offsets, in the CPU state, of a cached page: its host address, the difference between host and
/// linear addresses, and the limit of offsets for accesses, 0 for no page.
struct RememberedPage: Equatable {
  var start: Int
  var addend: Int
  var limit: Int

  static let stack = RememberedPage(
    start: StateOffset.stackPage, addend: StateOffset.stackAddend, limit: StateOffset.stackLimit)

  /// Of an access of a loop.
  init(access number: Int) {
    start = StateOffset.accessPages + number * NativeState.accessPageStride
    addend = start + 8
    limit = start + 16
  }

  private init(start: Int, addend: Int, limit: Int) {
    self.start = start
    self.addend = addend
    self.limit = limit
  }
}
