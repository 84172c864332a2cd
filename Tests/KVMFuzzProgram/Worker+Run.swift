// SPDX-License-Identifier: Apache-2.0
//
// KVM_RUN with random code, states and contents of the shared page. It must come back, and with
// a documented answer.

import CHost
import Glibc
import Synchronization

extension Worker {
  /// KVM_RUN a few times, with whatever is in `kvm_run`.
  func run(_ cpu: FuzzedCPU, _ machine: FuzzedMachine) {
    if chance(3) { start(cpu, machine) }
    guard let pages = cpu.pages else { return }
    let shared = pages.assumingMemoryBound(to: kvm_run.self)
    for _ in 0..<1 + below(6) {
      scribble(pages)
      shared.pointee.immediate_exit = chance(8) ? 1 : 0
      let argument: UInt = chance(64) ? UInt(truncatingIfNeeded: word()) : 0
      runningSince.store(Clock.now(), ordering: .sequentiallyConsistent)
      let result = raw("RUN", cpu.descriptor, UInt(CKVM_RUN), argument)
      runningSince.store(0, ordering: .sequentiallyConsistent)
      if result < 0 {
        if ![EINTR, EAGAIN, EFAULT, EINVAL].contains(-result) { fail("RUN: errno \(-result)") }
        if argument != 0, -result != EINVAL { fail("RUN of \(hex(argument)): errno \(-result)") }
        continue
      }
      // Another thread may have run the same vCPU since, so only what cannot be is wrong.
      let reason = shared.pointee.exit_reason
      count("exit \(reason)", 0)
      // Where nothing more would come, mostly begin anew.
      if Self.dead.contains(Int32(truncatingIfNeeded: reason)), !chance(4) { start(cpu, machine) }
      if result > 0 || reason > 64 { fail("RUN: \(result), exit \(reason)") }
    }
  }

  private static let dead = [KVM_EXIT_FAIL_ENTRY, KVM_EXIT_SHUTDOWN, KVM_EXIT_INTERNAL_ERROR]

  /// Clients write what they like.
  private func scribble(_ pages: UnsafeMutableRawPointer) {
    let shared = pages.assumingMemoryBound(to: kvm_run.self)
    shared.pointee.kvm_valid_regs = 0
    shared.pointee.kvm_dirty_regs = 0
    shared.pointee.exit_reason = 0
    switch below(8) {
    // All but the exit reason, which another thread may be about to look at.
    case 0: fill(pages + of([0, 2 + below(510)]) * 8, 8)
    case 1: fill(pages + 32 + below(16) * 8, 16)
    case 2: fill(pages + 4096 + below(1024), 64)
    case 3: fill(pages + 8192 + below(2) * 4, 4)
    case 4:
      shared.pointee.kvm_valid_regs = UInt64(below(chance(8) ? 32 : 8))
      shared.pointee.kvm_dirty_regs = UInt64(below(chance(8) ? 32 : 8))
    default: break
    }
  }

  /// New code and a state in which it runs.
  private func start(_ cpu: FuzzedCPU, _ machine: FuzzedMachine) {
    let code = 0x1000 + below(0x6000)
    GuestCode.write(self, machine.memory + code)
    let mode = of(GuestMode.allCases)
    if mode == .long { GuestMode.writeTables(machine.memory) }
    var special = kvm_sregs()
    if raw("GET_SREGS", cpu.descriptor, UInt(CKVM_GET_SREGS), pointer(&special)) < 0 { return }
    mode.apply(&special)
    if chance(8) { change(&special.cr0) }
    if chance(8) { change(&special.ss) }
    // Another thread may have changed what this one has read.
    let done = raw("SET_SREGS", cpu.descriptor, UInt(CKVM_SET_SREGS), pointer(&special))
    if done < 0, done != -EINVAL { fail("SET_SREGS: \(done)") }
    var registers = kvm_regs()
    change(&registers)
    registers.rip = UInt64(code)
    registers.rsp = 0x9000
    registers.rflags = chance(2) ? 0x202 : 2
    if raw("SET_REGS", cpu.descriptor, UInt(CKVM_SET_REGS), pointer(&registers)) < 0 {
      fail("SET_REGS")
    }
    if !chance(4) {
      var events = kvm_vcpu_events()
      _ = raw("SET_VCPU_EVENTS", cpu.descriptor, UInt(CKVM_SET_VCPU_EVENTS), pointer(&events))
    }
    var state = kvm_mp_state(mp_state: 0)
    _ = raw("SET_MP_STATE", cpu.descriptor, UInt(CKVM_SET_MP_STATE), pointer(&state))
  }

  private func pointer<T>(_ value: UnsafeMutablePointer<T>) -> UInt { UInt(bitPattern: value) }
}

/// States in which a guest's code runs.
enum GuestMode: CaseIterable {
  case real, protected, long

  private static let tables: UInt64 = 0x10000

  /// The first 1 GiB, in pages of 2 MiB.
  static func writeTables(_ memory: UnsafeMutableRawPointer) {
    let base = Int(tables)
    memory.storeBytes(of: tables + 0x1000 | 7, toByteOffset: base, as: UInt64.self)
    memory.storeBytes(of: tables + 0x2000 | 7, toByteOffset: base + 0x1000, as: UInt64.self)
    for index in 0..<512 {
      memory.storeBytes(
        of: UInt64(index) << 21 | 0x87, toByteOffset: base + 0x2000 + index * 8, as: UInt64.self)
    }
  }

  func apply(_ value: inout kvm_sregs) {
    var code = kvm_segment()
    code.limit = self == .real ? 0xFFFF : 0xFFFF_FFFF
    code.selector = self == .real ? 0 : 8
    (code.type, code.s, code.present) = (11, 1, 1)
    code.g = self == .real ? 0 : 1
    code.db = self == .protected ? 1 : 0
    code.l = self == .long ? 1 : 0
    var data = code
    (data.type, data.l, data.db) = (3, 0, self == .real ? 0 : 1)
    data.selector = self == .real ? 0 : 16
    value.cs = code
    value.ldt = kvm_segment()
    value.ldt.unusable = 1
    value.tr = code
    (value.tr.s, value.tr.g, value.tr.db, value.tr.l, value.tr.limit) = (0, 0, 0, 0, 0x67)
    value.gdt = kvm_dtable(base: 0xA000, limit: 0xFFF, padding: (0, 0, 0))
    value.idt = kvm_dtable(base: self == .real ? 0 : 0xB000, limit: 0xFFF, padding: (0, 0, 0))
    (value.ds, value.es, value.fs, value.gs, value.ss) = (data, data, data, data, data)
    value.cr0 = self == .real ? 0x10 : self == .protected ? 0x11 : 0x8000_0031
    value.cr4 = self == .long ? 0x620 : 0
    value.cr3 = self == .long ? Self.tables : 0
    value.efer = self == .long ? 0x500 : 0
  }
}

/// Code that makes exits, faults and loops.
enum GuestCode {
  private static let pieces: [[UInt8]] = [
    [0xE6, 0xE9], [0xE4, 0x60], [0xEC], [0xEE], [0xEF], [0xED], [0x6E], [0x6C], [0xF3, 0x6E],
    [0xF3, 0x6C], [0xF4], [0xFB, 0xF4], [0xFA], [0xEB, 0xFE], [0xE2, 0xFE], [0x0F, 0xA2],
    [0x0F, 0x32], [0x0F, 0x30], [0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9], [0xCC], [0xCD, 0x21],
    [0xCF], [0x0F, 0x0B], [0xF3, 0xA4], [0xF3, 0xAA], [0xF3, 0xA5], [0x90], [0xF3, 0x90],
    [0x0F, 0x22, 0xC0], [0x0F, 0x22, 0xD8], [0x0F, 0x22, 0xE0], [0x0F, 0x20, 0xC0],
    [0x0F, 0x23, 0xF8], [0x0F, 0x01, 0x38], [0x0F, 0x09], [0x0F, 0x31], [0xD9, 0xE8],
    [0xDE, 0xC1], [0x0F, 0x58, 0xC1], [0x66, 0x0F, 0xEF, 0xC0], [0xC5, 0xFC, 0x57, 0xC0],
    [0x48, 0x01, 0xD8], [0xFF, 0xC0], [0x89, 0x07], [0x8B, 0x06], [0xF0, 0xFF, 0x07],
    [0x0F, 0xC7, 0x0F], [0xA1, 0x00, 0x00, 0xE0, 0xFE, 0, 0, 0, 0],
    [0xA3, 0xF0, 0x00, 0xE0, 0xFE, 0, 0, 0, 0], [0xEB, 0xF0], [0x75, 0xF8], [0xC3], [0xFF, 0xE0],
    [0x50], [0x58], [0x9D], [0x0F, 0x05], [0x0F, 0x01, 0xCA], [0x0F, 0xC7, 0xF0],
    [0x0F, 0xAE, 0x07],
    [0x0F, 0xAE, 0x0F], [0x8E, 0xD8], [0x0F, 0x00, 0xD8], [0xEA, 0, 0x10, 0, 0],
    [0x0F, 0x01, 0xD1],
  ]

  static func write(_ worker: Worker, _ place: UnsafeMutableRawPointer) {
    var offset = 0
    for _ in 0..<1 + worker.below(24) {
      let piece =
        worker.chance(6)
        ? (0..<1 + worker.below(6)).map { _ in UInt8(worker.below(256)) } : worker.of(pieces)
      for byte in piece {
        place.storeBytes(of: byte, toByteOffset: offset, as: UInt8.self)
        offset += 1
      }
    }
    if worker.chance(2) {
      // jmp to the begin
      let jump: [UInt8] = [0xEB, UInt8(truncatingIfNeeded: -min(offset + 2, 128))]
      for (index, byte) in jump.enumerated() {
        place.storeBytes(of: byte, toByteOffset: offset + index, as: UInt8.self)
      }
    }
  }
}
