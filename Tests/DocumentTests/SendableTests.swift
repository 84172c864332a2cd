// SPDX-License-Identifier: Apache-2.0
//
// Where the compiler takes our word that a type may be shared, the comment above says why.

import Testing

@Suite struct SendableTests {
  @Test func uncheckedTypesSayWhyTheyAreSafe() throws {
    for file in Repository.files where file.hasPrefix("Sources/") && file.hasSuffix(".swift") {
      let lines = try Repository.lines(file)
      for (n, line) in lines.enumerated() where line.contains("@unchecked Sendable") {
        let comment = lines[..<n].reversed().prefix {
          $0.drop { $0 == " " }.hasPrefix("//")
        }
        #expect(
          comment.contains { $0.contains("Sendable") || $0.contains("to share") },
          "\(file):\(n + 1) does not say which lock or owner makes it safe")
      }
    }
  }
}
