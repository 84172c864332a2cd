// SPDX-License-Identifier: Apache-2.0
//
// Ticks of the 8254 that the guest had no time for (KVM_REINJECT_CONTROL): the guest counts
// them, and none may be lost or be too many.

import CHost
import Glibc
import KVM
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct TickTests {
  /// Vector 8 counts in [0x500]. The guest sets 100 Hz, leaves with interrupts off, and then lets
  /// them in for some milliseconds, which it counts out by itself.
  private func guest(automaticEOI: Bool) throws -> Client {
    let client = try Client(chips: .all)
    try client.set(client.vm, CKVM_CREATE_PIT2, kvm_pit_config())
    client.memory.storeBytes(of: 0x1100, toByteOffset: 8 * 4, as: UInt32.self)
    func out(_ port: UInt8, _ value: UInt8) -> [UInt8] { [0xB0, value, 0xE6, port] }
    let chip = out(0x20, 0x11) + out(0x21, 8) + out(0x21, 4) + out(0x21, automaticEOI ? 3 : 1)
    let timer = out(0x43, 0x34) + out(0x40, 0x9C) + out(0x40, 0x2E) + out(0x21, 0xFE)
    // sti; mov ecx, 3000; again: in al, 0x61 (the chips answer); dec ecx; jnz again; cli; out 0x91,
    // al
    let rest: [UInt8] = [
      0xFB, 0x66, 0xB9, 0xB8, 0x0B, 0, 0, 0xE4, 0x21, 0x66, 0x49, 0x75, 0xFA, 0xFA, 0xE6, 0x91,
    ]
    client.load([0xFA] + chip + timer + [0xE6, 0x90] + rest)
    // inc word [0x500]; push ax; mov al, 0x20; out 0x20, al; pop ax; iret
    let end: [UInt8] = automaticEOI ? [] : [0x50, 0xB0, 0x20, 0xE6, 0x20, 0x58]
    client.load([0xFF, 0x06, 0x00, 0x05] + end + [0xCF], at: 0x1100)
    return client
  }

  private func ticks(_ client: Client, sleep: UInt32) throws -> Int {
    #expect(try client.nextOut()?.port == 0x90)
    usleep(sleep * 1000)
    #expect(try client.nextOut()?.port == 0x91)
    return Int(client.memory.load(fromByteOffset: 0x500, as: UInt16.self))
  }

  @Test(arguments: [false, true])
  func missedTicksFollow(_ automaticEOI: Bool) throws {
    let client = try guest(automaticEOI: automaticEOI)
    #expect(try ticks(client, sleep: 500) >= 48)
  }

  @Test func missedTicksAreOneOnDemand() throws {
    let client = try guest(automaticEOI: false)
    var control = kvm_reinject_control()
    try client.set(client.vm, CKVM_REINJECT_CONTROL, control)
    #expect(try ticks(client, sleep: 500) < 40)
    control.pit_reinject = 1
    try client.set(client.vm, CKVM_REINJECT_CONTROL, control)
  }

  @Test func unmaskingForgets() throws {
    let client = try guest(automaticEOI: false)
    #expect(try client.nextOut()?.port == 0x90)
    usleep(500_000)
    // cli; mov al, 0xFF; out 0x21, al; mov al, 0xFE; out 0x21, al; jmp to the rest
    let rip = try client.registers.rip
    let resume = Int(rip) + 2
    let back = UInt16(truncatingIfNeeded: resume - (0x1200 + 11))
    client.load(
      [0xB0, 0xFF, 0xE6, 0x21, 0xB0, 0xFE, 0xE6, 0x21, 0xE9, UInt8(back & 0xFF), UInt8(back >> 8)],
      at: 0x1200)
    try client.setRegisters { $0.rip = 0x1200 }
    #expect(try client.nextOut()?.port == 0x91)
    #expect(client.memory.load(fromByteOffset: 0x500, as: UInt16.self) < 40)
  }

  /// KVM_GET_PIT and KVM_SET_PIT: the channels alone.
  @Test func oldState() throws {
    let client = try guest(automaticEOI: false)
    #expect(try client.nextOut()?.port == 0x90)
    var state = try client.get(client.vm, CKVM_GET_PIT, kvm_pit_state())
    #expect(state.channels.0.count == 0x2E9C && state.channels.0.mode == 2)
    state.channels.0.count = 0x1234
    try client.set(client.vm, CKVM_SET_PIT, state)
    let newer = try client.get(client.vm, CKVM_GET_PIT2, kvm_pit_state2())
    #expect(newer.channels.0.count == 0x1234 && newer.channels.0.mode == 2)
  }

  @Test func withoutATimer() throws {
    let client = try Client(chips: .all)
    #expect(
      client.error(client.vm, CKVM_REINJECT_CONTROL, with: kvm_reinject_control())
        == .noSuchAddressOrDevice)
  }
}
