// SPDX-License-Identifier: Apache-2.0
//
// How long a guest waits for its hypervisor: exits that the hypervisor answers itself, and exits
// that go to user space and back through KVM_RUN.

import CHost
import Host
import KVMClient
import KVMLoopback

/// Prints nanoseconds per exit, the guest's loop included.
func measureHypervisorRoundTrips() throws {
  // In real mode: body; dec ecx; jnz body; hlt
  let cases: [(name: String, code: [UInt8])] = [
    ("CPUID", [0x31, 0xC0, 0x66, 0x89, 0xCE, 0x0F, 0xA2, 0x66, 0x89, 0xF1]),
    ("VMCALL", [0x0F, 0x01, 0xC1]),
    ("port I/O to user space", [0xE6, 0xE9]),
    ("MMIO read to user space", [0xA0, 0x00, 0x00]),
  ]
  for entry in cases {
    let nanoseconds = try measure(entry.code)
    print("\(entry.name): \(Int(nanoseconds)) ns")
  }
}

private func measure(_ body: [UInt8]) throws -> Double {
  let system = try System(transport: LoopbackTransport(physicalCPUs: 1))
  let machine = try system.createMachine()
  let memory = UnsafeMutableRawPointer.allocate(byteCount: 2 << 20, alignment: 2 << 20)
  defer { memory.deallocate() }
  memory.initializeMemory(as: UInt8.self, repeating: 0, count: 2 << 20)
  let back = UInt8(truncatingIfNeeded: -(body.count + 4))
  let code = body + [0x66, 0x49, 0x75, back, 0xF4]
  memory.advanced(by: 0x1000).copyMemory(from: code, byteCount: code.count)
  try machine.setMemory(slot: 0, guestAddress: 0, size: 2 << 20, hostAddress: memory)
  let cpu = try machine.createVirtualCPU(0)
  try cpu.setCPUID(try system.supportedCPUID())
  var sregs = try cpu.specialRegisters()
  (sregs.cs.base, sregs.cs.selector, sregs.ds.base) = (0, 0, 0xD000_0000)
  try cpu.setSpecialRegisters(sregs)
  let rounds = 300_000
  var regs = kvm_regs()
  (regs.rip, regs.rsp, regs.rflags, regs.rcx) = (0x1000, 0x8000, 2, UInt64(rounds))
  try cpu.setRegisters(regs)
  // Processor time: other load on the machine does not count.
  let start = HostClock.threadCPU()
  while true {
    if case .halt = try cpu.run() { break }
  }
  return Double(HostClock.threadCPU() - start) / Double(rounds)
}
