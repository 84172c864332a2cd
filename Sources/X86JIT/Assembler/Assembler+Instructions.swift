// SPDX-License-Identifier: Apache-2.0
//
// The instructions of the translator's own sequences. Those named `64` or without a number are
// 64-bit operations.

extension Assembler {
  // MARK: Moves: no flags

  package mutating func move(_ to: HostRegister, _ from: HostRegister) {
    emit(Form(0x8B, wide: true), reg: to.rawValue, rm: .register(from))
  }

  package mutating func load(_ to: HostRegister, _ from: Place) {
    emit(Form(0x8B, wide: true), reg: to.rawValue, rm: from)
  }

  package mutating func store(_ to: Place, _ from: HostRegister) {
    emit(Form(0x89, wide: true), reg: from.rawValue, rm: to)
  }

  package mutating func load32(_ to: HostRegister, _ from: Place) {
    emit(Form(0x8B), reg: to.rawValue, rm: from)
  }

  package mutating func store32(_ to: Place, _ from: HostRegister) {
    emit(Form(0x89), reg: from.rawValue, rm: to)
  }

  package mutating func store32(_ to: Place, immediate value: Int32) {
    emit(Form(0xC7), reg: 0, rm: to)
    int32(value)
  }

  package mutating func store16(_ to: Place, _ from: HostRegister) {
    var form = Form(0x89)
    form.operandSize16 = true
    emit(form, reg: from.rawValue, rm: to)
  }

  package mutating func store8(_ to: Place, immediate value: UInt8) {
    emit(Form(0xC6), reg: 0, rm: to)
    byte(value)
  }

  /// Zero-extended.
  package mutating func loadWord(_ to: HostRegister, _ from: Place) {
    emit(Form(0xB7, map: .two), reg: to.rawValue, rm: from)
  }

  package mutating func lea(_ to: HostRegister, _ from: Place) {
    emit(Form(0x8D, wide: true), reg: to.rawValue, rm: from)
  }

  /// The address computed in 32 bits, zero-extended.
  package mutating func lea32(_ to: HostRegister, _ from: Place) {
    emit(Form(0x8D), reg: to.rawValue, rm: from)
  }

  /// The shortest form that loads the value.
  package mutating func move(_ to: HostRegister, immediate value: UInt64) {
    if value <= 0xFFFF_FFFF {
      if to.rawValue >= 8 { byte(0x41) }
      byte(0xB8 | to.rawValue & 7)
      append(value, 4)
    } else if Int64(bitPattern: value) >= Int64(Int32.min) && Int64(bitPattern: value) < 0 {
      emit(Form(0xC7, wide: true), reg: 0, rm: .register(to))
      append(value, 4)
    } else {
      byte(to.rawValue >= 8 ? 0x49 : 0x48)
      byte(0xB8 | to.rawValue & 7)
      append(value, 8)
    }
  }

  /// A sign-extended 32-bit immediate to a 64-bit place.
  package mutating func store(_ to: Place, immediate value: Int32) {
    emit(Form(0xC7, wide: true), reg: 0, rm: to)
    int32(value)
  }

  package mutating func rorx(_ to: HostRegister, _ from: HostRegister, _ count: UInt8) {
    emitVEX(
      Form(0xF0, map: .three3A, wide: true), prefix: 3, reg: to.rawValue, vvvv: 0,
      rm: .register(from))
    byte(count)
  }

  /// PEXT: the bits of a register that the mask names, moved together.
  package mutating func extractBits(_ register: HostRegister, _ mask: HostRegister) {
    emitVEX(
      Form(0xF5, map: .three38, wide: true), prefix: 2, reg: register.rawValue,
      vvvv: register.rawValue, rm: .register(mask))
  }

  package enum ShiftDirection { case left, right }

  /// SHLX, SHRX of a 64-bit register by another.
  package mutating func shiftWithoutFlags(
    _ direction: ShiftDirection, _ register: HostRegister, by count: HostRegister
  ) {
    emitVEX(
      Form(0xF7, map: .three38, wide: true), prefix: direction == .left ? 1 : 3,
      reg: register.rawValue, vvvv: count.rawValue, rm: .register(register))
  }

  // MARK: Arithmetic: flags

  /// ANDN: to = ~first & second.
  package mutating func andNot(
    _ to: HostRegister, _ first: HostRegister, _ second: HostRegister
  ) {
    emitVEX(
      Form(0xF2, map: .three38, wide: true), prefix: 0, reg: to.rawValue, vvvv: first.rawValue,
      rm: .register(second))
  }

  package mutating func exclusiveOr(_ to: Place, _ from: HostRegister) {
    emit(Form(0x31, wide: true), reg: from.rawValue, rm: to)
  }

  /// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP by their number in the opcode.
  package enum Arithmetic: UInt8 { case add, or, adc, sbb, and, sub, xor, cmp }

  package mutating func arithmetic(_ kind: Arithmetic, _ to: HostRegister, _ from: Place) {
    emit(Form(kind.rawValue << 3 | 3, wide: true), reg: to.rawValue, rm: from)
  }

  package mutating func arithmetic32(_ kind: Arithmetic, _ to: HostRegister, _ from: Place) {
    emit(Form(kind.rawValue << 3 | 3), reg: to.rawValue, rm: from)
  }

  package mutating func arithmetic(
    _ kind: Arithmetic, _ to: Place, immediate: Int32, wide: Bool = true
  ) {
    if immediate >= -128 && immediate <= 127 {
      emit(Form(0x83, wide: wide), reg: kind.rawValue, rm: to)
      byte(UInt8(truncatingIfNeeded: immediate))
    } else {
      emit(Form(0x81, wide: wide), reg: kind.rawValue, rm: to)
      int32(immediate)
    }
  }

  /// IMUL with an immediate; the upper half becomes 0.
  package mutating func multiply32(
    _ to: HostRegister, _ from: HostRegister, _ factor: Int32
  ) {
    emit(Form(0x69), reg: to.rawValue, rm: .register(from))
    int32(factor)
  }

  package mutating func multiply(_ to: HostRegister, _ from: HostRegister, _ factor: Int32) {
    emit(Form(0x69, wide: true), reg: to.rawValue, rm: .register(from))
    int32(factor)
  }

  /// DIV of EDX:EAX.
  package mutating func divide32(_ by: HostRegister) {
    emit(Form(0xF7), reg: 6, rm: .register(by))
  }

  package mutating func negate(_ register: HostRegister) {
    emit(Form(0xF7, wide: true), reg: 3, rm: .register(register))
  }

  /// CMOVcc. No flag changes.
  package mutating func move(if condition: UInt8, _ to: HostRegister, _ from: Place) {
    emit(Form(0x40 | condition, map: .two, wide: true), reg: to.rawValue, rm: from)
  }

  /// CMOVB. No flag changes.
  package mutating func moveIfBelow(_ to: HostRegister, _ from: HostRegister) {
    emit(Form(0x42, map: .two, wide: true), reg: to.rawValue, rm: .register(from))
  }

  package mutating func shiftRight(_ register: HostRegister, _ count: UInt8) {
    emit(Form(0xC1, wide: true), reg: 5, rm: .register(register))
    byte(count)
  }

  package mutating func shiftRightSigned(_ register: HostRegister, _ count: UInt8) {
    emit(Form(0xC1, wide: true), reg: 7, rm: .register(register))
    byte(count)
  }

  package mutating func shiftLeft(_ register: HostRegister, _ count: UInt8) {
    emit(Form(0xC1, wide: true), reg: 4, rm: .register(register))
    byte(count)
  }

  /// TEST of a 32-bit place with an immediate.
  package mutating func test32(_ place: Place, immediate: UInt32) {
    emit(Form(0xF7), reg: 0, rm: place)
    int32(Int32(bitPattern: immediate))
  }

  package mutating func shiftLeft32(_ register: HostRegister, _ count: UInt8) {
    emit(Form(0xC1), reg: 4, rm: .register(register))
    byte(count)
  }

  package mutating func test(_ register: HostRegister) {
    emit(Form(0x85, wide: true), reg: register.rawValue, rm: .register(register))
  }

  package mutating func test32(_ register: HostRegister) {
    emit(Form(0x85), reg: register.rawValue, rm: .register(register))
  }

  /// Adds 1 to a 64-bit number of the program's. Clobbers R13 and R14, and no flag.
  package mutating func count(at address: UInt) {
    move(.r14, immediate: UInt64(address))
    count(at: .memory(.r14))
  }

  /// Adds 1 to a 64-bit number. Clobbers R13, and no flag.
  package mutating func count(at place: Place) {
    load(.r13, place)
    lea(.r13, .memory(.r13, 1))
    store(place, .r13)
  }

  // MARK: Order

  package mutating func loadFence() { emit(0x0F, 0xAE, 0xE8) }

  package mutating func storeFence() { emit(0x0F, 0xAE, 0xF8) }

  // MARK: Control and stack

  package mutating func jump(_ register: HostRegister) {
    emit(Form(0xFF), reg: 4, rm: .register(register))
  }

  package mutating func call(_ register: HostRegister) {
    emit(Form(0xFF), reg: 2, rm: .register(register))
  }

  package mutating func ret() { byte(0xC3) }

  package mutating func push(_ register: HostRegister) {
    if register.rawValue >= 8 { byte(0x41) }
    byte(0x50 | register.rawValue & 7)
  }

  package mutating func pop(_ register: HostRegister) {
    if register.rawValue >= 8 { byte(0x41) }
    byte(0x58 | register.rawValue & 7)
  }

  // MARK: Flags

  /// Stores OF and the flags of LAHF as 16 bits, by way of `temporary`. No flag changes.
  package mutating func saveFlags(_ to: Place, temporary: HostRegister) {
    move(temporary, .rax)
    emit(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
    var form = Form(0x89)
    form.operandSize16 = true
    emit(form, reg: 0, rm: to)
    move(.rax, temporary)
  }

  /// The reverse of `saveFlags`.
  package mutating func restoreFlags(_ from: Place, temporary: HostRegister) {
    move(temporary, .rax)
    emit(Form(0xB7, map: .two), reg: 0, rm: from)  // movzx eax, word
    emit(0x04, 0x7F, 0x9E)  // add al, 0x7F: OF where it was 1; sahf
    move(.rax, temporary)
  }
}
