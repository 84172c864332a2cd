// SPDX-License-Identifier: Apache-2.0
//
// KVM_CAP_DISABLE_QUIRKS2, quirk by quirk, on both engines; those of hypercalls, MWAIT and
// LINT0 are with their kin.

import CHost
import KVM
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct QuirkTests {
  private func disable(_ quirk: Int32, _ client: Client) throws {
    #expect(try client.capability(KVM_CAP_DISABLE_QUIRKS2) & quirk != 0)
    try client.enable(KVM_CAP_DISABLE_QUIRKS2, UInt64(quirk))
  }

  @Test func portSevenE() throws {
    let client = try Client()
    client.load([0xE6, 0x7E, 0xE6, 0x7F, 0xE6, 0x7E, 0xE6, 0x7F])
    #expect(try client.nextOut()?.port == 0x7E)
    #expect(try client.registers.rip == 0x1002)
    #expect(try client.nextOut()?.port == 0x7F)
    try disable(KVM_X86_QUIRK_OUT_7E_INC_RIP, client)
    #expect(try client.nextOut()?.port == 0x7E)
    #expect(try client.registers.rip == 0x1004)
    #expect(try client.nextOut()?.port == 0x7F)
  }

  /// The local APIC's page while it is in x2APIC mode.
  @Test func localAPICHole() throws {
    let client = try Client(chips: .all)
    try client.changeSpecial { $0.ds.base = 0xFEE0_0000 }
    #expect(try client.setMSR(0x1B, 0xFEE0_0900))
    #expect(try client.setMSR(0x1B, 0xFEE0_0D00))
    // mov eax, [0x30]; mov [0x80], eax; out 0x90, al
    let code: [UInt8] = [0x66, 0xA1, 0x30, 0, 0x66, 0xA3, 0x80, 0, 0xE6, 0x90]
    client.load(code)
    #expect(try client.nextOut()?.value == 0xFF)
    #expect(try client.registers.rax == 0xFFFF_FFFF)
    try disable(KVM_X86_QUIRK_LAPIC_MMIO_HOLE, client)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(client.shared.pointee.mmio.phys_addr == 0xFEE0_0030)
    #expect(client.shared.pointee.mmio.is_write == 0)
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(client.shared.pointee.mmio.phys_addr == 0xFEE0_0080)
    #expect(client.shared.pointee.mmio.is_write == 1)
    #expect(try client.nextOut()?.port == 0x90)
  }

  /// Caches are coherent; the guest sees the bits that it sets in either case.
  @Test func cacheControl() throws {
    for isDisabled in [false, true] {
      let client = try Client()
      if isDisabled { try disable(KVM_X86_QUIRK_CD_NW_CLEARED, client) }
      try client.changeSpecial { $0.cr0 = 0x10 }
      // mov eax, 0x60000010; mov cr0, eax; mov eax, cr0; out 0x90, al
      client.load([
        0x66, 0xB8, 0x10, 0, 0, 0x60, 0x0F, 0x22, 0xC0, 0x0F, 0x20, 0xC0, 0xE6, 0x90,
      ])
      #expect(try client.nextOut()?.port == 0x90)
      #expect(try client.registers.rax == 0x6000_0010)
      let special = try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs())
      #expect(special.cr0 == 0x6000_0010)
    }
  }
}
