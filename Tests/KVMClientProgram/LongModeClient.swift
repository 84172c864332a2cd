// SPDX-License-Identifier: Apache-2.0
//
// A client whose guest is in 64-bit mode over memory that the test can cut, protect or unmap
// under it.

import CHost
import Glibc

/// A vCPU in 64-bit mode: tables, code and a stack in the first memory, the memory of a file behind
/// it.
final class LongModeClient {
  static let size = 1 << 16
  static let base: UInt64 = 1 << 21
  static let start: UInt64 = 0x4000

  let client: Client
  let file: Int32
  /// What the guest has at `base`.
  let memory: UnsafeMutableRawPointer

  /// - Parameters:
  ///   - code: at `start`.
  ///   - given: memory for `base`; else that of a new file.
  init(_ code: [UInt8], memory given: UnsafeMutableRawPointer? = nil) throws {
    client = try Client([], size: Self.size)
    file = memfd_create("memory", 0)
    ftruncate(file, Self.size)
    memory = given ?? mmap(nil, Self.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)!
    try Client.setMemory(client.machine, slot: 1, at: Self.base, memory, Self.size)
    func store(_ value: UInt64, _ offset: Int) {
      client.memory.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    }
    store(0x2003, 0x1000)
    store(0x3003, 0x2000)
    for page in 0..<512 { store(UInt64(page) << 21 | 0x83, 0x3000 + page * 8) }
    (client.memory + Int(Self.start)).copyMemory(from: code, byteCount: code.count)
    try enterLongMode()
  }

  deinit {
    munmap(memory, Self.size)
    close(file)
  }

  private func enterLongMode() throws {
    var special = kvm_sregs()
    try expect(ioctl(client.cpu, UInt(CKVM_GET_SREGS), &special) == 0)
    special.cr0 = 0x8000_0011
    special.cr3 = 0x1000
    special.cr4 = 0x620
    special.efer = 0x500
    var code = special.cs
    (code.base, code.limit, code.selector) = (0, .max, 8)
    (code.type, code.s, code.present, code.l, code.db, code.g) = (11, 1, 1, 1, 0, 1)
    special.cs = code
    (code.selector, code.type, code.l, code.db) = (16, 3, 0, 1)
    (special.ss, special.ds, special.es) = (code, code, code)
    try expect(ioctl(client.cpu, UInt(CKVM_SET_SREGS), &special) == 0)
    var registers = kvm_regs()
    registers.rip = Self.start
    registers.rflags = 2
    registers.rbx = Self.base
    registers.rsp = Self.base + 0x8000
    registers.r8 = Self.base + UInt64(Self.size)
    try expect(ioctl(client.cpu, UInt(CKVM_SET_REGS), &registers) == 0)
    var unit = floatingPoint
    unit.fcw = 0x37F
    // XMM2 = 1
    withUnsafeMutableBytes(of: &unit.xmm) {
      $0.storeBytes(of: 1, toByteOffset: 32, as: UInt64.self)
    }
    try expect(ioctl(client.cpu, UInt(CKVM_SET_FPU), &unit) == 0)
  }

  var registers: kvm_regs { client.registers }

  var floatingPoint: kvm_fpu {
    var unit = kvm_fpu()
    _ = ioctl(client.cpu, UInt(CKVM_GET_FPU), &unit)
    return unit
  }

  /// XMM1's low half.
  var vector: UInt64 {
    withUnsafeBytes(of: floatingPoint.xmm) { $0.load(fromByteOffset: 16, as: UInt64.self) }
  }

  /// The top of the x87 unit's stack.
  var stackTop: UInt16 { floatingPoint.fsw >> 11 & 7 }

  /// System calls that nobody sees.
  func truncate(_ size: Int) { _ = chost_syscall(Int(SYS_ftruncate), Int(file), size, 0, 0, 0, 0) }

  func protect(_ protection: Int32) {
    _ = chost_syscall(
      Int(SYS_mprotect), Int(bitPattern: memory), Self.size, Int(protection), 0, 0, 0)
  }
}
