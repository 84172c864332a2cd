// SPDX-License-Identifier: Apache-2.0
//
// FNSTENV, FLDENV, FNSAVE, FRSTOR (SDM volume 1, "Saving the x87 FPU's State with FSTENV/FNSTENV
// and FSAVE/FNSAVE"). They convert from and to the FXSAVE image in which the state is kept.
//
//     byte  32-bit protected     32-bit real                16-bit protected   16-bit real
//     0     FCW                  FCW                        FCW                FCW
//     4/2   FSW                  FSW                        FSW                FSW
//     8/4   FTW (full)           FTW                        FTW                FTW
//     12/6  FIP                  FIP 15:0                   FIP                FIP 15:0
//     16/8  FOP << 16 | FCS      FIP 31:16 << 12 |  FOP     FCS               FIP 19:16 << 12 | FOP
//     20/10 FDP                  FDP 15:0                   FDP                FDP 15:0
//     24/12 FDS                  FDP 31:16 << 12            FDS                FDP 19:16 << 12
//
// FCS and FDS are 0, as on processors that deprecate them.

import X86
import X86Decoder

enum X87Environment {
  static func register(_ t: inout LoweringTable) {
    t[.fnstenv] = .single { c, i in
      let c = CPU(c)
      return attempt(c) { () throws(GuestException) in
        try X87ControlGate.check(c)
        try c.storeEnvironment(Handlers.op(i), withRegisters: false)
        c.fcw |= X87Status.exceptions
        c.updateExceptionSummary()
      }
    }
    t[.fnsave] = .single { c, i in
      let c = CPU(c)
      return attempt(c) { () throws(GuestException) in
        try X87ControlGate.check(c)
        try c.storeEnvironment(Handlers.op(i), withRegisters: true)
        c.initializeX87()
      }
    }
    t[.fldenv] = .single { c, i in
      let c = CPU(c)
      return attempt(c) { () throws(GuestException) in
        try X87Gate.check(c)
        try c.loadEnvironment(Handlers.op(i), withRegisters: false)
      }
    }
    t[.frstor] = .single { c, i in
      let c = CPU(c)
      return attempt(c) { () throws(GuestException) in
        try X87Gate.check(c)
        try c.loadEnvironment(Handlers.op(i), withRegisters: true)
      }
    }
  }
}

extension CPU {
  private var usesRealFormat: Bool { !isProtected || isVirtual8086 }

  fileprivate func storeEnvironment(
    _ i: MicroOpPointer, withRegisters: Bool
  ) throws(GuestException) {
    let isShort = i.pointee.operandSize == 2
    let size = isShort ? 14 : 28
    let total = size + (withRegisters ? 80 : 0)
    let address = try linearAddress(i, size: total, .write)
    try checkAlignment(address, to: isShort ? 2 : 4)
    let image = bounce
    for (n, word) in environmentWords(isShort: isShort).enumerated() {
      if isShort {
        image.storeBytes(of: UInt16(truncatingIfNeeded: word), toByteOffset: n * 2, as: UInt16.self)
      } else {
        image.storeBytes(of: word, toByteOffset: n * 4, as: UInt32.self)
      }
    }
    if withRegisters {
      for n in 0..<8 { (image + size + n * 10).copyMemory(from: st(n), byteCount: 10) }
    }
    try storeBytes(image, at: address, size: total)
  }

  private func environmentWords(isShort: Bool) -> [UInt32] {
    let ip = UInt32(truncatingIfNeeded: fip)
    let dp = UInt32(truncatingIfNeeded: fdp)
    let op = UInt32(fop)
    let reserved: UInt32 = 0xFFFF_0000
    let control = [UInt32(fcw) | reserved, UInt32(fsw) | reserved, UInt32(fullTagWord) | reserved]
    if usesRealFormat {
      let high: UInt32 = isShort ? 0xF000 : 0x0FFF_F000
      let pad = isShort ? 0 : reserved
      return control + [
        ip & 0xFFFF | pad, ip >> 4 & high | op, dp & 0xFFFF | pad, dp >> 4 & high,
      ]
    }
    return control + (isShort ? [ip, 0, dp, 0] : [ip, op << 16, dp, reserved])
  }

  fileprivate func loadEnvironment(
    _ i: MicroOpPointer, withRegisters: Bool
  ) throws(GuestException) {
    let isShort = i.pointee.operandSize == 2
    let size = isShort ? 14 : 28
    let total = size + (withRegisters ? 80 : 0)
    let address = try linearAddress(i, size: total)
    try checkAlignment(address, to: isShort ? 2 : 4)
    let image = try snapshot(address, size: total)
    func word(_ n: Int) -> UInt32 {
      isShort
        ? UInt32(image.loadUnaligned(fromByteOffset: n * 2, as: UInt16.self))
        : image.loadUnaligned(fromByteOffset: n * 4, as: UInt32.self)
    }
    let newStatus = UInt16(truncatingIfNeeded: word(1))
    if withRegisters {
      for n in 0..<8 {
        st(n).initializeMemory(as: UInt8.self, repeating: 0, count: 16)
        st(n).copyMemory(from: image + size + n * 10, byteCount: 10)
      }
    } else {
      let change = (newStatus & X87Status.top) &- (fsw & X87Status.top)
      rotateStack(by: Int(change >> X87Status.topShift & 7))
    }
    fcw = UInt16(truncatingIfNeeded: word(0))
    fsw = newStatus
    setTags(UInt16(truncatingIfNeeded: word(2)))
    setPointers(isShort: isShort, word(3), word(4), word(5), word(6))
    normalizeX87()
  }

  private func setPointers(
    isShort: Bool, _ ip: UInt32, _ code: UInt32, _ dp: UInt32, _ data: UInt32
  ) {
    if usesRealFormat {
      let high: UInt32 = isShort ? 0xF000 : 0x0FFF_F000
      fip = UInt64(ip & 0xFFFF | (code & high) << 4)
      fdp = UInt64(dp & 0xFFFF | (data & high) << 4)
      fop = UInt16(truncatingIfNeeded: code & 0x7FF)
    } else {
      fip = UInt64(ip)
      fdp = UInt64(dp)
      fop = isShort ? 0 : UInt16(truncatingIfNeeded: code >> 16 & 0x7FF)
    }
  }

  /// Rotates ST(by) to ST(0), in the image only.
  private func rotateStack(by: Int) {
    if by == 0 { return }
    withUnsafeTemporaryAllocation(byteCount: 128, alignment: 16) { copy in
      let base = copy.baseAddress.unsafelyUnwrapped
      base.copyMemory(from: st(0), byteCount: 128)
      for n in 0..<8 { st(n).copyMemory(from: base + ((n &+ by) & 7) * 16, byteCount: 16) }
    }
  }

  /// Two bits for each physical register: valid, zero, special, empty.
  package var fullTagWord: UInt16 {
    let top = Int(fsw >> X87Status.topShift & 7)
    var tags: UInt16 = 0
    for physical in 0..<8 {
      let tag = ftw >> UInt8(physical) & 1 == 0 ? 3 : contentTag(st((physical &- top) & 7))
      tags |= tag << UInt16(physical * 2)
    }
    return tags
  }

  private func contentTag(_ register: UnsafeMutableRawPointer) -> UInt16 {
    let mantissa = register.load(as: UInt64.self)
    let exponent = register.load(fromByteOffset: 8, as: UInt16.self) & 0x7FFF
    if exponent == 0x7FFF { return 2 }
    if exponent == 0 { return mantissa == 0 ? 1 : 2 }
    return mantissa >> 63 != 0 ? 0 : 2
  }

  private func setTags(_ tags: UInt16) {
    var used: UInt8 = 0
    for physical in 0..<8 as Range<UInt8> where tags >> (UInt16(physical) * 2) & 3 != 3 {
      used |= 1 << physical
    }
    ftw = used
  }
}
