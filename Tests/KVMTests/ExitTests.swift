// SPDX-License-Identifier: Apache-2.0

import CHost
import KVMClient
import Testing

/// Exits to user space, each with what the client sees and how the guest goes on.
@Suite struct ExitTests {
  @Test(arguments: Engine.available)
  func outThenHalt(_ engine: Engine) throws {
    let guest = try Guest(engine)
    // mov al, 0x41; out 0xE9, al; hlt
    guest.load([0xB0, 0x41, 0xE6, 0xE9, 0xF4])
    let out = try #require(try guest.nextOut())
    #expect(out.port == 0xE9)
    #expect(out.value == 0x41)
    guard case .halt = try guest.run() else {
      Issue.record("no halt")
      return
    }
    #expect(try guest.cpu.registers().rip == 0x1005)
  }
}
