// SPDX-License-Identifier: Apache-2.0
//
// Interrupts through the in-kernel chips, in real mode: a handler per vector reports on a port,
// so a lost or doubled interrupt shows.

import CHost
import Host
import KVMClient
import Synchronization
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct InterruptTests {
  /// Programs the 8259 pair for vectors 0x20 and 0x28 with only `mask`'s zero bits open.
  private static func initializePIC(mask: UInt8) -> [UInt8] {
    func out(_ port: UInt8, _ value: UInt8) -> [UInt8] { [0xB0, value, 0xE6, port] }
    return out(0x20, 0x11) + out(0x21, 0x20) + out(0x21, 0x04) + out(0x21, 0x01)
      + out(0xA0, 0x11) + out(0xA1, 0x28) + out(0xA1, 0x02) + out(0xA1, 0x01)
      + out(0x21, mask) + out(0xA1, 0xFF)
  }

  /// A handler at 0x3000 for `vector` that writes AL = `code` to port 0x90, ends the interrupt at
  /// the 8259 and returns.
  private static func install(_ guest: Guest, vector: Int, code: UInt8) {
    guest.load([0xB0, code, 0xE6, 0x90, 0xB0, 0x20, 0xE6, 0x20, 0xCF], at: 0x3000)
    guest.store(UInt16(0x3000), at: vector * 4)
    guest.store(UInt16(0), at: vector * 4 + 2)
  }

  @Test func lineWakesHaltedGuest() throws {
    let guest = try Guest(.current, chips: true)
    Self.install(guest, vector: 0x24, code: 0x55)
    // ... sti; hlt; mov al, 1; out 0x91, al; hlt
    guest.load(
      Self.initializePIC(mask: 0xEF) + [0xE6, 0x92, 0xFB, 0xF4, 0xB0, 0x01, 0xE6, 0x91, 0xF4])
    #expect(try guest.nextOut()?.port == 0x92)
    let machine = guest.machine
    _ = try HostThread(name: "line") {
      sleepMilliseconds(20)
      try? machine.setInterruptLine(4, true)
      try? machine.setInterruptLine(4, false)
    }
    let handler = try #require(try guest.nextOut())
    #expect(handler.port == 0x90 && handler.value == 0x55)
    #expect(try guest.nextOut()?.port == 0x91)
  }

  @Test func timerWakesHaltedGuest() throws {
    let guest = try Guest(.current, chips: true)
    Self.install(guest, vector: 0x20, code: 0x66)
    // 8254 channel 0, mode 2, 11932 ticks: 10 ms
    let timer: [UInt8] = [0xB0, 0x34, 0xE6, 0x43, 0xB0, 0x9C, 0xE6, 0x40, 0xB0, 0x2E, 0xE6, 0x40]
    guest.load(Self.initializePIC(mask: 0xFE) + timer + [0xFB, 0xF4, 0xEB, 0xFD])
    let start = HostClock.monotonic()
    for _ in 0..<5 { #expect(try guest.nextOut()?.value == 0x66) }
    let elapsed = HostClock.monotonic() - start
    #expect(elapsed > 40_000_000 && elapsed < 2_000_000_000)
  }

  @Test func kickEndsHalt() throws {
    let guest = try Guest(.current, chips: true)
    guest.load([0xFB, 0xF4])
    let (cpu, thread) = (guest.cpu, ThreadIdentifier.current)
    _ = try HostThread(name: "kick") {
      sleepMilliseconds(20)
      cpu.kick(thread)
    }
    guard case .interrupted = try guest.run() else {
      Issue.record("not interrupted")
      return
    }
  }

  /// A guest that waits for a lock may be woken between its look at the lock and its HLT.
  @Test func hypercallWakesNextHalt() throws {
    let guest = try Guest(.current, chips: true)
    guest.load([
      0x66, 0xB8, 0x05, 0x00, 0x00, 0x00,  // mov eax, 5 (kick a CPU)
      0x66, 0x31, 0xDB, 0x66, 0x31, 0xC9,  // xor ebx, ebx; xor ecx, ecx: this one
      0x0F, 0x01, 0xC1, 0xF4,  // vmcall; hlt, with interrupts disabled
      0xE6, 0x91, 0xF4,  // out 0x91, al; hlt
    ])
    let (cpu, thread) = (guest.cpu, ThreadIdentifier.current)
    let rescue = try HostThread(name: "rescue") {
      sleepMilliseconds(300)
      cpu.kick(thread)
    }
    #expect(try guest.nextOut()?.port == 0x91)
    // Once only: the second halt lasts until the kick.
    guard case .interrupted = try guest.run() else {
      Issue.record("the wake-up counted twice")
      return
    }
    rescue.join()
  }

  @Test func kickEndsLoop() throws {
    let guest = try Guest(.current)
    guest.load([0xEB, 0xFE])
    let (cpu, thread) = (guest.cpu, ThreadIdentifier.current)
    _ = try HostThread(name: "kick") {
      sleepMilliseconds(20)
      cpu.kick(thread)
    }
    guard case .interrupted = try guest.run() else {
      Issue.record("not interrupted")
      return
    }
  }

  @Test func localAPICTimer() throws {
    let guest = try Guest(.current, chips: true)
    // The local APIC's page through DS; the handler at 0x3000 reports and ends the interrupt.
    try guest.setDataBase(0xFEE0_0000)
    func store(_ offset: UInt16, _ value: UInt32) -> [UInt8] {
      // mov dword [offset], value
      [0x66, 0xC7, 0x06, UInt8(offset & 0xFF), UInt8(offset >> 8)]
        + withUnsafeBytes(of: value) { Array($0) }
    }
    guest.load([0xB0, 0x77, 0xE6, 0x90] + store(0xB0, 0) + [0xCF], at: 0x3000)
    guest.store(UInt16(0x3000), at: 0x40 * 4)
    // Enabled; one-shot, vector 0x40, divider 1, 1 ms.
    guest.load(
      store(0xF0, 0x1FF) + store(0x320, 0x40) + store(0x3E0, 0xB) + store(0x380, 1_000_000)
        + [0xFB, 0xF4, 0xE6, 0x91, 0xF4])
    let out = try #require(try guest.nextOut())
    #expect(out.port == 0x90 && out.value == 0x77)
    #expect(try guest.nextOut()?.port == 0x91)
  }

  /// CPU 0 starts CPU 1 by INIT and start-up messages; CPU 1 reports by memory.
  @Test(arguments: [1, 2]) func startupOfASecondCPU(_ physicalCPUs: Int) throws {
    let guest = try Guest(.current, cpus: 2, physicalCPUs: physicalCPUs, chips: true)
    try guest.setDataBase(0xFEE0_0000)
    func store(_ offset: UInt16, _ value: UInt32) -> [UInt8] {
      [0x66, 0xC7, 0x06, UInt8(offset & 0xFF), UInt8(offset >> 8)]
        + withUnsafeBytes(of: value) { Array($0) }
    }
    // CPU 1 at 0x5000: inc word [0x6000]; hlt
    guest.load([0xFF, 0x06, 0x00, 0x60, 0xF4], at: 0x5000)
    // CPU 0: INIT and start-up at page 5 to APIC 1, then wait for cs:[0x6000].
    guest.load(
      store(0xF0, 0x1FF) + store(0x310, 1 << 24) + store(0x300, 0x4500) + store(0x300, 0x4605)
        + [0xF3, 0x90, 0x2E, 0x83, 0x3E, 0x00, 0x60, 0x00, 0x74, 0xF6, 0xE6, 0x91, 0xF4])
    let second = guest.cpus[1]
    let thread = try HostThread(name: "cpu1") { runUntilInterrupted(second) }
    #expect(try guest.nextOut()?.port == 0x91)
    #expect(guest.read(0x6000, as: UInt16.self) == 1)
    second.kick(thread.identifier)
    thread.join()
  }

  /// More vCPUs than physical CPUs, all busy: each gets its turn.
  @Test func fourCPUsShareOne() throws {
    let guest = try Guest(.current, cpus: 4, physicalCPUs: 1)
    var threads: [ThreadIdentifier] = []
    let ended = Counter()
    for (number, cpu) in guest.cpus.enumerated() {
      // inc dword [0x6000 + 4 * number]; jmp back
      let address = UInt8(number * 4)
      guest.load([0x66, 0xFF, 0x06, address, 0x60, 0xEB, 0xF9], at: 0x1000 + number * 0x100)
      try guest.setRealMode(cpu, rip: UInt64(0x1000 + number * 0x100))
      let thread = try HostThread(name: "cpu\(number)") {
        runUntilInterrupted(cpu)
        ended.value.add(1, ordering: .sequentiallyConsistent)
      }
      threads.append(thread.identifier)
      _ = consume thread
    }
    func counts() -> [UInt32] { (0..<4).map { guest.read(0x6000 + $0 * 4, as: UInt32.self) } }
    // Each for itself would take them all: none may wait for ever.
    for _ in 0..<1000 where counts().contains(where: { $0 < 1000 }) { sleepMilliseconds(10) }
    #expect(counts().allSatisfy { $0 >= 1000 }, "\(counts())")
    for number in 0..<4 { guest.cpus[number].kick(threads[number]) }
    while ended.value.load(ordering: .sequentiallyConsistent) < 4 { sleepMilliseconds(1) }
  }

  /// Without chips the client delivers: request a window, then inject.
  @Test func clientInjectsInterrupt() throws {
    let guest = try Guest(.current)
    guest.load([0xB0, 0x33, 0xE6, 0x90, 0xCF], at: 0x3000)
    guest.store(UInt16(0x3000), at: 0x30 * 4)
    // out 0x92, al; sti; nop; nop; jmp $
    guest.load([0xE6, 0x92, 0xFB, 0x90, 0x90, 0xEB, 0xFE])
    #expect(try guest.nextOut()?.port == 0x92)
    guest.cpu.shared.pointee.request_interrupt_window = 1
    guard case .interruptWindowOpen = try guest.run() else {
      Issue.record("no window")
      return
    }
    guest.cpu.shared.pointee.request_interrupt_window = 0
    #expect(guest.cpu.shared.pointee.ready_for_interrupt_injection == 1)
    try guest.cpu.interrupt(0x30)
    let out = try #require(try guest.nextOut())
    #expect(out.port == 0x90 && out.value == 0x33)
  }
}

final class Counter: Sendable {
  let value = Atomic<Int>(0)
}

/// Runs a CPU until it is kicked.
func runUntilInterrupted(_ cpu: VirtualCPUHandle) {
  while true {
    do throws(Errno) {
      if case .interrupted = try cpu.run() { return }
    } catch {
      if error != .resourceTemporarilyUnavailable { return }
    }
  }
}
