// SPDX-License-Identifier: Apache-2.0
//
// The smallest guest: one ADD, and the flags that it leaves. Whole instructions are the
// oracle's (Tests/Oracle).

import Support
import Testing
import X86
import X86CPU

@Suite struct ArithmeticTests {
  @Test func addRegistersSetsFlags() {
    let m = TestMachine()
    m.setLongMode()
    // add rax, rbx; add byte [0x2000], 1; hlt
    m.load([0x48, 0x01, 0xD8, 0x80, 0x04, 0x25, 0x00, 0x20, 0, 0, 1, 0xF4], at: 0x1000)
    m.store(UInt8(0xFF), at: 0x2000)
    m.cpu.gpr[0] = 1
    m.cpu.gpr[3] = 2
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] == 3)
    #expect(m.read(0x2000, as: UInt8.self) == 0)
    #expect(m.cpu.flags == 0x57)
  }
}
