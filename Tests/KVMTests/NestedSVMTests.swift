// SPDX-License-Identifier: Apache-2.0
//
// A guest that is a hypervisor, on AMD's processor: L1 is a few instructions in flat 32-bit code
// without paging, L2 a few in real mode.
//
//     0x1000 L1   0x4000 vmcb12   0x6000 I/O map   0x9000 MSR map   0xC000 nested tables
//     0x10000 L2

import CHost
import KVMClient
import Testing
import X86

@Suite(.serialized) struct NestedSVMTests {
  /// mov eax, 0x4000; vmrun; out 0xE9, al; hlt
  private static let runOnce: [UInt8] = [
    0xB8, 0x00, 0x40, 0, 0, 0x0F, 0x01, 0xD8, 0xE6, 0xE9, 0xF4,
  ]

  private func guest(
    l1: [UInt8] = runOnce, l2: [UInt8], svme: Bool = true, pae: Bool = false
  ) throws -> Guest {
    try Engine.$vendor.withValue(.amd) {
      let guest = try Guest(.software)
      var sregs = try guest.cpu.specialRegisters()
      sregs.cr0 = CR0([.pe, .et]).rawValue
      if pae { sregs.cr4 = CR4.pae.rawValue }
      sregs.efer = svme ? EFER.svme.rawValue : 0
      func flat(_ segment: inout kvm_segment, _ type: UInt8, _ selector: UInt16) {
        segment = kvm_segment()
        (segment.limit, segment.selector, segment.type) = (.max, selector, type)
        (segment.present, segment.s, segment.db, segment.g) = (1, 1, 1, 1)
      }
      flat(&sregs.cs, 11, 8)
      for path in [\kvm_sregs.ds, \.es, \.ss, \.fs, \.gs] { flat(&sregs[keyPath: path], 3, 16) }
      try guest.cpu.setSpecialRegisters(sregs)
      guest.load(l1)
      guest.load(l2, at: 0x10000)
      block(guest).prepare(base: 0x10000)
      return guest
    }
  }

  private func block(_ guest: Guest) -> GuestVMCB { GuestVMCB(memory: guest.memory) }

  private func set(_ guest: Guest, _ field: VMCBField, _ value: UInt64) {
    block(guest)[field] = value
  }

  private func field(_ guest: Guest, _ field: VMCBField) -> UInt64 { block(guest)[field] }

  private func intercept(_ guest: Guest, _ bits: SVMIntercepts) { block(guest).intercept(bits) }

  @Test func exitOfTheGuestsGuest() throws {
    // mov ax, 0x1234; mov bx, 0x5678; cpuid
    let guest = try guest(l2: [0xB8, 0x34, 0x12, 0xBB, 0x78, 0x56, 0x0F, 0xA2])
    let out = try #require(try guest.nextOut())
    #expect(out.port == 0xE9 && out.value == 0)
    #expect(field(guest, .exitCode) == SVMExitCode.cpuid.rawValue)
    #expect(field(guest, .rip) == 6)
    #expect(field(guest, .nextRIP) == 8)
    #expect(field(guest, .rax) == 0x1234)
    let registers = try guest.cpu.registers()
    #expect(registers.rax == 0x4000, "RAX is L1's own")
    #expect(registers.rbx & 0xFFFF == 0x5678, "other registers are as L2 left them")
    #expect(try guest.cpu.specialRegisters().cr0 & CR0.pe.rawValue != 0)
  }

  /// What L1 lets through is the machine's.
  @Test func portsAndMemoryOfTheMachine() throws {
    // mov al, 0x55; mov [0x3000], al; out 0x70, al; vmmcall
    let guest = try guest(l2: [0xB0, 0x55, 0xA2, 0, 0x30, 0xE6, 0x70, 0x0F, 0x01, 0xD9])
    let out = try #require(try guest.nextOut())
    #expect(out.port == 0x70 && out.value == 0x55)
    #expect(guest.read(0x3000, as: UInt8.self) == 0x55)
    #expect(try guest.nextOut()?.port == 0xE9)
    #expect(field(guest, .exitCode) == SVMExitCode.vmmcall.rawValue)
  }

  /// L1's map is read when the access exits.
  @Test func portsByTheMapOfL1() throws {
    // out 0x70, al
    let guest = try guest(l2: [0xE6, 0x70])
    intercept(guest, [.vmrun, .ports])
    guest.store(UInt8(1), at: 0x6000 + 0x70 / 8)
    #expect(try guest.nextOut()?.port == 0xE9)
    #expect(field(guest, .exitCode) == SVMExitCode.port.rawValue)
    #expect(SVMPortInfo(rawValue: field(guest, .exitInfo1)).port == 0x70)
    #expect(field(guest, .exitInfo2) == 2)
  }

  /// Reads of STAR are bit 2 of byte 820H of the map.
  @Test(arguments: [(0x9820, true), (0x9821, false)])
  func registersByTheMapOfL1(_ place: Int, _ exits: Bool) throws {
    // mov ecx, 0xC0000081; rdmsr; vmmcall
    let guest = try guest(l2: [0x66, 0xB9, 0x81, 0, 0, 0xC0, 0x0F, 0x32, 0x0F, 0x01, 0xD9])
    intercept(guest, [.vmrun, .vmmcall, .msrs])
    guest.store(UInt8(4), at: place)
    #expect(try guest.nextOut()?.port == 0xE9)
    let wanted = exits ? SVMExitCode.msr : .vmmcall
    #expect(field(guest, .exitCode) == wanted.rawValue)
  }

  @Test func rulesOfVMRUN() throws {
    for (name, value) in [
      (VMCBField.asid, UInt64(0)), (.intercepts4, 0), (.efer, 0), (.cr0, 1 << 40),
      (.eventInjection, 1 << 31 | 1 << 8),
    ] {
      let guest = try guest(l2: [0x0F, 0xA2])
      set(guest, name, value)
      #expect(try guest.nextOut()?.port == 0xE9)
      #expect(field(guest, .exitCode) == SVMExitCode.invalid.rawValue)
      #expect(field(guest, .rip) == 0)
    }
  }

  /// Without EFER.SVME there are no such instructions: #UD, and without an IDT that is the end.
  @Test func disabled() throws {
    let guest = try guest(l2: [0x0F, 0xA2], svme: false)
    guard case .shutdown = try guest.run() else {
      Issue.record("VMRUN was carried out")
      return
    }
  }

  @Test func clientsSaveTheHostSaveArea() throws {
    try Engine.$vendor.withValue(.amd) {
      let client = try Client()
      #expect(try client.setMSR(MSR.hostSaveArea.rawValue, 0x7000))
      #expect(try client.msr(MSR.hostSaveArea.rawValue) == 0x7000)
    }
  }

  // MARK: Nested paging

  /// L1 maps L2's first 2 MiB to its own, and nothing behind them.
  private func addTables(_ guest: Guest) {
    guest.store(UInt64(0xD001), at: 0xC000)
    guest.store(UInt64(0x87), at: 0xD000)
    set(guest, .nestedControl, NestedControl.paging)
    set(guest, .nestedCR3, 0xC000)
  }

  @Test func nestedPagingMarksItsTables() throws {
    // mov al, [0x3000]; mov [0x3001], al; vmmcall
    let guest = try guest(l2: [0xA0, 0, 0x30, 0xA2, 1, 0x30, 0x0F, 0x01, 0xD9], pae: true)
    addTables(guest)
    guest.store(UInt8(0x77), at: 0x3000)
    #expect(try guest.nextOut()?.port == 0xE9)
    #expect(field(guest, .exitCode) == SVMExitCode.vmmcall.rawValue)
    #expect(guest.read(0x3001, as: UInt8.self) == 0x77)
    #expect(guest.read(0xD000, as: UInt64.self) == 0x87 | 0x60)
  }

  @Test func nestedFaultIsL1s() throws {
    // mov ax, 0x2000; mov ds, ax; mov [0x10], al
    let guest = try guest(
      l2: [0xB8, 0, 0x20, 0x8E, 0xD8, 0xA2, 0x10, 0, 0x0F, 0x01, 0xD9], pae: true)
    addTables(guest)
    guest.store(UInt64(0xE007), at: 0xD000)
    for page in 0..<512 {
      // Page 0x20 is read-only.
      let flags: UInt64 = page == 0x20 ? 5 : 7
      guest.store(UInt64(page) << 12 | flags, at: 0xE000 + page * 8)
    }
    #expect(try guest.nextOut()?.port == 0xE9)
    #expect(field(guest, .exitCode) == SVMExitCode.nestedPageFault.rawValue)
    #expect(field(guest, .exitInfo2) == 0x20010)
    let wanted: NestedFaultInfo = [.present, .write, .user, .finalAddress]
    #expect(field(guest, .exitInfo1) == wanted.rawValue)
    #expect(field(guest, .rip) == 5)
  }

  // MARK: Events

  /// clgi; sti; vmrun; mov al, 1; out 0xE9, al; stgi; nop; hlt. The interrupt that waits makes L2
  /// exit before its first instruction, and L1 takes it behind STGI.
  @Test func interruptForL1() throws {
    let guest = try guest(
      l1: [
        0x0F, 0x01, 0xDD, 0xFB, 0xB8, 0x00, 0x40, 0, 0, 0x0F, 0x01, 0xD8, 0xB0, 1, 0xE6, 0xE9,
        0x0F, 0x01, 0xDC, 0x90, 0xF4,
      ], l2: [0xEB, 0xFE])
    intercept(guest, [.vmrun, .interrupt])
    let waits = VirtualInterrupt.maskingBit | VirtualInterrupt.pendingBit
    set(guest, .virtualInterrupt, waits)
    // A GDT with a flat code segment, and gate 0x30 to 0x1100: mov al, 2; out 0xE9, al; hlt
    guest.store(UInt64(0x00CF_9B00_0000_FFFF), at: 0x2008)
    guest.store(UInt64(0x0000_8E00_0008_1100), at: 0x2100 + 0x30 * 8)
    guest.load([0xB0, 2, 0xE6, 0xE9, 0xF4], at: 0x1100)
    var sregs = try guest.cpu.specialRegisters()
    (sregs.gdt.base, sregs.gdt.limit) = (0x2000, 0xF)
    (sregs.idt.base, sregs.idt.limit) = (0x2100, 0x7FF)
    try guest.cpu.setSpecialRegisters(sregs)
    try guest.cpu.interrupt(0x30)
    #expect(try guest.nextOut()?.value == 1)
    #expect(field(guest, .exitCode) == SVMExitCode.interrupt.rawValue)
    #expect(field(guest, .virtualInterrupt) == waits, "L2's own still waits")
    #expect(try guest.nextOut()?.value == 2)
  }

  /// EVENTINJ: L2's handler runs first.
  @Test func injectedEvent() throws {
    let guest = try guest(l2: [0xF4])
    // Vector 0x21 of real mode: 1000:0100: vmmcall
    guest.store(UInt32(0x1000_0100), at: 0x21 * 4)
    guest.load([0x0F, 0x01, 0xD9], at: 0x10100)
    set(guest, .eventInjection, SVMEvent(.externalInterrupt, vector: 0x21).rawValue)
    #expect(try guest.nextOut()?.port == 0xE9)
    #expect(field(guest, .exitCode) == SVMExitCode.vmmcall.rawValue)
    #expect(field(guest, .rip) == 0x100)
    #expect(field(guest, .eventInjection) & SVMEvent.validBit == 0)
  }

  /// The vector of an NMI that L1 injects is 2, whatever it says.
  @Test func injectedNMI() throws {
    let guest = try guest(l2: [0xF4])
    guest.store(UInt32(0x1000_0100), at: 2 * 4)
    guest.load([0x0F, 0x01, 0xD9], at: 0x10100)
    set(guest, .eventInjection, SVMEvent(.nmi, vector: 0).rawValue)
    #expect(try guest.nextOut()?.port == 0xE9)
    #expect(field(guest, .exitCode) == SVMExitCode.vmmcall.rawValue)
    #expect(field(guest, .rip) == 0x100)
  }
}
