// SPDX-License-Identifier: Apache-2.0
//
// KVM's nested state: a guest whose own guest runs is saved, and goes on in another machine. L1 is
// 64-bit code that runs L2 once and writes to port E9H; L2 is in real mode.

import CHost
import KVM
import SystemPackage
import Testing
import X86

@Suite(.serialized) struct NestedStateTests {
  /// A nested state with its data, as the ioctls have it.
  private struct Saved {
    static let size = 128 + 4096
    var bytes = [UInt8](repeating: 0, count: size)

    var header: kvm_nested_state {
      get { bytes.withUnsafeBytes { $0.load(as: kvm_nested_state.self) } }
      set {
        bytes.withUnsafeMutableBytes { $0.storeBytes(of: newValue, as: kvm_nested_state.self) }
      }
    }

    init(room: UInt32 = UInt32(size)) { header.size = room }
  }

  private func call(_ client: Client, _ request: UInt32, _ saved: inout Saved) throws {
    try saved.bytes.withUnsafeMutableBytes { bytes in
      _ = try client.call(client.cpu, request, UInt(bitPattern: bytes.baseAddress))
    }
  }

  private func client() throws -> Client {
    let client = try Client()
    try client.setLongMode()
    try client.changeSpecial { $0.efer |= EFER.svme.rawValue }
    return client
  }

  /// A client whose L2 has just written to port 70H.
  private func running() throws -> Client {
    let client = try client()
    // mov eax, 0x4000; vmrun; out 0xE9, al; hlt
    client.load([0xB8, 0x00, 0x40, 0, 0, 0x0F, 0x01, 0xD8, 0xE6, 0xE9, 0xF4])
    // mov bx, 0x5678; out 0x70, al; inc bx; cpuid
    client.load([0xBB, 0x78, 0x56, 0xE6, 0x70, 0x43, 0x0F, 0xA2], at: 0x18000)
    GuestVMCB(memory: client.memory).prepare(base: 0x18000)
    #expect(try client.nextOut()?.port == 0x70)
    // The instruction is over only now.
    client.shared.pointee.immediate_exit = 1
    #expect(throws: Errno.interrupted) { try client.run() }
    return client
  }

  @Test func aMachineWhoseL2RunsMoves() throws {
    try Engine.$vendor.withValue(.amd) {
      let old = try running()
      var saved = Saved()
      try call(old, CKVM_GET_NESTED_STATE, &saved)
      #expect(saved.header.size == Saved.size && saved.header.hdr.svm.vmcb_pa == 0x4000)
      #expect(
        Int32(saved.header.flags) == KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_GIF_SET)
      let new = try Client()
      new.memory.copyMemory(from: old.memory, byteCount: old.memorySize)
      try new.set(new.cpu, CKVM_SET_SREGS, old.get(old.cpu, CKVM_GET_SREGS, kvm_sregs()))
      try new.set(new.cpu, CKVM_SET_REGS, old.registers)
      try call(new, CKVM_SET_NESTED_STATE, &saved)
      #expect(try new.registers.rip == 5, "L2's")
      #expect(try new.nextOut()?.port == 0xE9)
      let block = GuestVMCB(memory: new.memory)
      #expect(block[.exitCode] == SVMExitCode.cpuid.rawValue && block[.rip] == 6)
      let (registers, special) = try (new.registers, new.get(new.cpu, CKVM_GET_SREGS, kvm_sregs()))
      #expect(registers.rbx & 0xFFFF == 0x5679 && registers.rip & ~1 == 0x1008)
      #expect(special.cr3 == 0x10000 && special.efer == 0x1500, "L1's")
    }
  }

  @Test func roomAndFlags() throws {
    try Engine.$vendor.withValue(.amd) {
      let client = try running()
      #expect(try client.capability(KVM_CAP_NESTED_STATE) == Saved.size)
      var small = Saved(room: 128)
      #expect(throws: Errno.argListTooLong) { try call(client, CKVM_GET_NESTED_STATE, &small) }
      #expect(small.header.size == Saved.size)
      var saved = Saved()
      try call(client, CKVM_GET_NESTED_STATE, &saved)
      let changes: [(String, (inout kvm_nested_state) -> Void)] = [
        ("format", { $0.format = 0 }), ("unknown flag", { $0.flags |= 0x800 }),
        ("VMX's flag", { $0.flags |= UInt16(KVM_STATE_NESTED_MTF_PENDING) }),
        ("a run without guest mode", { $0.flags = UInt16(KVM_STATE_NESTED_RUN_PENDING) }),
        ("alignment", { $0.hdr.svm.vmcb_pa = 0x4010 }),
        ("width", { $0.hdr.svm.vmcb_pa = 1 << 60 }),
        ("no data", { $0.size = 128 }), ("no header", { $0.size = 127 }),
      ]
      for (name, change) in changes {
        var wrong = saved
        change(&wrong.header)
        #expect(throws: Errno.invalidArgument, "\(name)") {
          try call(client, CKVM_SET_NESTED_STATE, &wrong)
        }
      }
      // ASID 0, and a host that is in real mode.
      for offset in [128 + Int(VMCBField.asid.offset), 128 + Int(VMCBField.cr0.offset)] {
        var wrong = saved
        wrong.bytes[offset] = 0
        #expect(throws: Errno.invalidArgument) { try call(client, CKVM_SET_NESTED_STATE, &wrong) }
      }
      // L2 is still there.
      #expect(try client.nextOut()?.port == 0xE9)
    }
  }

  /// System management mode out of L2 and back: RSM finds L1's state where VM_HSAVE_PA says.
  @Test func systemManagementOutOfL2() throws {
    try Engine.$vendor.withValue(.amd) {
      let client = try running()
      #expect(try client.setMSR(MSR.hostSaveArea.rawValue, 0x7000))
      // Address space 1 is that of system management mode.
      try client.setMemory(1 << 16, at: 0, size: client.memorySize, host: client.memory)
      // out 0x77, al; rsm
      client.load([0xE6, 0x77, 0x0F, 0xAA], at: 0x38000)
      try client.call(client.cpu, CKVM_SMI)
      #expect(try client.nextOut()?.port == 0x77)
      var saved = Saved()
      try call(client, CKVM_GET_NESTED_STATE, &saved)
      #expect(Int32(saved.header.flags) == KVM_STATE_NESTED_GIF_SET, "L2 waits in SMRAM")
      #expect(try client.nextOut()?.port == 0xE9)
      let block = GuestVMCB(memory: client.memory)
      #expect(block[.exitCode] == SVMExitCode.cpuid.rawValue && block[.rip] == 6)
      #expect(try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()).cr3 == 0x10000, "L1's")
    }
  }

  /// L2 handles an NMI that L1 has injected, when one for L1 comes: it is never L2's.
  @Test func anNMIForL1IsNotL2s() throws {
    try Engine.$vendor.withValue(.amd) {
      let client = try client()
      client.load([0xB8, 0x00, 0x40, 0, 0, 0x0F, 0x01, 0xD8, 0xE6, 0xE9, 0xF4])
      // vmmcall; at 0x100, the handler: out 0x70, al; iret
      client.load([0x0F, 0x01, 0xD9], at: 0x18000)
      client.load([0xE6, 0x70, 0xCF], at: 0x18100)
      client.memory.storeBytes(of: 0x1800_0100, toByteOffset: 8, as: UInt32.self)
      let block = GuestVMCB(memory: client.memory)
      block.prepare(base: 0x18000)
      block.intercept([.vmrun, .vmmcall, .nmi])
      block[.eventInjection] = SVMEvent(.nmi, vector: 2).rawValue
      #expect(try client.nextOut()?.port == 0x70)
      try client.call(client.cpu, CKVM_NMI)
      #expect(try client.nextOut()?.port == 0xE9, "the handler runs once")
      #expect([.vmmcall, .nmi].contains(SVMExitCode(rawValue: block[.exitCode])))
    }
  }

  /// Back to L1 without an exit, and without SVM only GIF may be there.
  @Test func withoutL2() throws {
    try Engine.$vendor.withValue(.amd) {
      let client = try running()
      var none = Saved()
      none.header.format = UInt16(KVM_STATE_NESTED_FORMAT_SVM)
      try call(client, CKVM_SET_NESTED_STATE, &none)
      #expect(try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()).cr3 == 0x10000)
      try call(client, CKVM_GET_NESTED_STATE, &none)
      #expect(none.header.flags == 0 && none.header.size == 128)
      try client.changeSpecial { $0.efer &= ~EFER.svme.rawValue }
      #expect(throws: Errno.invalidArgument) { try call(client, CKVM_SET_NESTED_STATE, &none) }
      none.header.flags = UInt16(KVM_STATE_NESTED_GIF_SET)
      try call(client, CKVM_SET_NESTED_STATE, &none)
    }
  }
}
