// SPDX-License-Identifier: Apache-2.0
//
// Every row of the opcode maps' text is read: a misspelt one would be left out without a word.

import Testing
import X86Decoder

@Suite struct OpcodeTableTests {
  @Test func everyRowOfTheTextIsRead() {
    #expect(Decoder.tableErrors == [])
  }
}
