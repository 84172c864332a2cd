// SPDX-License-Identifier: Apache-2.0
//
// CPUs run code of the same pages while others take those pages' marks away: by stores of a guest
// into a page with code, by writes of the host, by kicks, and with owners of guest spaces that come
// and go. Nothing in guest memory that is read is written, so that ThreadSanitizer, under which
// this runs, too, sees what the CPUs share beside it.

import Glibc
import Host
import HostTestSupport
import Support
import Synchronization
import Testing
import X86
import X86CPU

@Suite struct ShootdownTests {
  private static let shared: UInt64 = 0x5000
  private static let callers = 2
  private static let rounds = 50

  /// One thread uses a machine at a time.
  private final class Guests: @unchecked Sendable {
    let machines: [TestMachine]
    let isDone = Atomic<Bool>(false)
    let wrong = Atomic<Int>(0)

    init() {
      let first = TestMachine(threshold: 0)
      let others = (0..<ShootdownTests.callers).map { _ in
        TestMachine(threshold: 0, sharing: first)
      }
      machines = [first] + others
      for (n, machine) in machines.enumerated() {
        machine.setLongMode()
        let start = 0x1000 + n * 0x1000
        // mov ecx, 100 ; then until it is 0: a store behind the shared code, or a call of it ; hlt
        let loop = n == 0 ? Self.store : Self.call(start + 5)
        machine.load([0xB9, 100, 0, 0, 0] + loop, at: start)
      }
      first.load([0xFF, 0xC0, 0xC3], at: Int(ShootdownTests.shared))  // inc eax ; ret
      // Page-table entries get their accessed and dirty bits.
      for n in machines.indices { run(n) }
    }

    /// mov [0x5800], ecx ; dec ecx ; jnz ; hlt
    private static let store: [UInt8] = [
      0x89, 0x0C, 0x25, 0, 0x58, 0, 0, 0xFF, 0xC9, 0x75, 0xF5, 0xF4,
    ]

    /// call 0x5000 ; dec ecx ; jnz ; hlt
    private static func call(_ address: Int) -> [UInt8] {
      let distance = UInt16(Int(ShootdownTests.shared) - address - 5)
      let (low, high) = (UInt8(distance & 0xFF), UInt8(distance >> 8))
      return [0xE8, low, high, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xF4]
    }

    func run(_ n: Int) {
      let machine = machines[n]
      machine.cpu.gpr[0] = 0
      machine.cpu.gpr[4] = UInt64(0x8000 + n * 0x1000)
      var reason = machine.run(from: UInt64(0x1000 + n * 0x1000))
      while reason == .externalInterrupt { reason = machine.run() }
      if reason != .hlt || machine.cpu.gpr[0] != (n == 0 ? 0 : 100) {
        wrong.add(1, ordering: .relaxed)
      }
    }

    /// What others do to the CPUs.
    func disturb() {
      let page = machines[0].memory + Int(ShootdownTests.shared)
      let roots = machines.map { $0.cpu.vmxControls.eptPointer & EPTEntry.addressMask }
      var n = 0
      while !isDone.load(ordering: .relaxed) {
        n = (n + 1) % machines.count
        PhysicalCPU.noteHostWrite(page, count: 1)
        GuestSpaces.shared.add(roots[n]) { _ in true }
        machines[n].processor.kick()
        GuestSpaces.shared.remove(roots[n])
        sched_yield()
      }
    }
  }

  @Test func codePagesComeAndGo() throws {
    let guests = Guests()
    let running = SharedCount(guests.machines.count)
    try HostThread.all(guests.machines.count + 1) { thread in
      guard thread <= guests.machines.count else { return guests.disturb() }
      for _ in 0..<Self.rounds { guests.run(thread - 1) }
      if running.finish() { guests.isDone.store(true, ordering: .relaxed) }
    }
    #expect(guests.wrong.load(ordering: .relaxed) == 0)
  }

  private final class SharedCount: Sendable {
    private let left: Atomic<Int>
    init(_ count: Int) { left = Atomic(count) }
    /// Whether this was the last.
    func finish() -> Bool { left.subtract(1, ordering: .relaxed).newValue == 0 }
  }
}
