// SPDX-License-Identifier: Apache-2.0
//
// Which flags rows say are read and written. (That the lists are right is what the oracle shows:
// translated code drops every flag that a row says is written again.)

import Testing
import X86Decoder

struct FlagSetTests {
  private static let known: [(String, reads: FlagSet, writes: FlagSet)] = [
    ("01 c8", [], .all), ("11 c8", .cf, .all), ("83 d0 01", .cf, .all), ("14 01", .cf, .all),
    ("ff c0", [], [.pf, .af, .zf, .sf, .of]), ("f5", .cf, .cf), ("f8", [], .cf),
    ("9e", [], [.cf, .pf, .af, .zf, .sf]), ("9f", [.cf, .pf, .af, .zf, .sf], []),
    ("d1 d0", .cf, [.cf, .of]), ("d1 c0", [], [.cf, .of]), ("c1 e0 03", [], .all),
    ("0f a3 c8", [], .cf), ("0f bc c8", [], .zf), ("f3 0f bc c8", [], [.cf, .zf]),
    ("66 0f 38 f6 c8", .cf, .cf), ("f3 0f 38 f6 c8", .of, .of), ("48 0f c7 08", [], .zf),
    ("76 00", [.cf, .zf], []), ("0f 9c c0", [.sf, .of], []), ("0f 4a c1", .pf, []),
    ("e1 00", .zf, []), ("9c", .all, []), ("da c9", .zf, []), ("0f 2f c1", [], .all),
    ("89 c8", [], []), ("c4 e2 f8 f2 c1", [], .all), ("c4 e2 f9 f7 c1", [], []),
  ]

  @Test(arguments: known.indices) func rowsNameFlags(_ n: Int) throws {
    let (hex, reads, writes) = Self.known[n]
    let instruction = try decode(bytes(hex), .bits64).get()
    #expect(instruction.flagsRead == reads, "\(hex)")
    #expect(instruction.flagsWritten == writes, "\(hex)")
  }

  @Test func everyRowIsConsistent() {
    for row in Decoder.rowTemplates {
      let name = "\(row.mnemonic), row \(row.index)"
      #expect(row.attributes.contains(.writesFlags) == !row.flagsWritten.isEmpty, "\(name)")
      #expect(row.attributes.contains(.readsFlags) == !row.flagsRead.isEmpty, "\(name)")
      if row.attributes.contains(.countDecides) { #expect(!row.flagsWritten.isEmpty, "\(name)") }
      let forms: Instruction.Attributes = [.relocatable, .accumulator]
      #expect(!row.attributes.isSuperset(of: forms), "\(name)")
      if row.attributes.contains(.accumulator) { #expect(!row.hasModRM, "\(name)") }
    }
  }
}
