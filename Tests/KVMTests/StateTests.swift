// SPDX-License-Identifier: Apache-2.0
//
// State that the client sets and gets: what comes back is what went in, on both engines.

import CHost
import KVM
import KVMClient
import SystemPackage
import Testing

@Suite(.onBothEngines) struct StateTests {
  private let hypervisor: any KVMTransport
  private let machine: Int32
  private let cpu: Int32

  init() throws {
    hypervisor = try Engine.current.transport()
    machine = try hypervisor.ioctl(try hypervisor.open(), CKVM_CREATE_VM, 0)
    _ = try hypervisor.ioctl(machine, CKVM_CREATE_IRQCHIP, 0)
    cpu = try hypervisor.ioctl(machine, CKVM_CREATE_VCPU, 0)
  }

  private func call<T>(_ handle: Int32, _ request: UInt32, _ value: inout T) throws -> Int32 {
    try withUnsafeMutablePointer(to: &value) {
      try hypervisor.ioctl(handle, request, UInt(bitPattern: $0))
    }
  }

  @Test func fpu() throws {
    var value = kvm_fpu()
    (value.fcw, value.fsw, value.mxcsr) = (0x37F, 0, 0x1F80)
    withUnsafeMutableBytes(of: &value.xmm) { bytes in
      for index in 0..<256 { bytes[index] = UInt8(index) }
    }
    _ = try call(cpu, CKVM_SET_FPU, &value)
    var back = kvm_fpu()
    _ = try call(cpu, CKVM_GET_FPU, &back)
    #expect(back.fcw == 0x37F && back.mxcsr == 0x1F80)
    #expect(withUnsafeBytes(of: back.xmm) { $0[255] } == 255)
  }

  @Test func xsaveCarriesEveryComponent() throws {
    let size = Int(try hypervisor.ioctl(machine, CKVM_CHECK_EXTENSION, UInt(KVM_CAP_XSAVE2)))
    #expect(size >= 4096)
    let area = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
    defer { area.deallocate() }
    area.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    _ = try hypervisor.ioctl(cpu, CKVM_GET_XSAVE2, UInt(bitPattern: area))
    let present = area.load(fromByteOffset: 512, as: UInt64.self)
    #expect(present & 3 == 3)
    // XMM3, and the upper half of YMM3 where there is one.
    area.storeBytes(of: 0x1122_3344_5566_7788, toByteOffset: 160 + 48, as: UInt64.self)
    if present & 4 != 0 { area.storeBytes(of: 77, toByteOffset: 576 + 48, as: UInt64.self) }
    _ = try hypervisor.ioctl(cpu, CKVM_SET_XSAVE, UInt(bitPattern: area))
    area.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    _ = try hypervisor.ioctl(cpu, CKVM_GET_XSAVE, UInt(bitPattern: area))
    #expect(area.load(fromByteOffset: 160 + 48, as: UInt64.self) == 0x1122_3344_5566_7788)
    if present & 4 != 0 { #expect(area.load(fromByteOffset: 576 + 48, as: UInt64.self) == 77) }
    area.storeBytes(of: UInt64.max, toByteOffset: 512, as: UInt64.self)
    #expect(throws: Errno.invalidArgument) {
      try hypervisor.ioctl(cpu, CKVM_SET_XSAVE, UInt(bitPattern: area))
    }
  }

  @Test func extendedControlRegister() throws {
    var value = kvm_xcrs()
    value.nr_xcrs = 1
    value.xcrs.0.value = 3
    _ = try call(cpu, CKVM_SET_XCRS, &value)
    value.xcrs.0.value = 2
    #expect(throws: Errno.invalidArgument) { try call(cpu, CKVM_SET_XCRS, &value) }
    _ = try call(cpu, CKVM_GET_XCRS, &value)
    #expect(value.xcrs.0.value == 3)
  }

  @Test func modelSpecificRegisters() throws {
    struct Registers {
      var count: UInt32 = 3
      var padding: UInt32 = 0
      var first = kvm_msr_entry(index: 0xC000_0082, reserved: 0, data: 0xFFFF_8000_1234_5678)
      var second = kvm_msr_entry(index: 0x277, reserved: 0, data: 0x0606_0606_0606_0606)
      var third = kvm_msr_entry(index: 0x1234_5678, reserved: 0, data: 0)
    }
    var value = Registers()
    #expect(try call(cpu, CKVM_SET_MSRS, &value) == 2)
    (value.first.data, value.second.data) = (0, 0)
    #expect(try call(cpu, CKVM_GET_MSRS, &value) == 2)
    #expect(value.first.data == 0xFFFF_8000_1234_5678)
    #expect(value.second.data == 0x0606_0606_0606_0606)
  }

  @Test func debugRegisters() throws {
    var value = kvm_debugregs()
    value.db = (1, 2, 3, 4)
    (value.dr6, value.dr7) = (0xFFFF_0FF0, 0x400)
    _ = try call(cpu, CKVM_SET_DEBUGREGS, &value)
    var back = kvm_debugregs()
    _ = try call(cpu, CKVM_GET_DEBUGREGS, &back)
    #expect(back.db.3 == 4 && back.dr6 == 0xFFFF_0FF0 && back.dr7 == 0x400)
    value.dr7 = 1 << 40
    #expect(throws: Errno.invalidArgument) { try call(cpu, CKVM_SET_DEBUGREGS, &value) }
  }

  @Test func chipStates() throws {
    var chip = kvm_irqchip()
    chip.chip_id = UInt32(KVM_IRQCHIP_PIC_MASTER)
    _ = try call(machine, CKVM_GET_IRQCHIP, &chip)
    chip.chip.pic.irq_base = 0x30
    chip.chip.pic.imr = 0xAA
    _ = try call(machine, CKVM_SET_IRQCHIP, &chip)
    chip.chip.pic.irq_base = 0
    _ = try call(machine, CKVM_GET_IRQCHIP, &chip)
    #expect(chip.chip.pic.irq_base == 0x30 && chip.chip.pic.imr == 0xAA)
    chip.chip_id = UInt32(KVM_IRQCHIP_IOAPIC)
    _ = try call(machine, CKVM_GET_IRQCHIP, &chip)
    #expect(chip.chip.ioapic.base_address == 0xFEC0_0000)
    chip.chip_id = 9
    #expect(throws: Errno.invalidArgument) { try call(machine, CKVM_GET_IRQCHIP, &chip) }
  }

  /// A one-shot timer in an image either counts or has its interrupt there: whoever restores the
  /// image has no other word of it.
  @Test func expiredTimerIsInTheImage() throws {
    let client = try Client(chips: .all)
    for (register, value) in [(0xF0, 0x1FF), (0x320, 0xEC), (0x3E0, 0xB), (0x380, 50_000)] {
      try client.setLocalAPIC(register, UInt32(value))
    }
    var lost = 0
    for _ in 0..<50 {
      try client.setLocalAPIC(0x270, 0)
      try client.setLocalAPIC(0x390, 50_000)
      var (count, requests): (UInt32, UInt32) = (1, 0)
      while count != 0 {
        let state = try client.get(client.cpu, CKVM_GET_LAPIC, kvm_lapic_state())
        (count, requests) = withUnsafeBytes(of: state) {
          (
            $0.loadUnaligned(fromByteOffset: 0x390, as: UInt32.self),
            $0.loadUnaligned(fromByteOffset: 0x270, as: UInt32.self)
          )
        }
      }
      if requests & 1 << 12 == 0 { lost += 1 }
    }
    #expect(lost == 0)
  }

  @Test func localAPIC() throws {
    var page = InlineArray<256, UInt32>(repeating: 0)
    _ = try call(cpu, CKVM_GET_LAPIC, &page)
    #expect(page[0x30 / 4] & 0xFF == 0x14)
    #expect(page[0x350 / 4] == 0x700)
    page[0x80 / 4] = 0x20
    _ = try call(cpu, CKVM_SET_LAPIC, &page)
    var sregs = kvm_sregs()
    _ = try call(cpu, CKVM_GET_SREGS, &sregs)
    #expect(sregs.cr8 == 2)
  }

  @Test func clock() throws {
    var value = kvm_clock_data()
    value.clock = 5_000_000_000
    _ = try call(machine, CKVM_SET_CLOCK, &value)
    var back = kvm_clock_data()
    _ = try call(machine, CKVM_GET_CLOCK, &back)
    #expect(back.clock >= 5_000_000_000 && back.clock < 65_000_000_000)
    value.flags = 1 << 20
    #expect(throws: Errno.invalidArgument) { try call(machine, CKVM_SET_CLOCK, &value) }
  }

  @Test func multiprocessorState() throws {
    var value = kvm_mp_state()
    _ = try call(cpu, CKVM_GET_MP_STATE, &value)
    #expect(value.mp_state == UInt32(KVM_MP_STATE_RUNNABLE))
    value.mp_state = UInt32(KVM_MP_STATE_HALTED)
    _ = try call(cpu, CKVM_SET_MP_STATE, &value)
    value.mp_state = 77
    #expect(throws: Errno.invalidArgument) { try call(cpu, CKVM_SET_MP_STATE, &value) }
    let second = try hypervisor.ioctl(machine, CKVM_CREATE_VCPU, 1)
    _ = try call(second, CKVM_GET_MP_STATE, &value)
    #expect(value.mp_state == UInt32(KVM_MP_STATE_UNINITIALIZED))
  }

  @Test func events() throws {
    var value = kvm_vcpu_events()
    value.nmi.masked = 1
    value.nmi.pending = 1
    value.flags = UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING)
    _ = try call(cpu, CKVM_SET_VCPU_EVENTS, &value)
    var back = kvm_vcpu_events()
    _ = try call(cpu, CKVM_GET_VCPU_EVENTS, &back)
    #expect(back.nmi.masked == 1 && back.nmi.pending == 1)
    value.flags = 1 << 30
    #expect(throws: Errno.invalidArgument) { try call(cpu, CKVM_SET_VCPU_EVENTS, &value) }
  }
}
