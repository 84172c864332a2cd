// SPDX-License-Identifier: Apache-2.0
//
// Exits to user space, each with what the client sees and how the guest goes on. Those of ports
// and memory must be the same on the kernel's KVM.

import CHost
import KVMClient
import Testing

@Suite(.serialized) struct ExitTests {
  @Test(arguments: Engine.available)
  func outThenHalt(_ engine: Engine) throws {
    let guest = try Guest(engine)
    // mov al, 0x41; out 0xE9, al; hlt
    guest.load([0xB0, 0x41, 0xE6, 0xE9, 0xF4])
    let out = try #require(try guest.nextOut())
    #expect(out.port == 0xE9)
    #expect(out.value == 0x41)
    #expect(try guest.isHalt())
    #expect(try guest.cpu.registers().rip == 0x1005)
  }

  @Test(arguments: Engine.available)
  func inputOfEachWidth(_ engine: Engine) throws {
    let guest = try Guest(engine)
    // mov eax, -1; mov dx, 0x1234; in al, dx; in ax, dx; in eax, dx; hlt
    guest.load([
      0x66, 0xB8, 0xFF, 0xFF, 0xFF, 0xFF, 0xBA, 0x34, 0x12, 0xEC, 0xED, 0x66, 0xED, 0xF4,
    ])
    for (width, value) in [(1, 0x11), (2, 0x2222), (4, 0x3333_3333)] {
      guard case .io(let access) = try guest.run() else {
        Issue.record("no I/O")
        return
      }
      #expect(!access.isWrite && access.port == 0x1234 && access.width == width)
      access.data.storeBytes(of: UInt32(value), as: UInt32.self)
    }
    #expect(try guest.isHalt())
    #expect(try guest.cpu.registers().rax == 0x3333_3333)
  }

  @Test func narrowInputKeepsTheRest() throws {
    let guest = try Guest(.software)
    // mov eax, -1; in al, 0x40 is the timer's with chips; here 0x77; hlt
    guest.load([0x66, 0xB8, 0xFF, 0xFF, 0xFF, 0xFF, 0xE4, 0x77, 0xF4])
    guard case .io(let access) = try guest.run() else {
      Issue.record("no I/O")
      return
    }
    access.data.storeBytes(of: 0x12, as: UInt8.self)
    #expect(try guest.isHalt())
    #expect(try guest.cpu.registers().rax == 0xFFFF_FF12)
  }

  @Test(arguments: Engine.available)
  func stringOutput(_ engine: Engine) throws {
    let guest = try Guest(engine)
    // mov si, 0x2000; mov cx, 5; mov dx, 0xE9; rep outsb; hlt
    guest.load([0xBE, 0x00, 0x20, 0xB9, 0x05, 0x00, 0xBA, 0xE9, 0x00, 0xF3, 0x6E, 0xF4])
    guest.load(Array("hello".utf8), at: 0x2000)
    var bytes: [UInt8] = []
    while bytes.count < 5 {
      guard case .io(let access) = try guest.run(), access.isWrite, access.width == 1 else {
        Issue.record("no output")
        return
      }
      for index in 0..<access.count {
        bytes.append(access.data.load(fromByteOffset: index, as: UInt8.self))
      }
    }
    #expect(String(decoding: bytes, as: UTF8.self) == "hello")
    #expect(try guest.isHalt())
    let registers = try guest.cpu.registers()
    #expect(registers.rcx & 0xFFFF == 0)
    #expect(registers.rsi & 0xFFFF == 0x2005)
  }

  @Test(arguments: Engine.available)
  func stringInput(_ engine: Engine) throws {
    let guest = try Guest(engine)
    // mov di, 0x2000; mov cx, 3; mov dx, 0x99; rep insw; hlt
    guest.load([0xBF, 0x00, 0x20, 0xB9, 0x03, 0x00, 0xBA, 0x99, 0x00, 0xF3, 0x6D, 0xF4])
    var next: UInt16 = 0x1001
    while next < 0x1004 {
      guard case .io(let access) = try guest.run(), !access.isWrite, access.width == 2 else {
        Issue.record("no input")
        return
      }
      for index in 0..<access.count {
        access.data.storeBytes(of: next, toByteOffset: index * 2, as: UInt16.self)
        next += 1
      }
    }
    #expect(try guest.isHalt())
    #expect(guest.read(0x2000, as: UInt16.self) == 0x1001)
    #expect(guest.read(0x2004, as: UInt16.self) == 0x1003)
    #expect(guest.read(0x2006, as: UInt16.self) == 0)
  }

  @Test(arguments: Engine.available)
  func memoryMappedReadAndWrite(_ engine: Engine) throws {
    let guest = try Guest(engine)
    try guest.setDataBase(0xD000_0000)
    // mov eax, [0x10]; add eax, 1; mov [0x20], eax; hlt
    guest.load([0x66, 0xA1, 0x10, 0, 0x66, 0x83, 0xC0, 0x01, 0x66, 0xA3, 0x20, 0, 0xF4])
    guard case .mmio(let read) = try guest.run() else {
      Issue.record("no read")
      return
    }
    #expect(!read.isWrite && read.address == 0xD000_0010 && read.width == 4)
    read.data.storeBytes(of: 0x1122_3344, as: UInt32.self)
    guard case .mmio(let write) = try guest.run() else {
      Issue.record("no write")
      return
    }
    #expect(write.isWrite && write.address == 0xD000_0020 && write.width == 4)
    #expect(write.data.loadUnaligned(as: UInt32.self) == 0x1122_3345)
    #expect(try guest.isHalt())
  }

  @Test(arguments: Engine.available)
  func memoryMappedReadModifyWrite(_ engine: Engine) throws {
    let guest = try Guest(engine)
    try guest.setDataBase(0xD000_0000)
    // or byte [0x30], 0x80; hlt
    guest.load([0x80, 0x0E, 0x30, 0, 0x80, 0xF4])
    guard case .mmio(let read) = try guest.run(), !read.isWrite else {
      Issue.record("no read")
      return
    }
    read.data.storeBytes(of: 0x01, as: UInt8.self)
    guard case .mmio(let write) = try guest.run(), write.isWrite else {
      Issue.record("no write")
      return
    }
    #expect(write.address == 0xD000_0030 && write.width == 1)
    #expect(write.data.load(as: UInt8.self) == 0x81)
    #expect(try guest.isHalt())
  }

  /// The low half is memory, the high half is not.
  @Test func accessThatCrossesTheEndOfMemory() throws {
    let guest = try Guest(.software)
    try guest.setDataBase(0x1F_F000)
    // mov eax, [0xFFE]; hlt
    guest.load([0x66, 0xA1, 0xFE, 0x0F, 0xF4])
    guest.store(UInt16(0xBEEF), at: 0x1F_FFFE)
    guard case .mmio(let read) = try guest.run() else {
      Issue.record("no read")
      return
    }
    #expect(read.address == 0x20_0000 && read.width == 2)
    read.data.storeBytes(of: 0xDEAD, as: UInt16.self)
    #expect(try guest.isHalt())
    #expect(try guest.cpu.registers().rax == 0xDEAD_BEEF)
  }

  @Test func tripleFaultIsShutdown() throws {
    let guest = try Guest(.software)
    var sregs = try guest.cpu.specialRegisters()
    sregs.idt.limit = 0
    try guest.cpu.setSpecialRegisters(sregs)
    guest.load([0x0F, 0x0B])  // ud2
    guard case .shutdown = try guest.run() else {
      Issue.record("no shutdown")
      return
    }
  }

  @Test func kickedBeforeRunning() throws {
    let guest = try Guest(.software)
    guest.load([0xEB, 0xFE])
    guest.cpu.shared.pointee.immediate_exit = 1
    guard case .interrupted = try guest.run() else {
      Issue.record("not interrupted")
      return
    }
  }

  @Test func slotGoesAndComesBack() throws {
    let guest = try Guest(.software)
    try guest.machine.setMemory(
      slot: 1, guestAddress: 0xD000_0000, size: 4096, hostAddress: guest.memory + 0x5000)
    try guest.setDataBase(0xD000_0000)
    guest.store(UInt32(77), at: 0x5000)
    // again: mov eax, [0]; out 0x80, eax; jmp again
    guest.load([0x66, 0xA1, 0, 0, 0x66, 0xE7, 0x80, 0xEB, 0xF7])
    #expect(try guest.nextOut()?.value == 77)
    try guest.machine.setMemory(
      slot: 1, guestAddress: 0xD000_0000, size: 0, hostAddress: guest.memory)
    guard case .mmio(let read) = try guest.run() else {
      Issue.record("memory is still there")
      return
    }
    read.data.storeBytes(of: 5, as: UInt32.self)
    #expect(try guest.nextOut()?.value == 5)
    try guest.machine.setMemory(
      slot: 1, guestAddress: 0xD000_0000, size: 4096, hostAddress: guest.memory + 0x6000)
    guest.store(UInt32(88), at: 0x6000)
    #expect(try guest.nextOut()?.value == 88)
  }

  @Test func readOnlyMemory() throws {
    let guest = try Guest(.software)
    try guest.machine.setMemory(
      slot: 1, guestAddress: 0xD000_0000, size: 4096, hostAddress: guest.memory + 0x5000,
      flags: UInt32(KVM_MEM_READONLY))
    try guest.setDataBase(0xD000_0000)
    guest.store(UInt8(9), at: 0x5000)
    // mov al, [0]; mov [1], al; hlt
    guest.load([0xA0, 0, 0, 0xA2, 1, 0, 0xF4])
    guard case .mmio(let write) = try guest.run() else {
      Issue.record("no write exit")
      return
    }
    #expect(write.isWrite && write.address == 0xD000_0001)
    #expect(write.data.load(as: UInt8.self) == 9)
    #expect(try guest.isHalt())
    #expect(guest.read(0x5001, as: UInt8.self) == 0)
  }
}
