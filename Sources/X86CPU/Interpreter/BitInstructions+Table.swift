// SPDX-License-Identifier: Apache-2.0
//
// The handlers of the bit instructions, by operand size and form.

import X86
import X86Decoder

enum BitInstructions {
  static func register(_ t: inout LoweringTable) {
    registerBitTests(&t)
    registerScans(&t)
    registerBMI(&t)
    registerCRC(&t)
  }

  /// By operand 0's location, whether the offset is a register (a bit string), and LOCK.
  private static func bitRule(
    register: WidthHandlers, memory: WidthHandlers, string: WidthHandlers, locked: WidthHandlers,
    lockedString: WidthHandlers
  ) -> LoweringRule {
    .custom { i, _, _ in
      if i.memoryOperand == nil { return register[i.operandSize] }
      let isString = i.operands[1].kind == .general
      if i.prefixes.contains(.lock) {
        return (isString ? lockedString : locked)[i.operandSize]
      }
      return (isString ? string : memory)[i.operandSize]
    }
  }

  private static func registerBitTests(_ t: inout LoweringTable) {
    // Rows: bit tests
    t[.bt] = bitRule(
      register: .init(
        nil,
        { bitR(UInt16.self, .test, $0, $1) },
        { bitR(UInt32.self, .test, $0, $1) },
        { bitR(UInt64.self, .test, $0, $1) }),
      memory: .init(
        nil,
        { bitM(UInt16.self, .test, string: false, locked: false, $0, $1) },
        { bitM(UInt32.self, .test, string: false, locked: false, $0, $1) },
        { bitM(UInt64.self, .test, string: false, locked: false, $0, $1) }),
      string: .init(
        nil,
        { bitM(UInt16.self, .test, string: true, locked: false, $0, $1) },
        { bitM(UInt32.self, .test, string: true, locked: false, $0, $1) },
        { bitM(UInt64.self, .test, string: true, locked: false, $0, $1) }),
      locked: .init(),
      lockedString: .init())
    t[.bts] = bitRule(
      register: .init(
        nil,
        { bitR(UInt16.self, .set, $0, $1) },
        { bitR(UInt32.self, .set, $0, $1) },
        { bitR(UInt64.self, .set, $0, $1) }),
      memory: .init(
        nil,
        { bitM(UInt16.self, .set, string: false, locked: false, $0, $1) },
        { bitM(UInt32.self, .set, string: false, locked: false, $0, $1) },
        { bitM(UInt64.self, .set, string: false, locked: false, $0, $1) }),
      string: .init(
        nil,
        { bitM(UInt16.self, .set, string: true, locked: false, $0, $1) },
        { bitM(UInt32.self, .set, string: true, locked: false, $0, $1) },
        { bitM(UInt64.self, .set, string: true, locked: false, $0, $1) }),
      locked: .init(
        nil,
        { bitM(UInt16.self, .set, string: false, locked: true, $0, $1) },
        { bitM(UInt32.self, .set, string: false, locked: true, $0, $1) },
        { bitM(UInt64.self, .set, string: false, locked: true, $0, $1) }),
      lockedString: .init(
        nil,
        { bitM(UInt16.self, .set, string: true, locked: true, $0, $1) },
        { bitM(UInt32.self, .set, string: true, locked: true, $0, $1) },
        { bitM(UInt64.self, .set, string: true, locked: true, $0, $1) }))
    t[.btr] = bitRule(
      register: .init(
        nil,
        { bitR(UInt16.self, .reset, $0, $1) },
        { bitR(UInt32.self, .reset, $0, $1) },
        { bitR(UInt64.self, .reset, $0, $1) }),
      memory: .init(
        nil,
        { bitM(UInt16.self, .reset, string: false, locked: false, $0, $1) },
        { bitM(UInt32.self, .reset, string: false, locked: false, $0, $1) },
        { bitM(UInt64.self, .reset, string: false, locked: false, $0, $1) }),
      string: .init(
        nil,
        { bitM(UInt16.self, .reset, string: true, locked: false, $0, $1) },
        { bitM(UInt32.self, .reset, string: true, locked: false, $0, $1) },
        { bitM(UInt64.self, .reset, string: true, locked: false, $0, $1) }),
      locked: .init(
        nil,
        { bitM(UInt16.self, .reset, string: false, locked: true, $0, $1) },
        { bitM(UInt32.self, .reset, string: false, locked: true, $0, $1) },
        { bitM(UInt64.self, .reset, string: false, locked: true, $0, $1) }),
      lockedString: .init(
        nil,
        { bitM(UInt16.self, .reset, string: true, locked: true, $0, $1) },
        { bitM(UInt32.self, .reset, string: true, locked: true, $0, $1) },
        { bitM(UInt64.self, .reset, string: true, locked: true, $0, $1) }))
    t[.btc] = bitRule(
      register: .init(
        nil,
        { bitR(UInt16.self, .complement, $0, $1) },
        { bitR(UInt32.self, .complement, $0, $1) },
        { bitR(UInt64.self, .complement, $0, $1) }),
      memory: .init(
        nil,
        { bitM(UInt16.self, .complement, string: false, locked: false, $0, $1) },
        { bitM(UInt32.self, .complement, string: false, locked: false, $0, $1) },
        { bitM(UInt64.self, .complement, string: false, locked: false, $0, $1) }),
      string: .init(
        nil,
        { bitM(UInt16.self, .complement, string: true, locked: false, $0, $1) },
        { bitM(UInt32.self, .complement, string: true, locked: false, $0, $1) },
        { bitM(UInt64.self, .complement, string: true, locked: false, $0, $1) }),
      locked: .init(
        nil,
        { bitM(UInt16.self, .complement, string: false, locked: true, $0, $1) },
        { bitM(UInt32.self, .complement, string: false, locked: true, $0, $1) },
        { bitM(UInt64.self, .complement, string: false, locked: true, $0, $1) }),
      lockedString: .init(
        nil,
        { bitM(UInt16.self, .complement, string: true, locked: true, $0, $1) },
        { bitM(UInt32.self, .complement, string: true, locked: true, $0, $1) },
        { bitM(UInt64.self, .complement, string: true, locked: true, $0, $1) }))
    // End of rows
  }

  private static func registerScans(_ t: inout LoweringTable) {
    // Rows: scans
    t[.bsf] = .forms(
      register: .init(
        nil,
        { unaryBits(BitScanForward.self, UInt16.self, memory: false, $0, $1) },
        { unaryBits(BitScanForward.self, UInt32.self, memory: false, $0, $1) },
        { unaryBits(BitScanForward.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        { unaryBits(BitScanForward.self, UInt16.self, memory: true, $0, $1) },
        { unaryBits(BitScanForward.self, UInt32.self, memory: true, $0, $1) },
        { unaryBits(BitScanForward.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.bsr] = .forms(
      register: .init(
        nil,
        { unaryBits(BitScanReverse.self, UInt16.self, memory: false, $0, $1) },
        { unaryBits(BitScanReverse.self, UInt32.self, memory: false, $0, $1) },
        { unaryBits(BitScanReverse.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        { unaryBits(BitScanReverse.self, UInt16.self, memory: true, $0, $1) },
        { unaryBits(BitScanReverse.self, UInt32.self, memory: true, $0, $1) },
        { unaryBits(BitScanReverse.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.lzcnt] = .forms(
      register: .init(
        nil,
        { unaryBits(LeadingZeroCount.self, UInt16.self, memory: false, $0, $1) },
        { unaryBits(LeadingZeroCount.self, UInt32.self, memory: false, $0, $1) },
        { unaryBits(LeadingZeroCount.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        { unaryBits(LeadingZeroCount.self, UInt16.self, memory: true, $0, $1) },
        { unaryBits(LeadingZeroCount.self, UInt32.self, memory: true, $0, $1) },
        { unaryBits(LeadingZeroCount.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.tzcnt] = .forms(
      register: .init(
        nil,
        { unaryBits(TrailingZeroCount.self, UInt16.self, memory: false, $0, $1) },
        { unaryBits(TrailingZeroCount.self, UInt32.self, memory: false, $0, $1) },
        { unaryBits(TrailingZeroCount.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        { unaryBits(TrailingZeroCount.self, UInt16.self, memory: true, $0, $1) },
        { unaryBits(TrailingZeroCount.self, UInt32.self, memory: true, $0, $1) },
        { unaryBits(TrailingZeroCount.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.popcnt] = .forms(
      register: .init(
        nil,
        { unaryBits(PopulationCount.self, UInt16.self, memory: false, $0, $1) },
        { unaryBits(PopulationCount.self, UInt32.self, memory: false, $0, $1) },
        { unaryBits(PopulationCount.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        { unaryBits(PopulationCount.self, UInt16.self, memory: true, $0, $1) },
        { unaryBits(PopulationCount.self, UInt32.self, memory: true, $0, $1) },
        { unaryBits(PopulationCount.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.blsi] = .forms(
      register: .init(
        nil,
        nil,
        { unaryBits(LowestSetBit.self, UInt32.self, memory: false, $0, $1) },
        { unaryBits(LowestSetBit.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { unaryBits(LowestSetBit.self, UInt32.self, memory: true, $0, $1) },
        { unaryBits(LowestSetBit.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.blsmsk] = .forms(
      register: .init(
        nil,
        nil,
        { unaryBits(MaskToLowestSetBit.self, UInt32.self, memory: false, $0, $1) },
        { unaryBits(MaskToLowestSetBit.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { unaryBits(MaskToLowestSetBit.self, UInt32.self, memory: true, $0, $1) },
        { unaryBits(MaskToLowestSetBit.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.blsr] = .forms(
      register: .init(
        nil,
        nil,
        { unaryBits(ResetLowestSetBit.self, UInt32.self, memory: false, $0, $1) },
        { unaryBits(ResetLowestSetBit.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { unaryBits(ResetLowestSetBit.self, UInt32.self, memory: true, $0, $1) },
        { unaryBits(ResetLowestSetBit.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    // End of rows
  }

  private static func registerBMI(_ t: inout LoweringTable) {
    // Rows: masks whose memory is last
    t[.andn] = .forms(
      register: .init(
        nil,
        nil,
        { binaryBitsLast(AndNot.self, UInt32.self, memory: false, $0, $1) },
        { binaryBitsLast(AndNot.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { binaryBitsLast(AndNot.self, UInt32.self, memory: true, $0, $1) },
        { binaryBitsLast(AndNot.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.pdep] = .forms(
      register: .init(
        nil,
        nil,
        { binaryBitsLast(DepositBits.self, UInt32.self, memory: false, $0, $1) },
        { binaryBitsLast(DepositBits.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { binaryBitsLast(DepositBits.self, UInt32.self, memory: true, $0, $1) },
        { binaryBitsLast(DepositBits.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.pext] = .forms(
      register: .init(
        nil,
        nil,
        { binaryBitsLast(ExtractBits.self, UInt32.self, memory: false, $0, $1) },
        { binaryBitsLast(ExtractBits.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { binaryBitsLast(ExtractBits.self, UInt32.self, memory: true, $0, $1) },
        { binaryBitsLast(ExtractBits.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    // End of rows
    // Rows: masks whose memory is in the middle
    t[.bextr] = .forms(
      register: .init(
        nil,
        nil,
        { binaryBitsMiddle(ExtractField.self, UInt32.self, memory: false, $0, $1) },
        { binaryBitsMiddle(ExtractField.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { binaryBitsMiddle(ExtractField.self, UInt32.self, memory: true, $0, $1) },
        { binaryBitsMiddle(ExtractField.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.bzhi] = .forms(
      register: .init(
        nil,
        nil,
        { binaryBitsMiddle(ZeroHighBits.self, UInt32.self, memory: false, $0, $1) },
        { binaryBitsMiddle(ZeroHighBits.self, UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { binaryBitsMiddle(ZeroHighBits.self, UInt32.self, memory: true, $0, $1) },
        { binaryBitsMiddle(ZeroHighBits.self, UInt64.self, memory: true, $0, $1) }),
      store: .init())
    // End of rows
  }

  private static func registerCRC(_ t: inout LoweringTable) {
    // Rows: CRC
    let register = WidthHandlers(
      { crc(UInt8.self, memory: false, $0, $1) },
      { crc(UInt16.self, memory: false, $0, $1) },
      { crc(UInt32.self, memory: false, $0, $1) },
      { crc(UInt64.self, memory: false, $0, $1) })
    let memory = WidthHandlers(
      { crc(UInt8.self, memory: true, $0, $1) },
      { crc(UInt16.self, memory: true, $0, $1) },
      { crc(UInt32.self, memory: true, $0, $1) },
      { crc(UInt64.self, memory: true, $0, $1) })
    // End of rows
    t[.crc32] = .custom { i, _, _ in
      (i.memoryOperand == nil ? register : memory)[i.operands[1].size]
    }
  }
}
