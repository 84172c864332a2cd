// SPDX-License-Identifier: Apache-2.0
//
// KVM_HC_CLOCK_PAIRING: the host's wall clock and the guest's counter at one time. Both lie
// between what was read before and after.

import CHost
import Glibc
import KVM
import SystemPackage
import Testing

@Suite(.serialized) struct ClockPairingTests {
  private func call(_ client: Client, address: UInt64, clock: UInt64) throws -> Int64 {
    client.load([0x0F, 0x01, 0xC1, 0xE6, 0x90])  // vmcall; out 0x90, al
    try client.setRegisters {
      ($0.rip, $0.rax, $0.rbx, $0.rcx) = (0x1000, 9, address, clock)
    }
    #expect(try client.nextOut()?.port == 0x90)
    return Int64(bitPattern: try client.registers.rax)
  }

  private func word(_ client: Client, _ index: Int) -> UInt64 {
    client.memory.load(fromByteOffset: 0x5000 + index * 8, as: UInt64.self)
  }

  @Test func wallClock() throws {
    let client = try Client()
    try client.setLongMode()
    (client.memory + 0x5000).initializeMemory(as: UInt8.self, repeating: 0xFF, count: 72)
    let before = UInt64(time(nil))
    let tsc = try #require(try client.msr(0x10))
    #expect(try call(client, address: 0x5000, clock: 0) == 0)
    #expect((before...before + 10).contains(word(client, 0)))
    #expect(word(client, 1) < 1_000_000_000)
    let after = try #require(try client.msr(0x10))
    #expect((tsc...after).contains(word(client, 2)))
    for index in 3..<8 { #expect(word(client, index) == 0) }
    #expect(word(client, 8) == .max)
  }

  @Test func errors() throws {
    let client = try Client()
    try client.setLongMode()
    #expect(try call(client, address: 0x5000, clock: 1) == -95)
    #expect(try call(client, address: 1 << 40, clock: 0) == -14)
  }
}
