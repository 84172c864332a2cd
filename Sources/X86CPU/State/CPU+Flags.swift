// SPDX-License-Identifier: Apache-2.0
//
// Lazy arithmetic flags. An operation stores its result and its carries; a flag is computed only
// when something reads it.
//
//     flagResult   the result, sign-extended to 64 bits:  ZF = (result == 0), SF = its sign,
//                  PF = parity of its low byte
//     flagAux      bit 63     CF: carry out of the top bit
//                  bit 62     carry into the top bit;  OF = bit 63 ^ bit 62
//                  bit 3      AF: carry out of bit 3
//                  bits 15:8  exclusive-or into the low byte before parity is taken
//                  bit 16     exclusive-or into SF
//
// The last two allow any combination of flags (POPF, SAHF), even if no arithmetic result has it.

import X86

package enum FlagAux {
  package static let cf: UInt64 = 1 << 63
  package static let carryIn: UInt64 = 1 << 62
  package static let af: UInt64 = 1 << 3
  package static let signFlip: UInt64 = 1 << 16
  package static let carries: UInt64 = cf | carryIn | af
}

extension CPU {
  @inline(__always) package var cf: Bool { Int64(bitPattern: s.pointee.flagAux) < 0 }
  @inline(__always) package var zf: Bool { s.pointee.flagResult == 0 }
  @inline(__always) package var sf: Bool {
    (s.pointee.flagResult ^ (s.pointee.flagAux << 47)) >> 63 != 0
  }
  @inline(__always) package var of: Bool {
    let aux = s.pointee.flagAux
    return Int64(bitPattern: aux ^ (aux << 1)) < 0
  }
  @inline(__always) package var af: Bool { s.pointee.flagAux & FlagAux.af != 0 }
  @inline(__always) package var pf: Bool {
    let byte = UInt8(truncatingIfNeeded: s.pointee.flagResult ^ (s.pointee.flagAux >> 8))
    return byte.nonzeroBitCount & 1 == 0
  }

  /// Flags of a result with the given vector of carries out of each bit.
  @inline(__always) package func setFlags<T: FixedWidthInteger & UnsignedInteger>(
    result: T, carries: T
  ) {
    let width = UInt64(T.bitWidth)
    let wide = UInt64(truncatingIfNeeded: carries)
    s.pointee.flagResult = signExtended(result)
    s.pointee.flagAux =
      (wide &<< (64 &- width)) & (FlagAux.cf | FlagAux.carryIn) | wide & FlagAux.af
  }

  /// Flags of a logical result: CF, OF and AF are clear.
  @inline(__always) package func setLogicFlags<T: FixedWidthInteger & UnsignedInteger>(
    result: T
  ) {
    s.pointee.flagResult = signExtended(result)
    s.pointee.flagAux = 0
  }

  /// Replaces CF and OF and keeps the others (rotates; shifts set the others separately).
  @inline(__always) package func setCarryOverflow(cf: Bool, of: Bool) {
    let aux = s.pointee.flagAux & ~(FlagAux.cf | FlagAux.carryIn)
    s.pointee.flagAux = aux | (cf ? FlagAux.cf : 0) | (cf != of ? FlagAux.carryIn : 0)
  }

  /// Replaces only CF.
  @inline(__always) package func setCarry(_ value: Bool) { setCarryOverflow(cf: value, of: of) }

  @inline(__always) func signExtended<T: FixedWidthInteger & UnsignedInteger>(
    _ value: T
  ) -> UInt64 {
    let shift = UInt64(64 - T.bitWidth)
    return UInt64(
      bitPattern: Int64(bitPattern: UInt64(truncatingIfNeeded: value) &<< shift) &>> Int64(shift))
  }

  /// The six arithmetic flags in RFLAGS's positions. Without branches: every exception and every
  /// handler that reads flags uses this.
  @inline(__always) package var arithmeticFlags: UInt64 {
    get {
      let (result, aux) = (s.pointee.flagResult, s.pointee.flagAux)
      let byte = UInt8(truncatingIfNeeded: result ^ (aux >> 8))
      let parity = UInt64(truncatingIfNeeded: ~byte.nonzeroBitCount & 1)
      let zero: UInt64 = result == 0 ? 1 : 0
      let sign = (result ^ (aux << 47)) >> 63
      let overflow = (aux ^ (aux << 1)) >> 63
      return aux >> 63 | parity << 2 | (aux & FlagAux.af) << 1 | zero << 6 | sign << 7
        | overflow << 11
    }
    nonmutating set {
      let (cf, zero) = (newValue & 1, (newValue >> 6) & 1)
      let carryIn = cf ^ (newValue >> 11) & 1
      // The low byte of result 0 has even parity, that of 1 odd.
      let parityFlip = zero ^ (newValue >> 2) & 1
      s.pointee.flagResult = zero ^ 1
      s.pointee.flagAux =
        cf << 63 | carryIn << 62 | (newValue & RFLAGS.af.rawValue) >> 1 | parityFlip << 8
        | ((newValue >> 7) & 1) << 16
    }
  }

  /// The whole of RFLAGS. Setting it does not call `updateMode()`: TF, VM, AC and RF need that.
  package var flags: UInt64 {
    get { s.pointee.rflags | arithmeticFlags }
    nonmutating set {
      s.pointee.rflags =
        newValue & RFLAGS.all.rawValue & ~RFLAGS.arithmetic.rawValue | RFLAGS.fixed.rawValue
      arithmeticFlags = newValue
    }
  }
}
