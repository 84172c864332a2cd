// SPDX-License-Identifier: Apache-2.0
//
// A source file opens with its licence and what it holds.

import Testing

@Suite struct HeadCommentTests {
  private var sources: [String] {
    Repository.files.filter { $0.hasPrefix("Sources/") && $0.hasSuffix(".swift") }
  }

  @Test func filesNameTheirLicence() throws {
    for file in sources {
      let first = try Repository.lines(file).first
      #expect(first == "// SPDX-License-Identifier: Apache-2.0", "\(file)")
    }
  }

  @Test func filesSayWhatTheyHold() throws {
    for file in sources {
      let head = try Repository.lines(file).dropFirst().prefix { $0.hasPrefix("//") }
      let words = head.flatMap { $0.dropFirst(2).split(separator: " ") }
      #expect(words.count > 3, "\(file) has no head comment")
    }
  }
}
