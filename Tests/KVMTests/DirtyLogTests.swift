// SPDX-License-Identifier: Apache-2.0
//
// Dirty logs and rings, and what slots do while they are on: each page that a guest of known
// writes touches is there once, and no other is.

import CHost
import Glibc
import KVM
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct DirtyLogTests {
  private static let logged = UInt32(KVM_MEM_LOG_DIRTY_PAGES)

  /// The log of slot 0, as numbers of pages.
  private func log(_ client: Client, slot: UInt32 = 0) throws(Errno) -> [Int] {
    let words = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: client.memorySize >> 18)
    defer { words.deallocate() }
    words.initialize(repeating: 0)
    var request = kvm_dirty_log()
    request.slot = slot
    request.dirty_bitmap = UnsafeMutableRawPointer(words.baseAddress)
    try client.set(client.vm, CKVM_GET_DIRTY_LOG, request)
    return words.enumerated().flatMap { word, bits in
      (0..<64).filter { bits & 1 << UInt64($0) != 0 }.map { word * 64 + $0 }
    }
  }

  private func clear(_ client: Client, first: UInt64, count: UInt32, _ bits: UInt64) -> Errno? {
    var words = [UInt64](repeating: bits, count: 8)
    return words.withUnsafeMutableBytes { bytes in
      var request = kvm_clear_dirty_log()
      request.first_page = first
      request.num_pages = count
      request.dirty_bitmap = bytes.baseAddress
      return client.error(client.vm, CKVM_CLEAR_DIRTY_LOG, with: request)
    }
  }

  /// A loop in 64-bit mode that writes to the pages at RSI and RDI, then to a port. Its table's
  /// accessed and dirty bits are set, so that it writes nothing else.
  private func loop(_ client: Client) throws {
    client.load([
      0x48, 0xFF, 0x06,  // inc qword [rsi]
      0x48, 0xFF, 0x07,  // inc qword [rdi]
      0xE6, 0x90,  // out 0x90, al
      0xEB, 0xF6,  // jmp
    ])
    try client.setLongMode()
    try client.setRegisters {
      $0.rsi = 0x10_0000
      $0.rdi = 0x10_5008
    }
  }

  private func turn(_ client: Client, _ count: Int = 1) throws {
    for _ in 0..<count { #expect(try client.nextOut()?.port == 0x90) }
  }

  @Test(arguments: [false, true])
  func eachWriteIsSeenOnce(_ translates: Bool) throws {
    let client = try Client(memoryFlags: Self.logged, translates: translates)
    try loop(client)
    try turn(client, 3)
    #expect(try log(client) == [0x100, 0x105])
    #expect(try log(client) == [])
    try turn(client, translates ? 200 : 2)
    #expect(try log(client) == [0x100, 0x105])
    // Now the TLB has both pages as writable; the log must take that back.
    try turn(client)
    #expect(try log(client) == [0x100, 0x105])
    try client.setRegisters { $0.rdi = 0x10_0010 }
    try turn(client)
    #expect(try log(client) == [0x100])
  }

  /// A task switch writes the old task's TSS and descriptors, all in clean pages, and its page
  /// tables may be ones that the guest has not used yet.
  @Test(arguments: [false, true])
  func taskSwitchIsLogged(_ pages: Bool) throws {
    let client = try Client(memoryFlags: Self.logged)
    func store(_ value: UInt64, _ address: Int) {
      client.memory.storeBytes(of: value, toByteOffset: address, as: UInt64.self)
    }
    store(0x00CF_9B00_0000_FFFF, 0x3008)
    store(0x00CF_9300_0000_FFFF, 0x3010)
    store(0x0000_8B00_5000_0067, 0x3018)
    store(0x0000_8900_6000_0067, 0x3020)
    store(0xE3, 0x20000)  // one page of 4 MiB, accessed and written
    store(0x83, 0x21000)  // neither yet
    let image: [(Int, UInt32)] = [
      (0x1C, 0x21000), (0x20, 0x1100), (0x24, 2), (0x38, 0x8000), (0x48, 0x10), (0x4C, 8),
      (0x50, 0x10), (0x54, 0x10), (0x58, 0x10), (0x5C, 0x10),
    ]
    for (offset, value) in image {
      client.memory.storeBytes(of: value, toByteOffset: 0x6000 + offset, as: UInt32.self)
    }
    client.load([0xEA, 0, 0, 0, 0, 0x20, 0])  // jmp 0x20:0
    client.load([0xE6, 0x90], at: 0x1100)
    try client.changeSpecial {
      $0.cr0 = pages ? 0x8000_0031 : 0x31
      ($0.cr3, $0.cr4) = (0x20000, 0x10)
      ($0.gdt.base, $0.gdt.limit) = (0x3000, 0x27)
      ($0.cs.db, $0.cs.g, $0.cs.limit, $0.cs.type, $0.cs.selector) = (1, 1, 0xFFFF_FFFF, 11, 8)
      ($0.ss.db, $0.ss.g, $0.ss.limit, $0.ss.type, $0.ss.selector) = (1, 1, 0xFFFF_FFFF, 3, 16)
      ($0.tr.base, $0.tr.limit, $0.tr.type, $0.tr.selector) = (0x5000, 0x67, 11, 0x18)
    }
    #expect(try client.nextOut()?.port == 0x90)
    let special = try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs())
    #expect(special.tr.selector == 0x20 && special.cr3 == (pages ? 0x21000 : 0x20000))
    #expect(client.memory.load(fromByteOffset: 0x5020, as: UInt32.self) == 0x1007)
    #expect(try log(client).filter { $0 < 16 } == [3, 5])
    #expect(try log(client) == [])
  }

  @Test func logBeginsWithTheFlagAndEndsWithIt() throws {
    let client = try Client()
    try loop(client)
    try turn(client)
    #expect(
      client.error { () throws(Errno) in _ = try log(client) } == .noSuchFileOrDirectory)
    try client.setMemory(
      0, at: 0, size: client.memorySize, host: client.memory, flags: Self.logged)
    try turn(client)
    #expect(try log(client) == [0x100, 0x105])
    try client.setMemory(0, at: 0, size: client.memorySize, host: client.memory)
    try turn(client)
    #expect(
      client.error { () throws(Errno) in _ = try log(client) } == .noSuchFileOrDirectory)
    #expect(
      client.error { () throws(Errno) in _ = try log(client, slot: 40_000) } == .invalidArgument)
  }

  @Test func manualProtection() throws {
    let client = try Client(memoryFlags: Self.logged) {
      try $0.enable(
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, UInt64(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
    }
    try loop(client)
    try turn(client)
    #expect(try log(client) == [0x100, 0x105])
    #expect(try log(client) == [0x100, 0x105])
    #expect(clear(client, first: 0x100, count: 64, 1) == nil)
    #expect(try log(client) == [0x105])
    try turn(client)
    #expect(try log(client) == [0x100, 0x105])
    #expect(clear(client, first: 0x101, count: 64, 1) == .invalidArgument)
    #expect(clear(client, first: 0x100, count: 63, 1) == .invalidArgument)
    #expect(clear(client, first: 0x1C0, count: 64, 1) == nil)
    #expect(clear(client, first: 0x200, count: 64, 1) == .invalidArgument)
  }

  @Test func logThatIsFullAtFirst() throws {
    let client = try Client(memoryFlags: Self.logged) { client in
      let both = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET
      #expect(
        client.error { () throws(Errno) in
          try client.enable(
            KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, UInt64(KVM_DIRTY_LOG_INITIALLY_SET))
        } == .invalidArgument)
      try client.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, UInt64(both))
    }
    #expect(try log(client) == Array(0..<512))
    #expect(clear(client, first: 0, count: 512, .max) == nil)
    try loop(client)
    try turn(client)
    #expect(try log(client) == [0x100, 0x105])
  }

  @Test func writesByTheHypervisorCount() throws {
    let client = try Client(chips: .all, memoryFlags: Self.logged)
    try client.changeSpecial { _ in }
    #expect(try client.setMSR(0x4B56_4D01, 0x6000 | 1))
    #expect(try log(client) == [6])
  }

  /// A slot moves while the guest runs.
  @Test func movingASlotUnderARunningGuest() throws {
    let client = try Client()
    try client.setMemory(1, at: 0xD000_0000, size: 4096, host: client.memory + 0x6000)
    try client.changeSpecial { $0.ds.base = 0xD000_0000 }
    client.memory.storeBytes(of: 1, toByteOffset: 0x6000, as: UInt8.self)
    // again: cmp byte [0], 1; je again; hlt
    client.load([0x80, 0x3E, 0, 0, 1, 0x74, 0xF9, 0xE6, 0x91, 0xF4])
    let mover = Thread {
      usleep(20_000)
      try? client.setMemory(1, at: 0xD001_0000, size: 4096, host: client.memory + 0x6000)
    }
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(client.shared.pointee.mmio.phys_addr == 0xD000_0000)
    mover.join()
  }

  @Test func manySlots() throws {
    let client = try Client()
    let slots = try client.capability(KVM_CAP_NR_MEMSLOTS)
    #expect(slots == 32764)
    for slot in 1..<UInt32(slots) {
      try client.setMemory(
        slot, at: 0x1000_0000 + UInt64(slot) * 0x2000, size: 4096, host: client.memory + 0x6000)
    }
    #expect(
      client.error { () throws(Errno) in
        try client.setMemory(
          UInt32(slots), at: 0x8000_0000, size: 4096, host: client.memory + 0x6000)
      } == .invalidArgument)
    client.memory.storeBytes(of: 0x5A, toByteOffset: 0x6000, as: UInt8.self)
    try client.changeSpecial { $0.ds.base = 0x1000_0000 + 30_000 * 0x2000 }
    // mov al, [0]; out 0x90, al
    client.load([0xA0, 0, 0, 0xE6, 0x90])
    #expect(try client.nextOut()?.value == 0x5A)
  }

  // MARK: Ring

  @Test func ring() throws {
    let bytes: UInt64 = 4096
    let client = try Client(memoryFlags: Self.logged) { client in
      func error(_ bytes: UInt64) -> Errno? {
        client.error { () throws(Errno) in try client.enable(KVM_CAP_DIRTY_LOG_RING, bytes) }
      }
      #expect(error(3000) == .invalidArgument)
      #expect(error(2048) == .invalidArgument)
      #expect(error(1 << 30) == .argListTooLong)
      #expect(error(bytes) == nil)
      #expect(error(bytes) == .invalidArgument)
    }
    #expect(
      client.error { () throws(Errno) in _ = try log(client) } == .noSuchAddressOrDevice)
    let ring = try #require(try client.hypervisor.dirtyRing(client.cpu))
    #expect(ring.count == 4096)
    try loop(client)
    try turn(client, 2)
    let entries = ring.bindMemory(to: kvm_dirty_gfn.self)
    #expect(entries[0].flags == 1 && entries[0].slot == 0 && entries[0].offset == 0x100)
    #expect(entries[1].flags == 1 && entries[1].offset == 0x105)
    #expect(entries[2].flags == 0)
    #expect(try client.call(client.vm, CKVM_RESET_DIRTY_RINGS) == 0)
    entries[0].flags = 2
    #expect(try client.call(client.vm, CKVM_RESET_DIRTY_RINGS) == 1)
    #expect(entries[0].flags == 0)
    try turn(client)
    #expect(entries[2].flags == 1 && entries[2].offset == 0x100)
    #expect(entries[3].flags == 0)
  }

  @Test func fullRing() throws {
    let client = try Client(memoryFlags: Self.logged) {
      try $0.enable(KVM_CAP_DIRTY_LOG_RING, 4096)
    }
    // again: inc qword [rsi]; add rsi, 0x1000; jmp again
    client.load([0x48, 0xFF, 0x06, 0x48, 0x81, 0xC6, 0, 0x10, 0, 0, 0xEB, 0xF4])
    try client.setLongMode()
    try client.setRegisters { $0.rsi = 0x2_0000 }
    #expect(try client.run() == KVM_EXIT_DIRTY_RING_FULL)
    #expect(try client.run() == KVM_EXIT_DIRTY_RING_FULL)
    let ring = try #require(try client.hypervisor.dirtyRing(client.cpu))
    let entries = ring.bindMemory(to: kvm_dirty_gfn.self)
    let marked = entries.prefix { $0.flags == 1 }.count
    #expect(marked >= 192 && marked < 256)
    for index in 0..<marked { entries[index].flags = 2 }
    #expect(try client.call(client.vm, CKVM_RESET_DIRTY_RINGS) == Int32(marked))
    let before = try client.registers.rsi
    #expect(try client.run() == KVM_EXIT_DIRTY_RING_FULL)
    #expect(try client.registers.rsi > before)
  }
}
