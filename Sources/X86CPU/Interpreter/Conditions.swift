// SPDX-License-Identifier: Apache-2.0
//
// The sixteen conditions of Jcc, SETcc and CMOVcc.

import X86
import X86Decoder

protocol Condition {
  static func holds(_ c: CPU) -> Bool
}

extension CPU {
  /// SF != OF.
  @inline(__always) var lessThan: Bool {
    let aux = s.pointee.flagAux
    return Int64(bitPattern: s.pointee.flagResult ^ (aux << 47) ^ aux ^ (aux << 1)) < 0
  }
}

enum Conditions {
  enum Overflow: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { c.of }
  }
  enum NotOverflow: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { !(c.of) }
  }
  enum Below: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { c.cf }
  }
  enum NotBelow: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { !(c.cf) }
  }
  enum Zero: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { c.zf }
  }
  enum NotZero: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { !(c.zf) }
  }
  enum BelowOrEqual: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { c.cf || c.zf }
  }
  enum NotBelowOrEqual: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { !(c.cf || c.zf) }
  }
  enum Sign: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { c.sf }
  }
  enum NotSign: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { !(c.sf) }
  }
  enum Parity: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { c.pf }
  }
  enum NotParity: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { !(c.pf) }
  }
  enum Less: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { c.lessThan }
  }
  enum NotLess: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { !(c.lessThan) }
  }
  enum LessOrEqual: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { c.zf || c.lessThan }
  }
  enum NotLessOrEqual: Condition {
    @inline(__always) static func holds(_ c: CPU) -> Bool { !(c.zf || c.lessThan) }
  }
}
