// SPDX-License-Identifier: Apache-2.0
//
// Interrupts where the client has the 8259 pair and the I/O APIC, or all chips: what leaves to
// the client, and when, is compared with the kernel's KVM.

import CHost
import KVM
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct ClientChipTests {
  /// mov dword [offset], value, through DS at the local APIC's page.
  private func store(_ offset: UInt16, _ value: UInt32) -> [UInt8] {
    [0x66, 0xC7, 0x06, UInt8(offset & 0xFF), UInt8(offset >> 8)]
      + withUnsafeBytes(of: value) { Array($0) }
  }

  @Test func splitChipsAreMadeOnce() throws {
    let client = try Client(chips: .split(routes: 24))
    func split(_ routes: UInt64) -> Errno? {
      client.error { () throws(Errno) in try client.enable(KVM_CAP_SPLIT_IRQCHIP, routes) }
    }
    #expect(split(5000) == .invalidArgument)
    #expect(split(24) == .fileExists)
    #expect(
      client.error { () throws(Errno) in try client.call(client.vm, CKVM_CREATE_IRQCHIP) }
        == .fileExists)
    #expect(
      client.error(client.vm, CKVM_GET_IRQCHIP, with: kvm_irqchip()) == .noSuchAddressOrDevice)
    #expect(
      client.error(client.vm, CKVM_CREATE_PIT2, with: kvm_pit_config())
        == .noSuchFileOrDirectory)
    var entry = kvm_irq_routing_entry()
    entry.type = UInt32(KVM_IRQ_ROUTING_IRQCHIP)
    entry.u.irqchip.irqchip = UInt32(KVM_IRQCHIP_IOAPIC)
    #expect(
      client.error(client.vm, CKVM_SET_GSI_ROUTING, with: (UInt32(1), UInt32(0), entry))
        == .invalidArgument)
    // The 8259's ports are the client's.
    client.load([0xE6, 0x20])
    #expect(try client.nextOut()?.port == 0x20)
  }

  /// A level-triggered vector of the client's I/O APIC: its end is the client's to know.
  @Test func endOfInterruptLeaves() throws {
    let client = try Client(chips: .split(routes: 24))
    try client.setLocalAPIC(0xF0, 0x1FF)
    try client.route(5, vector: 0x55, level: true)
    try client.changeSpecial { $0.ds.base = 0xFEE0_0000 }
    client.load([0xFB, 0x90, 0xEB, 0xFE])
    client.load([0xE6, 0x90] + store(0xB0, 0) + [0xE6, 0x91, 0xCF], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 0x55 * 4, as: UInt32.self)
    var level = kvm_irq_level()
    level.irq = 5
    level.level = 1
    try client.set(client.vm, CKVM_IRQ_LINE, level)
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.run() == KVM_EXIT_IOAPIC_EOI)
    #expect(client.shared.pointee.eoi.vector == 0x55)
    #expect(try client.nextOut()?.port == 0x91)
    // A GSI that is no pin of it is not told.
    try client.route(30, vector: 0x55, level: true)
    level.irq = 30
    try client.set(client.vm, CKVM_IRQ_LINE, level)
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.nextOut()?.port == 0x91)
  }

  @Test func externalInterruptThroughTheSplit() throws {
    let client = try Client(chips: .split(routes: 24))
    client.load([0xE6, 0x8F, 0xFB, 0xF4, 0xEB, 0xFD])
    client.load([0xE6, 0x90, 0xCF], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 0x31 * 4, as: UInt32.self)
    #expect(try client.nextOut()?.port == 0x8F)
    #expect(client.shared.pointee.ready_for_interrupt_injection == 0)
    client.shared.pointee.request_interrupt_window = 1
    #expect(try client.run() == KVM_EXIT_IRQ_WINDOW_OPEN)
    #expect(client.shared.pointee.ready_for_interrupt_injection == 1)
    client.shared.pointee.request_interrupt_window = 0
    try client.set(client.cpu, CKVM_INTERRUPT, kvm_interrupt(irq: 0x31))
    #expect(
      client.error(client.cpu, CKVM_INTERRUPT, with: kvm_interrupt(irq: 0x32)) == .fileExists)
    #expect(try client.nextOut()?.port == 0x90)
  }

  /// A window that the local APIC keeps shut: the guest goes on.
  @Test func windowBehindAMaskedEntry() throws {
    let client = try Client(chips: .split(routes: 24))
    try client.setLocalAPIC(0x350, 0x1_0700)
    client.load([0xFB, 0x90, 0x90, 0xE6, 0x92])
    client.shared.pointee.request_interrupt_window = 1
    #expect(try client.nextOut()?.port == 0x92)
    #expect(client.shared.pointee.ready_for_interrupt_injection == 0)
  }

  @Test func interruptsWithoutChips() throws {
    let client = try Client()
    client.load([0xE6, 0x8F, 0xFB, 0x90, 0x90, 0xE6, 0x92])
    client.load([0xE6, 0x90, 0xCF], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 0x31 * 4, as: UInt32.self)
    #expect(try client.nextOut()?.port == 0x8F)
    #expect(client.shared.pointee.if_flag == 0)
    client.shared.pointee.request_interrupt_window = 1
    #expect(try client.run() == KVM_EXIT_IRQ_WINDOW_OPEN)
    #expect(client.shared.pointee.if_flag == 1)
    // Behind the shadow of STI.
    #expect(try client.registers.rip == 0x1004)
    client.shared.pointee.request_interrupt_window = 0
    try client.set(client.cpu, CKVM_INTERRUPT, kvm_interrupt(irq: 0x31))
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.nextOut()?.port == 0x92)
  }

  /// A lower task priority may let an interrupt of the client's local APIC through.
  @Test func loweredPriorityLeaves() throws {
    let client = try Client()
    // mov al, 9; mov cr8, rax; mov al, 4; mov cr8, rax; out 0x90, al
    client.load([
      0xB0, 9, 0x44, 0x0F, 0x22, 0xC0, 0xB0, 4, 0x44, 0x0F, 0x22, 0xC0, 0xE6, 0x90,
    ])
    try client.setLongMode()
    client.shared.pointee.cr8 = 2
    #expect(try client.run() == KVM_EXIT_SET_TPR)
    #expect(client.shared.pointee.cr8 == 4)
    #expect(try client.registers.rip == 0x100C)
    #expect(try client.nextOut()?.port == 0x90)
  }

  @Test func reportsOfThePriorityRegister() throws {
    let client = try Client(chips: .all)
    try client.changeSpecial { $0.ds.base = 0xFEE0_0000 }
    client.load(store(0x80, 0x20) + [0xE6, 0x90])
    var control = kvm_tpr_access_ctl()
    control.flags = 1
    #expect(
      client.error(client.cpu, CKVM_TPR_ACCESS_REPORTING, with: control) == .invalidArgument)
    control.flags = 0
    control.enabled = 1
    try client.set(client.cpu, CKVM_TPR_ACCESS_REPORTING, control)
    #expect(try client.run() == KVM_EXIT_TPR_ACCESS)
    #expect(client.shared.pointee.tpr_access.rip == 0x1000)
    #expect(client.shared.pointee.tpr_access.is_write == 1)
    #expect(try client.localAPIC(0x80) == 0x20)
    #expect(try client.nextOut()?.port == 0x90)
  }

  @Test func priorityInGuestMemory() throws {
    let client = try Client(chips: .all)
    let set = CKVM_SET_VAPIC_ADDR
    #expect(
      client.error(client.cpu, set, with: kvm_vapic_addr(vapic_addr: 0xD000_0000))
        == .invalidArgument)
    try client.set(client.cpu, set, kvm_vapic_addr(vapic_addr: 0x6000))
    client.memory.storeBytes(of: 0x50, toByteOffset: 0x6000, as: UInt32.self)
    client.load([0xE6, 0x90])
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.localAPIC(0x80) == 0x50)
  }

  @Test func haltsInGuestMode() throws {
    // Before there are vCPUs, as later kernels want it.
    let client = try Client {
      try $0.enable(KVM_CAP_X86_DISABLE_EXITS, UInt64(KVM_X86_DISABLE_EXITS_HLT))
    }
    client.load([0xF4, 0xE6, 0x90])
    let kick = Thread {
      sleepMilliseconds(20)
      client.kick()
    }
    #expect(client.error { () throws(Errno) in _ = try client.run() } == .interrupted)
    kick.join()
  }

  /// The identifiers of 32 bits that KVM_CAP_X2APIC_API brings.
  @Test func wideDestinations() throws {
    let client = try Client(chips: .split(routes: 24))
    var message = kvm_msi()
    message.address_lo = 0xFEE0_0000
    message.address_hi = 1
    message.data = 0x41
    try client.setLocalAPIC(0xF0, 0x1FF)
    #expect(client.error(client.vm, CKVM_SIGNAL_MSI, with: message) == nil)
    #expect(try client.isRequested(0x41))
    try client.enable(KVM_CAP_X2APIC_API, 3)
    #expect(client.error(client.vm, CKVM_SIGNAL_MSI, with: message) == .invalidArgument)
    #expect(
      client.error { () throws(Errno) in try client.enable(KVM_CAP_X2APIC_API, 1 << 40) }
        == .invalidArgument)
    // Destination 0x100 is nobody.
    message.address_hi = 0x100
    message.data = 0x42
    #expect(client.error(client.vm, CKVM_SIGNAL_MSI, with: message) == nil)
    #expect(try !client.isRequested(0x42))
  }

  @Test func quirkOfTheFirstLocalInterrupt() throws {
    #expect(try Client(chips: .all).localAPIC(0x350) == 0x700)
    let client = try Client(chips: .all) { try $0.enable(KVM_CAP_DISABLE_QUIRKS2, 1) }
    #expect(try client.localAPIC(0x350) == 0x10000)
    #expect(
      client.error { () throws(Errno) in try client.enable(KVM_CAP_DISABLE_QUIRKS2, 1 << 30) }
        == .invalidArgument)
  }
}
