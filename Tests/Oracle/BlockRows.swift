// SPDX-License-Identifier: Apache-2.0
//
// The rows of the opcode table that random blocks are made of, by kind.

import X86Decoder

struct BlockRows {
  /// `flags`: those of `integer` that read arithmetic flags.
  enum Kind: Int, CaseIterable { case common, flags, integer, x87, sse, avx, evex }

  private(set) var rows: [[RowTemplate]]

  init() {
    rows = Array(repeating: [], count: Kind.allCases.count)
    for row in Decoder.rowTemplates where Self.reason(row) == nil {
      let kind = Self.kind(row)
      rows[kind.rawValue].append(row)
      if kind == .integer && Self.common.contains(row.mnemonic) {
        rows[Kind.common.rawValue].append(row)
      }
      if kind == .integer && row.attributes.contains(.readsFlags) {
        rows[Kind.flags.rawValue].append(row)
      }
    }
  }

  /// Why a row has no place in a block, where the comparison of single instructions has one for it.
  private static func reason(_ row: RowTemplate) -> String? {
    if let reason = Exclusions.reason(row) { return reason }
    if row.attributes.contains(.branch) { return "branches are made with their targets" }
    if row.hasVectorIndex { return "would reach other memory most of the time" }
    return excluded[row.mnemonic]
  }

  private static let partial = "faults by choice of the implementation"
  private static let state = "loads state that has to be made first"
  private static let excluded: [Mnemonic: String] = [
    .popf: state, .ldmxcsr: state, .vldmxcsr: state, .wrfsbase: state, .wrgsbase: state,
    .maskmovq: partial, .maskmovdqu: partial, .vmaskmovdqu: partial,
    .dpps: partial, .dppd: partial, .vdpps: partial, .vdppd: partial,
  ]

  private static func kind(_ row: RowTemplate) -> Kind {
    if row.attributes.contains(.x87) { return .x87 }
    if row.space == .evex { return .evex }
    if row.space == .vex && row.feature != .bmi1 && row.feature != .bmi2 {
      return "\(row.mnemonic)".hasPrefix("k") ? .evex : .avx
    }
    return row.attributes.isDisjoint(with: [.vector, .mmx, .floatingPoint]) ? .integer : .sse
  }

  private static let common: Set<Mnemonic> = [
    .mov, .add, .sub, .cmp, .test, .and, .or, .xor, .inc, .dec, .lea, .shl, .shr, .sar, .imul,
    .movzx, .movsx, .movsxd, .push, .pop, .adc, .sbb, .neg, .not, .xchg, .rol, .setz, .setb,
    .setl, .setnbe, .cmovz, .cmovb, .cmovle, .cmovs, .bt, .bswap, .cqo, .cdqe,
  ]
}
