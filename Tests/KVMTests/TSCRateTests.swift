// SPDX-License-Identifier: Apache-2.0
//
// Counters that run at another rate than the host's (KVM_SET_TSC_KHZ), measured against the
// host's own.

import CHost
import Glibc
import KVM
import SystemPackage
import Testing
import X86
import X86CPU

@Suite(.serialized) struct TSCRateTests {
  private static let double = UInt(HostTSC.kilohertz * 2)

  /// mov [0x2000], rdtsc; out 0x90, al; again
  private static let code: [UInt8] = [
    0x0F, 0x31,  // rdtsc
    0x66, 0xA3, 0x00, 0x20,  // mov [0x2000], eax
    0x66, 0x89, 0x16, 0x04, 0x20,  // mov [0x2004], edx
    0xE6, 0x90, 0xEB, 0xF1,
  ]

  private func guestCounter(_ client: Client) throws -> UInt64 {
    #expect(try client.nextOut()?.port == 0x90)
    return client.memory.load(fromByteOffset: 0x2000, as: UInt64.self)
  }

  private func counter(_ client: Client) throws -> UInt64 {
    try #require(try client.msr(MSR.timeStampCounter.rawValue))
  }

  @Test(arguments: [false, true])
  func twiceTheHostsRate(_ perMachine: Bool) throws {
    let client = try Client { client in
      #expect(try client.capability(KVM_CAP_TSC_CONTROL) == 1)
      #expect(try client.capability(KVM_CAP_VM_TSC_CONTROL) == 1)
      if perMachine { try client.call(client.vm, CKVM_SET_TSC_KHZ, Self.double) }
    }
    if !perMachine { try client.call(client.cpu, CKVM_SET_TSC_KHZ, Self.double) }
    #expect(try client.call(client.cpu, CKVM_GET_TSC_KHZ) == Int32(Self.double))
    #expect(
      try client.call(client.vm, CKVM_GET_TSC_KHZ)
        == (perMachine ? Int32(Self.double) : Int32(HostTSC.kilohertz)))
    client.load(Self.code)
    let before = (host: HostTSC.read(), guest: try counter(client))
    let inside = try guestCounter(client)
    usleep(20_000)
    let middle = (guest: try counter(client), host: HostTSC.read())
    // The guest's second reading begins with the jump; its first was before the wait.
    #expect(before.guest < inside && inside < middle.guest)
    let later = try guestCounter(client)
    let after = try counter(client)
    #expect(later > middle.guest && later < after)
    let guest = Double(middle.guest - before.guest)
    let host = Double(middle.host - before.host)
    #expect(abs(guest / host - 2) < 0.05)
  }

  @Test func rates() throws {
    let client = try Client()
    let own = try client.call(client.cpu, CKVM_GET_TSC_KHZ)
    try client.call(client.cpu, CKVM_SET_TSC_KHZ, 0)
    #expect(try client.call(client.cpu, CKVM_GET_TSC_KHZ) == own)
    #expect(
      client.error { () throws(Errno) in
        try client.call(client.cpu, CKVM_SET_TSC_KHZ, UInt(Int32.max))
      } == .invalidArgument)
    try client.call(client.cpu, CKVM_SET_TSC_KHZ, 1_000_000)
    #expect(try client.call(client.cpu, CKVM_GET_TSC_KHZ) == 1_000_000)
    // The paravirtual clock's factor follows: one count is one nanosecond, 2^31 with a shift of 1.
    #expect(try client.setMSR(0x4B56_4D01, 0x6000 | 1))
    #expect(client.memory.load(fromByteOffset: 0x6000 + 24, as: UInt32.self) == 1 << 31)
    #expect(client.memory.load(fromByteOffset: 0x6000 + 28, as: Int8.self) == 1)
  }

  /// What the client writes is what it reads, at any rate.
  @Test func writtenCounter() throws {
    let client = try Client()
    try client.call(client.cpu, CKVM_SET_TSC_KHZ, Self.double)
    #expect(try client.setMSR(MSR.timeStampCounter.rawValue, 1 << 40))
    let value = try counter(client)
    #expect(value >= 1 << 40 && value < (1 << 40) + UInt64(Self.double) * 10_000)
  }
}
