// SPDX-License-Identifier: Apache-2.0
//
// Guests that keep others out, by bus locks or by faults of fault deliveries without end: they
// exit where the client asks for it, and a kick ends them in any case.

import CHost
import Glibc
import KVM
import SystemPackage
import Testing

@Suite(.serialized) struct HoggingTests {
  private static let lockFlag = UInt16(KVM_RUN_X86_BUS_LOCK)

  @Test(arguments: [false, true])
  func busLocksLeave(_ translates: Bool) throws {
    let client = try Client(translates: translates) {
      try $0.enable(KVM_CAP_X86_BUS_LOCK_EXIT, UInt64(KVM_BUS_LOCK_DETECTION_EXIT))
    }
    // again: lock inc dword [rsi]; loop again; out 0x90, al; lock inc dword [rdi]; out 0x91, al
    client.load([
      0xF0, 0xFF, 0x06, 0xE2, 0xFB, 0xE6, 0x90, 0xF0, 0xFF, 0x07, 0xE6, 0x91,
    ])
    try client.setLongMode()
    try client.setRegisters {
      $0.rcx = 3000
      $0.rsi = 0x5004
      $0.rdi = 0x503E
    }
    #expect(try client.nextOut()?.port == 0x90)
    #expect(client.shared.pointee.flags == 0)
    #expect(try client.run() == KVM_EXIT_X86_BUS_LOCK)
    #expect(client.shared.pointee.flags == Self.lockFlag)
    #expect(try client.registers.rip == 0x100A)
    #expect(client.memory.loadUnaligned(fromByteOffset: 0x503E, as: UInt32.self) == 1)
    #expect(try client.nextOut()?.port == 0x91)
    #expect(client.shared.pointee.flags == 0)
    // A second lap: every one of them.
    try client.setRegisters {
      $0.rip = 0x1000
      $0.rcx = 2
      $0.rsi = 0x503E
    }
    #expect(try client.run() == KVM_EXIT_X86_BUS_LOCK)
    #expect(try client.run() == KVM_EXIT_X86_BUS_LOCK)
    #expect(try client.nextOut()?.port == 0x90)
    #expect(client.memory.loadUnaligned(fromByteOffset: 0x503E, as: UInt32.self) == 3)
  }

  @Test func busLocksAreNoticedOnDemand() throws {
    let client = try Client()
    #expect(try client.capability(KVM_CAP_X86_BUS_LOCK_EXIT) == 3)
    func error(_ mode: UInt64) -> Errno? {
      client.error { () throws(Errno) in try client.enable(KVM_CAP_X86_BUS_LOCK_EXIT, mode) }
    }
    #expect(error(3) == .invalidArgument && error(4) == .invalidArgument)
    #expect(error(1) == nil && error(0) == nil)
    client.load([0xF0, 0xFF, 0x07, 0xE6, 0x91])
    try client.setLongMode()
    try client.setRegisters { $0.rdi = 0x503E }
    #expect(try client.nextOut()?.port == 0x91)
  }

  @Test func notifyWindow() throws {
    var errors: [Errno?] = []
    let client = try Client { client in
      for flags: UInt64 in [0, 2, 4 | 1, 1 << 32 | 3] {
        errors.append(
          client.error { () throws(Errno) in try client.enable(KVM_CAP_X86_NOTIFY_VMEXIT, flags) })
      }
    }
    #expect(errors == [.invalidArgument, .invalidArgument, .invalidArgument, nil])
    #expect(try client.capability(KVM_CAP_X86_NOTIFY_VMEXIT) == 1)
    let late = client.error { () throws(Errno) in try client.enable(KVM_CAP_X86_NOTIFY_VMEXIT, 1) }
    #expect(late == .invalidArgument)
    client.load([0xE6, 0x90])
    #expect(try client.nextOut()?.port == 0x90)
  }

  /// 32-bit code at CPL 3 whose alignment checks fault on their own handler's stack.
  private func setAlignmentTrap(_ client: Client, stack: UInt64) throws {
    client.memory.storeBytes(of: 0x00CF_FB00_0000_FFFF, toByteOffset: 0x2018, as: UInt64.self)
    client.memory.storeBytes(of: 0x00CF_F300_0000_FFFF, toByteOffset: 0x2020, as: UInt64.self)
    client.memory.storeBytes(
      of: 0x0000_8E00_001B_1100, toByteOffset: 0x3000 + 17 * 8, as: UInt64.self)
    try client.changeSpecial {
      $0.cr0 = 1 | 1 << 18 | 0x30
      ($0.gdt.base, $0.gdt.limit) = (0x2000, 0x27)
      ($0.idt.base, $0.idt.limit) = (0x3000, 0x7FF)
      for path in [\kvm_sregs.ss, \.ds, \.es, \.fs, \.gs] {
        var segment = $0[keyPath: path]
        (segment.selector, segment.dpl, segment.type, segment.limit) = (0x23, 3, 3, 0xFFFF_FFFF)
        (segment.g, segment.db, segment.base, segment.present) = (1, 1, 0, 1)
        (segment.s, segment.unusable) = (1, 0)
        $0[keyPath: path] = segment
      }
      $0.cs = $0.ss
      ($0.cs.selector, $0.cs.type) = (0x1B, 11)
    }
    try client.setRegisters {
      $0.rsp = stack
      $0.rflags = 1 << 18 | 3 << 12 | 2
    }
  }

  @Test func endlessAlignmentChecksHearAKick() throws {
    let client = try Client()
    client.load([0x50, 0xE6, 0x90])  // push eax
    client.load([0xE6, 0x91], at: 0x1100)
    try setAlignmentTrap(client, stack: 0x8001)
    let thread = Thread {
      usleep(50_000)
      client.kick()
    }
    let start = time(nil)
    #expect(client.error { () throws(Errno) in _ = try client.run() } == .interrupted)
    #expect(time(nil) - start < 4)
    thread.join()
    // With an aligned stack there is no exception.
    try client.setRegisters { $0.rsp = 0x8000 }
    #expect(try client.nextOut()?.port == 0x90)
  }

  @Test func alignmentChecksReachTheirHandler() throws {
    let client = try Client()
    client.load([0xA1, 0x01, 0x50, 0, 0])  // mov eax, [0x5001]
    client.load([0xE6, 0x91], at: 0x1100)
    try setAlignmentTrap(client, stack: 0x8000)
    #expect(try client.nextOut()?.port == 0x91)
    func word(_ address: Int) -> UInt32 {
      client.memory.load(fromByteOffset: address, as: UInt32.self)
    }
    // Error code, EIP, CS, EFLAGS with RF.
    #expect(word(0x7FF0) == 0 && word(0x7FF4) == 0x1000 && word(0x7FF8) == 0x1B)
    #expect(word(0x7FFC) & 1 << 16 != 0)
  }
}
