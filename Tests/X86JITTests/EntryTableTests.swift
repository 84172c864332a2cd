// SPDX-License-Identifier: Apache-2.0
//
// The table of entries to translations may forget, but never answers with another translation's
// or page's entry.

import Testing
import X86JIT

@Suite struct EntryTableTests {
  private func start(_ code: UInt, _ page: UInt64) -> UInt { code << 8 ^ UInt(page) | 1 }

  /// What is found is what was added for that translation and page; old ones may be forgotten.
  @Test func neverAnother() throws {
    let table = try EntryTable()
    let all = (1...300).flatMap { code in (0..<300).map { (UInt(code) << 4, UInt64($0) << 12) } }
    for (code, page) in all {
      #expect(table.find(code: code, page: page) == 0)
      table.add(code: code, page: page, start: start(code, page))
      #expect(table.find(code: code, page: page) == start(code, page))
    }
    let known = all.filter { table.find(code: $0.0, page: $0.1) != 0 }
    #expect(known.count > 10_000)
    for (code, page) in known {
      #expect(table.find(code: code, page: page) == start(code, page))
    }
    table.removeAll()
    #expect(all.allSatisfy { table.find(code: $0.0, page: $0.1) == 0 })
  }
}
