// SPDX-License-Identifier: Apache-2.0
//
// AAA, AAS, AAM, AAD, DAA, DAS, SALC, BOUND, and the instructions that do nothing.

import X86
import X86Decoder

extension CPU {
  fileprivate var al: UInt8 {
    get { raw.load(as: UInt8.self) }
    nonmutating set { raw.storeBytes(of: newValue, as: UInt8.self) }
  }
  fileprivate var ah: UInt8 {
    get { raw.load(fromByteOffset: 1, as: UInt8.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 1, as: UInt8.self) }
  }
  fileprivate var ax: UInt16 {
    get { raw.load(as: UInt16.self) }
    nonmutating set { raw.storeBytes(of: newValue, as: UInt16.self) }
  }

  /// SF, ZF and PF of a byte, with the given CF and AF; OF is undefined and clear.
  fileprivate func setDecimalFlags(_ value: UInt8, cf: Bool, af: Bool) {
    setLogicFlags(result: value)
    var flags = arithmeticFlags
    if cf { flags |= RFLAGS.cf.rawValue }
    if af { flags |= RFLAGS.af.rawValue }
    arithmeticFlags = flags
  }

  fileprivate func asciiAdjust(_ delta: UInt16) {
    let adjust = al & 15 > 9 || af
    if adjust { ax = ax &+ delta }
    al &= 15
    setDecimalFlags(al, cf: adjust, af: adjust)
  }

  fileprivate func decimalAdjust(subtract: Bool) {
    let (old, oldCF) = (al, cf)
    let low = old & 15 > 9 || af
    var carry = false
    if low {
      al = subtract ? old &- 6 : old &+ 6
      carry = oldCF || (subtract ? old < 6 : old > 0xFF - 6)
    }
    let high = old > 0x99 || oldCF
    if high {
      al = subtract ? al &- 0x60 : al &+ 0x60
      carry = true
    } else if !subtract {
      carry = false
    }
    setDecimalFlags(al, cf: carry, af: low)
  }
}

enum DecimalAdjust {
  static func register(_ t: inout LoweringTable) {
    t[.aaa] = .single { c, _ in
      CPU(c).asciiAdjust(0x106)
      return Step.next
    }
    t[.aas] = .single { c, _ in
      let c = CPU(c)
      c.asciiAdjust(0 &- 0x106)
      return Step.next
    }
    t[.daa] = .single { c, _ in
      CPU(c).decimalAdjust(subtract: false)
      return Step.next
    }
    t[.das] = .single { c, _ in
      CPU(c).decimalAdjust(subtract: true)
      return Step.next
    }
    t[.aam] = .single { c, i in
      let c = CPU(c)
      let base = UInt8(truncatingIfNeeded: Handlers.op(i).pointee.immediate)
      if base == 0 { return c.raise(.divideError) }
      let value = c.al
      c.ah = value / base
      c.al = value % base
      c.setLogicFlags(result: c.al)
      return Step.next
    }
    t[.aad] = .single { c, i in
      let c = CPU(c)
      let base = UInt8(truncatingIfNeeded: Handlers.op(i).pointee.immediate)
      let value = c.al &+ c.ah &* base
      c.ax = UInt16(value)
      c.setLogicFlags(result: value)
      return Step.next
    }
    t[.salc] = .single { c, _ in
      let c = CPU(c)
      c.al = c.cf ? 0xFF : 0
      return Step.next
    }
    t[.bound] = .single(bound)
    for mnemonic in [Mnemonic.nop, .endbr32, .endbr64] {
      t[mnemonic] = .single { _, _ in Step.next }
    }
  }
}

private let bound: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let size = i.pointee.operandSize
    let address = try c.linearAddress(i, size: Int(size) * 2)
    let low = try c.load(address, size: size)
    let high = try c.load(address &+ UInt64(size), size: size)
    let (index, lower, upper): (Int64, Int64, Int64)
    if size == 2 {
      index = Int64(i.pointee.dst.load(as: Int16.self))
      (lower, upper) = (
        Int64(Int16(truncatingIfNeeded: low)), Int64(Int16(truncatingIfNeeded: high))
      )
    } else {
      index = Int64(i.pointee.dst.load(as: Int32.self))
      (lower, upper) = (
        Int64(Int32(truncatingIfNeeded: low)), Int64(Int32(truncatingIfNeeded: high))
      )
    }
    if index < lower || index > upper { throw GuestException(.boundRange) }
  }
}
