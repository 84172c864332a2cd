// SPDX-License-Identifier: Apache-2.0
//
// A small client of the KVM API in plain ioctls, as another project's program would be: it uses
// the kernel's headers alone.

import CHost
import Glibc

/// A machine with one page or more of memory at 0 and a vCPU in real mode that starts there.
final class Client {
  let system: Int32
  let machine: Int32
  let cpu: Int32
  let run: UnsafeMutablePointer<kvm_run>
  let memory: UnsafeMutableRawPointer
  let size: Int

  init(
    _ code: [UInt8], size: Int = 1 << 16, memory given: UnsafeMutableRawPointer? = nil,
    chips: Bool = false, ringBytes: UInt64 = 0
  ) throws {
    system = open("/dev/kvm", O_RDWR | O_CLOEXEC)
    try expect(system >= 0, "open")
    machine = ioctl(system, UInt(CKVM_CREATE_VM), CInt(0))
    try expect(machine >= 0, "KVM_CREATE_VM")
    self.size = size
    memory =
      given
      ?? mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
    if ringBytes != 0 {
      var capability = kvm_enable_cap()
      capability.cap = UInt32(KVM_CAP_DIRTY_LOG_RING)
      capability.args.0 = ringBytes
      try expect(ioctl(machine, UInt(CKVM_ENABLE_CAP), &capability) == 0, "dirty ring")
    }
    if chips { try expect(ioctl(machine, UInt(CKVM_CREATE_IRQCHIP), CInt(0)) == 0, "irqchip") }
    try Self.setMemory(machine, slot: 0, at: 0, memory, size)
    cpu = ioctl(machine, UInt(CKVM_CREATE_VCPU), CInt(0))
    try expect(cpu >= 0, "KVM_CREATE_VCPU")
    let bytes = Int(ioctl(system, UInt(CKVM_GET_VCPU_MMAP_SIZE), CInt(0)))
    let pages = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0)
    try expect(pages != MAP_FAILED, "mmap")
    run = pages!.assumingMemoryBound(to: kvm_run.self)
    memory.copyMemory(from: code, byteCount: code.count)
    try reset()
  }

  deinit {
    munmap(run, 12288)
    close(cpu)
    close(machine)
    close(system)
  }

  static func setMemory(
    _ machine: Int32, slot: UInt32, at base: UInt64, _ memory: UnsafeMutableRawPointer, _ size: Int,
    flags: UInt32 = 0
  ) throws {
    var region = kvm_userspace_memory_region(
      slot: slot, flags: flags, guest_phys_addr: base, memory_size: UInt64(size),
      userspace_addr: UInt64(UInt(bitPattern: memory)))
    try expect(
      ioctl(machine, UInt(CKVM_SET_USER_MEMORY_REGION), &region) == 0, "memory region")
  }

  /// Segments at 0, RIP 0, interrupts off.
  func reset() throws {
    var special = kvm_sregs()
    try expect(ioctl(cpu, UInt(CKVM_GET_SREGS), &special) == 0)
    special.cs.base = 0
    special.cs.selector = 0
    try expect(ioctl(cpu, UInt(CKVM_SET_SREGS), &special) == 0)
    var registers = kvm_regs()
    registers.rflags = 2
    registers.rsp = 0x8000
    try expect(ioctl(cpu, UInt(CKVM_SET_REGS), &registers) == 0)
  }

  var registers: kvm_regs {
    var registers = kvm_regs()
    _ = ioctl(cpu, UInt(CKVM_GET_REGS), &registers)
    return registers
  }

  /// KVM_RUN: 0, or the negative errno.
  func enter() -> Int32 { ioctl(cpu, UInt(CKVM_RUN), CInt(0)) == 0 ? 0 : -errno }

  /// Runs to the next OUT and returns its byte.
  func output(line: Int = #line) throws -> UInt8 {
    let result = enter()
    try expect(result == 0, "KVM_RUN: \(result)", line: line)
    try expect(
      run.pointee.exit_reason == UInt32(KVM_EXIT_IO), "exit \(run.pointee.exit_reason)", line: line)
    let data = UnsafeRawPointer(run) + Int(run.pointee.io.data_offset)
    return data.load(as: UInt8.self)
  }
}

/// Pieces of 16-bit code.
enum Code {
  /// mov al, value; out 0xE9, al
  static func out(_ value: UInt8) -> [UInt8] { [0xB0, value, 0xE6, 0xE9] }
  /// jmp $
  static let loop: [UInt8] = [0xEB, 0xFE]
  static let halt: [UInt8] = [0xF4]
}
