// SPDX-License-Identifier: Apache-2.0

import Testing
import X86Decoder

@Suite struct OpcodeTableTests {
  @Test func everyRowOfTheTextIsRead() {
    #expect(Decoder.tableErrors == [])
  }
}
