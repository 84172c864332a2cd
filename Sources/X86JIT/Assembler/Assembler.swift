// SPDX-License-Identifier: Apache-2.0
//
// A small assembler for 64-bit code: ModRM encodings, jumps to labels, and the instructions that
// the translator's own sequences are made of. It writes bytes; the owner places them at `origin`.
//
//     var a = Assembler(origin: 0x1000)
//     a.load(.r13, .state(128))             // mov r13, [rsp + 128]
//     a.lea(.rax, .memory(.rbx, index: .rcx, scale: 2, 16))
//
// A guest's opcode is emitted again with other operands by `emit(_:reg:rm:)`.

/// General registers of the host, numbered as encoded.
package enum HostRegister: UInt8, Sendable {
  case rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
}

/// A ModRM.rm operand.
package struct Place: Sendable {
  package var register: HostRegister?
  package var base: HostRegister?
  package var index: HostRegister?
  /// Log 2.
  package var scale: UInt8 = 0
  package var displacement: Int32 = 0

  package static func register(_ register: HostRegister) -> Place { Place(register: register) }

  /// `[base + index << scale + displacement]`; without base and index an absolute address.
  package static func memory(
    _ base: HostRegister?, index: HostRegister? = nil, scale: UInt8 = 0, _ displacement: Int32 = 0
  ) -> Place {
    Place(base: base, index: index, scale: scale, displacement: displacement)
  }

  /// RSP is so far into the CPUState: what translations use most lies within the reach of a
  /// displacement of one byte, R12 to R15 of the guest below, other fields above. What is before
  /// that, the places of registers that have one of the host's, is the first of the stack of what
  /// is called.
  package static let stateBias = 96

  /// A field of the CPUState.
  package static func state(_ offset: Int) -> Place {
    Place(base: .rsp, displacement: Int32(truncatingIfNeeded: offset &- stateBias))
  }
}

/// An opcode with its prefixes, to be completed by operands.
package struct Form: Sendable {
  package enum Map: UInt8, Sendable { case one = 0, two = 1, three38 = 2, three3A = 3 }
  package var map = Map.one
  package var opcode: UInt8
  package var wide = false
  package var operandSize16 = false
  package var lock = false
  /// F2 or F3, or 0.
  package var repeatPrefix: UInt8 = 0
  /// A byte register 4 to 7 that is SPL to DIL.
  package var forceREX = false

  package init(_ opcode: UInt8, map: Map = .one, wide: Bool = false) {
    self.opcode = opcode
    self.map = map
    self.wide = wide
  }
}

package struct Label: Sendable { fileprivate let number: Int }

/// Memory that an assembler writes to; it is never copied, so that no byte looks at a reference
/// count.
private final class ByteStore {
  private(set) var base: UnsafeMutablePointer<UInt8>
  private(set) var capacity = 4096

  init() { base = .allocate(capacity: capacity) }

  deinit { base.deallocate() }

  func grow(to wanted: Int, keeping count: Int) {
    let new = UnsafeMutablePointer<UInt8>.allocate(capacity: wanted)
    new.update(from: base, count: count)
    base.deallocate()
    (base, capacity) = (new, wanted)
  }
}

/// Copies share their memory: only one of them may go on.
package struct Assembler {
  /// Address at which `bytes` will be executed.
  package var origin: UInt
  private let store = ByteStore()
  private var base: UnsafeMutablePointer<UInt8>
  private var capacity: Int
  package private(set) var position = 0
  private var positions: [Int] = []
  private var fixups: [(position: Int, label: Int)] = []
  /// Displacements to addresses that are not of this code: where it moves, they change.
  package private(set) var externals: [Int] = []

  package init(origin: UInt) {
    self.origin = origin
    base = store.base
    capacity = store.capacity
    positions.reserveCapacity(32)
    fixups.reserveCapacity(32)
  }

  /// Begins anew, with the memory that there is.
  package mutating func begin(origin: UInt) {
    self.origin = origin
    position = 0
    positions.removeAll(keepingCapacity: true)
    fixups.removeAll(keepingCapacity: true)
    externals.removeAll(keepingCapacity: true)
  }

  /// The code as it is now.
  package var bytes: [UInt8] {
    withExtendedLifetime(store) { Array(UnsafeBufferPointer(start: base, count: position)) }
  }

  package func withBytes<R>(_ body: (UnsafeRawBufferPointer) -> R) -> R {
    withExtendedLifetime(store) { body(UnsafeRawBufferPointer(start: base, count: position)) }
  }

  package func copy(to place: UnsafeMutableRawPointer) {
    withExtendedLifetime(store) { place.copyMemory(from: base, byteCount: position) }
  }

  /// Room for some bytes more.
  @inline(__always) private mutating func reserve(_ count: Int) {
    if position &+ count > capacity { grow(count) }
  }

  @inline(never) private mutating func grow(_ count: Int) {
    store.grow(to: 2 * (capacity + count), keeping: position)
    base = store.base
    capacity = store.capacity
  }

  // MARK: Bytes

  package mutating func byte(_ value: UInt8) {
    reserve(1)
    base[position] = value
    position &+= 1
  }

  package mutating func emit(_ first: UInt8, _ second: UInt8) {
    byte(first)
    byte(second)
  }

  package mutating func emit(_ first: UInt8, _ second: UInt8, _ third: UInt8, _ more: UInt8...) {
    emit(first, second)
    byte(third)
    for value in more { byte(value) }
  }

  package mutating func int32(_ value: Int32) { append(UInt64(UInt32(bitPattern: value)), 4) }

  /// The low `count` bytes of a value.
  package mutating func append(_ value: UInt64, _ count: Int) {
    reserve(8)
    UnsafeMutableRawPointer(base + position).storeBytes(of: value, as: UInt64.self)
    position &+= count
  }

  // MARK: Labels

  package mutating func label() -> Label {
    positions.append(-1)
    return Label(number: positions.count - 1)
  }

  package mutating func bind(_ label: Label) { positions[label.number] = position }

  /// Where a label was bound.
  package func position(of label: Label) -> Int { positions[label.number] }

  /// The four bytes of a displacement to a label.
  private mutating func relative(_ label: Label) {
    fixups.append((position, label.number))
    int32(0)
  }

  /// Fills in the displacements of all jumps; every label used must be bound.
  package mutating func resolve() {
    for fixup in fixups {
      let distance = Int32(truncatingIfNeeded: positions[fixup.label] - fixup.position - 4)
      UnsafeMutableRawPointer(base + fixup.position).storeBytes(of: distance, as: Int32.self)
    }
    fixups.removeAll(keepingCapacity: true)
  }

  package mutating func jump(_ label: Label) {
    byte(0xE9)
    relative(label)
  }

  /// Jcc, the condition as encoded (0 to 15).
  package mutating func jump(if condition: UInt8, _ label: Label) {
    emit(0x0F, 0x80 | condition)
    relative(label)
  }

  /// A jump where RCX (ECX, if `short`) is 0, or where it is not. No flag changes.
  package mutating func jump(ifCountIsZero zero: Bool, short: Bool, _ label: Label) {
    if short { byte(0x67) }
    // JRCXZ reaches 127 bytes: to the jump or past it.
    if zero { emit(0xE3, 0x02, 0xEB, 0x05) } else { emit(0xE3, 0x05) }
    jump(label)
  }

  package mutating func jump(to address: UInt) {
    byte(0xE9)
    relative(to: address)
  }

  package mutating func jump(if condition: UInt8, to address: UInt) {
    emit(0x0F, 0x80 | condition)
    relative(to: address)
  }

  package mutating func call(_ address: UInt) {
    byte(0xE8)
    relative(to: address)
  }

  private mutating func relative(to address: UInt) {
    let next = origin &+ UInt(position) &+ 4
    externals.append(position)
    int32(Int32(truncatingIfNeeded: Int(bitPattern: address &- next)))
  }

  // MARK: ModRM

  /// Legacy encoding of an opcode with a register (or opcode extension) and a place.
  package mutating func emit(_ form: Form, reg: UInt8, rm: Place) {
    if form.lock { byte(0xF0) }
    if form.operandSize16 { byte(0x66) }
    if form.repeatPrefix != 0 { byte(form.repeatPrefix) }
    let rex = (form.wide ? 8 : 0) | (reg &>> 3) << 2 | indexBit(rm) << 1 | baseBit(rm)
    if rex != 0 || form.forceREX { byte(0x40 | rex) }
    if form.map != .one { byte(0x0F) }
    if form.map == .three38 { byte(0x38) }
    if form.map == .three3A { byte(0x3A) }
    byte(form.opcode)
    modRM(reg, rm)
  }

  /// VEX encoding with 128-bit length: BMI1 and BMI2. `prefix` as VEX.pp numbers it.
  package mutating func emitVEX(
    _ form: Form, prefix: UInt8, reg: UInt8, vvvv: UInt8, rm: Place
  ) {
    byte(0xC4)
    byte(
      (reg & 8 == 0 ? 0x80 : 0) | (indexBit(rm) == 0 ? 0x40 : 0) | (baseBit(rm) == 0 ? 0x20 : 0)
        | form.map.rawValue)
    byte((form.wide ? 0x80 : 0) | (~vvvv & 0xF) << 3 | prefix)
    byte(form.opcode)
    modRM(reg, rm)
  }

  private func baseBit(_ rm: Place) -> UInt8 {
    ((rm.register ?? rm.base)?.rawValue ?? 0) &>> 3
  }

  private func indexBit(_ rm: Place) -> UInt8 { (rm.index?.rawValue ?? 0) &>> 3 }

  private mutating func modRM(_ reg: UInt8, _ rm: Place) {
    let field = (reg & 7) << 3
    if let register = rm.register {
      byte(0xC0 | field | register.rawValue & 7)
      return
    }
    guard let base = rm.base else {
      byte(field | 4)
      byte(rm.scale << 6 | (rm.index.map { $0.rawValue & 7 } ?? 4) << 3 | 5)
      int32(rm.displacement)
      return
    }
    let isShort = rm.displacement >= -128 && rm.displacement <= 127
    let isNone = rm.displacement == 0 && base.rawValue & 7 != 5
    let mode: UInt8 = isNone ? 0 : isShort ? 0x40 : 0x80
    if rm.index != nil || base.rawValue & 7 == 4 {
      byte(mode | field | 4)
      byte(rm.scale << 6 | (rm.index.map { $0.rawValue & 7 } ?? 4) << 3 | base.rawValue & 7)
    } else {
      byte(mode | field | base.rawValue & 7)
    }
    if isNone { return }
    if isShort {
      byte(UInt8(truncatingIfNeeded: rm.displacement))
    } else {
      int32(rm.displacement)
    }
  }
}
