// SPDX-License-Identifier: Apache-2.0
//
// The tables of handlers in the interpreter's files are what the opcode table's rows say: no
// handler is missing and none is there that no row reaches. MARTLET_GOLDEN=write writes them anew
// between
//
//     // Rows: NAME
//     // End of rows
//
// in the family's file (HandlerFamilies.swift).

import Foundation
import Testing
import X86CPU
import X86Decoder

@Suite struct HandlerTableTests {
  private static let folder = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Sources/X86CPU/Interpreter")

  @Test(arguments: Set(HandlerFamily.all.map(\.file)).sorted())
  func handlersAreThoseOfTheRows(_ file: String) throws {
    let url = Self.folder.appendingPathComponent("\(file).swift")
    let text = try String(contentsOf: url, encoding: .utf8)
    var made = text
    for family in HandlerFamily.all where family.file == file {
      let start = try #require(made.range(of: "    // Rows: \(family.name)\n"), "\(family.name)")
      let rest = start.upperBound..<made.endIndex
      let end = try #require(made.range(of: "    // End of rows\n", range: rest))
      made.replaceSubrange(start.upperBound..<end.lowerBound, with: family.text)
    }
    if ProcessInfo.processInfo.environment["MARTLET_GOLDEN"] == "write" {
      try made.write(to: url, atomically: true, encoding: .utf8)
    } else {
      let difference = zip(
        text.split(separator: "\n", omittingEmptySubsequences: false),
        made.split(separator: "\n", omittingEmptySubsequences: false)
      ).first { $0 != $1 }
      #expect(
        text == made,
        "the file has \(difference?.0 ?? "other lines"), the rows say \(difference?.1 ?? "")")
    }
  }

  /// What has rows and is #UD: UD0 and UD1 are meant to be, the others are features that no CPUID
  /// of ours offers.
  private static let undefined: Set<Mnemonic> = [.ud0, .ud1, .movdiri, .ptwrite, .xbegin]

  @Test func everyMnemonicOfGeneralOperandsHasARule() {
    let found = Mnemonic.allCases.filter { mnemonic in
      if case .undefined = Lowering.table[mnemonic] {
        return OpcodeForms(of: mnemonic).sizes.count > 1
      }
      return false
    }
    #expect(Set(found) == Self.undefined)
  }
}

extension HandlerFamily {
  /// What stands between the family's comments.
  fileprivate var text: String {
    members.map { mnemonic, operation in
      let forms = OpcodeForms(of: mnemonic, operandCounts: operandCounts)
      let sizes = isBySource ? forms.sourceSizes : forms.sizes
      func widths(_ part: Part, source: UInt8? = nil, indent: String) -> String {
        part.need.isMet(forms)
          ? lines(part.call, operation, sizes, source: source, indent: indent) : ""
      }
      let target = "    t[.\(mnemonic)] = "
      switch shape {
      case .single(let rule):
        let handlers = parts.map { "      { \($0.call), $0, $1) }".naming(operation) }
        return target + "\(rule)(\n\(handlers.joined(separator: ",\n")))\n"
      case .rule(let rule):
        let arguments = parts.map { "      \($0.label): .init(\(widths($0, indent: "        ")))" }
        return target + "\(rule)(\n\(arguments.joined(separator: ",\n")))\n"
      case .widths:
        return target + ".widths(\n      .init(\(widths(parts[0], indent: "        "))))\n"
      case .constants:
        return parts.map {
          "    let \($0.label) = WidthHandlers(\(widths($0, indent: "      ")))\n"
        }.joined()
      case .bySource(let rule):
        let dictionaries = parts.map { part in
          let entries = forms.sourceSizes.sorted().map { source in
            "        \(source): .init(\(widths(part, source: source, indent: "          "))),\n"
          }
          return "      [\n\(entries.joined())      ]"
        }
        return target + "\(rule)(\n\(dictionaries.joined(separator: ",\n")))\n"
      }
    }.joined()
  }

  /// The arguments of a `WidthHandlers`, to the largest size.
  private func lines(
    _ call: String, _ operation: String, _ sizes: Set<UInt8>, source: UInt8?, indent: String
  ) -> String {
    let last = sizes.max() ?? 0
    return [UInt8(1), 2, 4, 8].filter { $0 <= last }.map { size in
      guard sizes.contains(size) else { return "\n\(indent)nil" }
      let named = call.naming(operation).replacing("SOURCE", with: "Int\(8 * (source ?? 0))")
        .replacing("SIGNED", with: "Int\(8 * size)").replacing("WIDTH", with: "UInt\(8 * size)")
      return "\n\(indent){ \(named), $0, $1) }"
    }.joined(separator: ",")
  }
}

extension String {
  /// `OP` may contain `WIDTH`.
  fileprivate func naming(_ operation: String) -> String { replacing("OP", with: operation) }
}
