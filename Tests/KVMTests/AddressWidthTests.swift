// SPDX-License-Identifier: Apache-2.0
//
// A guest whose CPUID has fewer physical address bits than the processor: its reserved bits
// fault as its own processor's would; and what cannot be emulated is told to the client.

import CHost
import KVM
import SystemPackage
import Testing

@Suite(.serialized) struct AddressWidthTests {
  private static let width: UInt64 = 36

  /// 64-bit mode; linear 0x40000000 leads to an address with bit 36 set.
  private func client(_ code: [UInt8], tells: Bool) throws -> Client {
    let client = try Client()
    #expect(try client.capability(KVM_CAP_SMALLER_MAXPHYADDR) == 1)
    var entry = kvm_cpuid_entry2()
    entry.function = 0x8000_0008
    entry.eax = UInt32(Self.width) | 48 << 8
    try client.set(client.cpu, CKVM_SET_CPUID2, (UInt32(1), UInt32(0), entry))
    if tells { try client.enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1) }
    try client.setLongMode()
    client.memory.storeBytes(of: 1 << 36 | 0x83, toByteOffset: 0x11008, as: UInt64.self)
    // #PF: pop rax; out 0x91, al
    client.load([0x58, 0xE6, 0x91, 0xF4], at: 0x2000)
    let gate: [UInt16] = [0x2000, 8, 0x8E00, 0, 0, 0, 0, 0]
    for (index, word) in gate.enumerated() {
      client.memory.storeBytes(
        of: word, toByteOffset: 0x3000 + 14 * 16 + index * 2, as: UInt16.self)
    }
    // A 64-bit code segment at selector 8.
    client.memory.storeBytes(of: 0x00AF_9B00_0000_FFFF, toByteOffset: 0x4008, as: UInt64.self)
    try client.changeSpecial {
      ($0.idt.base, $0.idt.limit, $0.gdt.base, $0.gdt.limit) = (0x3000, 0xFFF, 0x4000, 15)
    }
    client.load(code)
    try client.setRegisters { ($0.rdi, $0.rsp) = (0x4000_0123, 0x8000) }
    return client
  }

  @Test(
    arguments: [
      ([0x8A, 0x07], UInt8(0x9)),  // mov al, [rdi]
      ([0x88, 0x07], 0xB),  // mov [rdi], al
      ([0xFF, 0xE7], 0x19),  // jmp rdi
      ([0xD9, 0x07], 0x9),  // fld dword [rdi]
    ] as [([UInt8], UInt8)])
  func reservedBits(_ code: [UInt8], _ errorCode: UInt8) throws {
    let client = try client(code, tells: false)
    let out = try client.nextOut()
    #expect(out?.port == 0x91 && out?.value == errorCode)
    #expect(try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()).cr2 == 0x4000_0123)
  }

  @Test func failureIsTold() throws {
    let client = try client([0xD9, 0x07, 0xE6, 0x90], tells: true)
    #expect(try client.run() == KVM_EXIT_INTERNAL_ERROR)
    let failure = client.shared.pointee.emulation_failure
    #expect(failure.suberror == UInt32(KVM_INTERNAL_ERROR_EMULATION) && failure.ndata == 3)
    #expect(failure.flags == UInt64(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES))
    let bytes = withUnsafeBytes(of: client.shared.pointee.internal.data) { Array($0[8..<13]) }
    #expect(bytes == [15, 0xD9, 0x07, 0xE6, 0x90])
    try client.setRegisters { $0.rip += 2 }
    #expect(try client.nextOut()?.port == 0x90)
  }
}
