// SPDX-License-Identifier: Apache-2.0
//
// A kick ends guest code of any shape soon, translated and chained as it may be. The times are
// measured; the bounds are loose.

import CHost
import Glibc
import Host
import KVM
import Synchronization
import SystemPackage
import Testing

@Suite struct PromptnessTests {
  struct Shape: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let code: [UInt8]
  }

  static let shapes: [Shape] = [
    Shape(testDescription: "jump to itself", code: [0xEB, 0xFE]),
    Shape(
      testDescription: "two blocks",
      // inc rax; test al, 1; jz next; next: jmp begin
      code: [0x48, 0xFF, 0xC0, 0xA8, 1, 0x74, 0x00, 0xEB, 0xF7]),
    Shape(
      testDescription: "memory and flags",
      // add [rbx], rax; adc rdx, [rbx]; dec ecx; jnz; jmp
      code: [0x48, 0x01, 0x03, 0x48, 0x13, 0x13, 0xFF, 0xC9, 0x75, 0xF6, 0xEB, 0xF4]),
    Shape(
      testDescription: "calls and returns",
      // begin: call f; jmp begin; f: ret
      code: [0xE8, 2, 0, 0, 0, 0xEB, 0xF9, 0xC3]),
    Shape(
      testDescription: "returns alone",
      // begin: lea rax, [rip - 7]; push rax; ret
      code: [0x48, 0x8D, 0x05, 0xF9, 0xFF, 0xFF, 0xFF, 0x50, 0xC3]),
    Shape(
      testDescription: "indirect jump",
      // begin: lea rax, [rip - 7]; jmp rax
      code: [0x48, 0x8D, 0x05, 0xF9, 0xFF, 0xFF, 0xFF, 0xFF, 0xE0]),
    Shape(
      testDescription: "long string",
      // begin: mov rdi, rbx; mov ecx, 0x80000; rep stosb; jmp begin
      code: [0x48, 0x89, 0xDF, 0xB9, 0, 0, 8, 0, 0xF3, 0xAA, 0xEB, 0xF4]),
    Shape(
      testDescription: "LOOP",
      // begin: mov ecx, -1; loop $; jmp begin
      code: [0xB9, 0xFF, 0xFF, 0xFF, 0xFF, 0xE2, 0xFE, 0xEB, 0xF7]),
    Shape(
      testDescription: "vectors",
      // begin: movups xmm0, [rbx]; addps xmm0, xmm0; movups [rbx], xmm0; jmp begin
      code: [0x0F, 0x10, 0x03, 0x0F, 0x58, 0xC0, 0x0F, 0x11, 0x03, 0xEB, 0xF5]),
    Shape(
      testDescription: "handler calls",
      // begin: sgdt [rbx]; xlat; jmp begin
      code: [0x0F, 0x01, 0x03, 0xD7, 0xEB, 0xFA]),
    Shape(testDescription: "exits that the hypervisor answers", code: [0x0F, 0xA2, 0xEB, 0xFC]),
    Shape(testDescription: "pause", code: [0xF3, 0x90, 0xEB, 0xFC]),
  ]

  @Test(arguments: shapes) func kickEnds(_ shape: Shape) throws {
    let client = try Client(translates: true)
    try client.setLongMode()
    // OSFXSR, OSXMMEXCPT
    try client.changeSpecial { $0.cr4 |= 0x600 }
    client.load(shape.code)
    try client.setRegisters {
      $0.rbx = 0x100000
      $0.rsp = 0x9000
    }
    var best = UInt64.max
    for _ in 0..<5 { best = min(best, try timeToLeave(client)) }
    // On an idle machine it is some microseconds.
    #expect(best < 50_000_000, "\(best) ns")
  }

  /// Forward jumps alone, from page to page, and one back from the last page.
  @Test func kickEndsManyPages() throws {
    let client = try Client(translates: true)
    try client.setLongMode()
    for page in 0x20..<0x80 {
      let distance = page == 0x7F ? -(0x5F000 + 5) : 0x1000 - 5
      let target = UInt32(bitPattern: Int32(distance))
      client.load(
        [0xE9] + (0..<4).map { UInt8(truncatingIfNeeded: target >> (UInt32($0) * 8)) },
        at: page << 12)
    }
    try client.setRegisters { $0.rip = 0x20000 }
    var best = UInt64.max
    for _ in 0..<5 { best = min(best, try timeToLeave(client)) }
    #expect(best < 50_000_000, "\(best) ns")
  }

  /// A vCPU whose guest runs on and on does not keep others from their state.
  @Test func stateWaitsForNoGuest() throws {
    let client = try Client()
    let other = try client.call(client.vm, CKVM_CREATE_VCPU, 1)
    defer { client.hypervisor.close(other) }
    client.load([0xEB, 0xFE])
    let guest = Thread { _ = try? client.run() }
    usleep(20_000)
    let begin = HostClock.monotonic()
    for round in 0..<300 {
      var registers = try client.get(other, CKVM_GET_REGS, kvm_regs())
      #expect(registers.rbx == UInt64(round))
      registers.rbx += 1
      try client.set(other, CKVM_SET_REGS, registers)
    }
    // A time slice has 10 ms.
    #expect(HostClock.monotonic() &- begin < 2_000_000_000)
    client.hypervisor.kick(client.cpu)
    guest.join()
    // What was set there is there when it runs.
    try client.set(other, CKVM_SET_SREGS, try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()))
    client.load([0x88, 0xD8, 0xE6, 0x90])  // mov al, bl; out 0x90, al
    var registers = try client.get(other, CKVM_GET_REGS, kvm_regs())
    registers.rip = 0x1000
    try client.set(other, CKVM_SET_REGS, registers)
    try client.call(other, CKVM_RUN)
    let pages = try client.hypervisor.sharedPages(other)
    #expect(pages.load(fromByteOffset: 4096, as: UInt8.self) == UInt8(truncatingIfNeeded: 300))
  }

  /// Nanoseconds from a kick to the end of KVM_RUN.
  private func timeToLeave(_ client: Client) throws -> UInt64 {
    let begin = Moment()
    let kick = Thread {
      usleep(20_000)
      begin.value.store(HostClock.monotonic(), ordering: .sequentiallyConsistent)
      client.kick()
    }
    let error = client.error { () throws(Errno) in _ = try client.run() }
    let end = HostClock.monotonic()
    kick.join()
    #expect(error == .interrupted)
    return end &- begin.value.load(ordering: .sequentiallyConsistent)
  }

  private final class Moment: Sendable {
    let value = Atomic<UInt64>(0)
  }
}
