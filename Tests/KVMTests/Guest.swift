// SPDX-License-Identifier: Apache-2.0
//
// A small guest in machine code on any KVM: one machine, flat memory from 0, a vCPU in real mode
// with all segments at 0.
//
//     let guest = try Guest(.software)
//     guest.load([0xB0, 0x41, 0xE6, 0xE9, 0xF4])      // mov al, 'A'; out 0xE9, al; hlt
//     let exit = try guest.cpu.run()

import CHost
import Glibc
import Host
import KVM
import KVMClient
import KVMLoopback
import SystemPackage
import Testing

final class Guest {
  let transport: any KVMTransport
  let system: System
  let machine: MachineHandle
  let cpus: [VirtualCPUHandle]
  let memory: UnsafeMutableRawPointer
  let memorySize: Int

  var cpu: VirtualCPUHandle { cpus[0] }

  /// - Parameter chips: with in-kernel interrupt chips and timer.
  init(
    _ engine: Engine, cpus count: Int = 1, physicalCPUs: Int = 1, chips: Bool = false,
    megabytes: Int = 2
  ) throws {
    transport = try engine.transport(physicalCPUs: physicalCPUs)
    system = try System(transport: transport)
    machine = try system.createMachine()
    memorySize = megabytes << 20
    memory = .allocate(byteCount: memorySize, alignment: 2 << 20)
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: memorySize)
    try machine.setTSSAddress(0xFFFB_D000)
    if chips {
      try machine.createInterruptChips()
      try machine.createTimer()
    }
    try machine.setMemory(
      slot: 0, guestAddress: 0, size: UInt64(memorySize), hostAddress: memory)
    var list: [VirtualCPUHandle] = []
    let cpuid = try system.supportedCPUID()
    for number in 0..<count {
      let cpu = try machine.createVirtualCPU(UInt32(number))
      try cpu.setCPUID(cpuid)
      list.append(cpu)
    }
    cpus = list
    try setRealMode(cpus[0])
  }

  deinit { memory.deallocate() }

  func setRealMode(_ cpu: VirtualCPUHandle, rip: UInt64 = 0x1000) throws {
    var sregs = try cpu.specialRegisters()
    sregs.cs.base = 0
    sregs.cs.selector = 0
    try cpu.setSpecialRegisters(sregs)
    var regs = kvm_regs()
    regs.rip = rip
    regs.rsp = 0x8000
    regs.rflags = 2
    try cpu.setRegisters(regs)
  }

  func load(_ code: [UInt8], at address: Int = 0x1000) {
    memory.advanced(by: address).copyMemory(from: code, byteCount: code.count)
  }

  func read<T: FixedWidthInteger>(_ address: Int, as: T.Type = T.self) -> T {
    memory.loadUnaligned(fromByteOffset: address, as: T.self)
  }

  func store<T: FixedWidthInteger>(_ value: T, at address: Int) {
    memory.storeBytes(of: value, toByteOffset: address, as: T.self)
  }

  /// Runs until an exit that is not the transport's own business.
  func run() throws -> Exit { try cpu.run() }

  /// The value written to a port, if that is what the next exit is.
  func nextOut() throws -> (port: UInt16, value: UInt32)? {
    guard case .io(let access) = try cpu.run(), access.isWrite else { return nil }
    var value: UInt32 = 0
    withUnsafeMutableBytes(of: &value) {
      $0.baseAddress!.copyMemory(from: access.data, byteCount: access.width)
    }
    return (access.port, value)
  }
}

extension Guest {
  /// DS with another base.
  func setDataBase(_ base: UInt64) throws {
    var sregs = try cpu.specialRegisters()
    sregs.ds.base = base
    try cpu.setSpecialRegisters(sregs)
  }

  func isHalt() throws -> Bool {
    if case .halt = try run() { return true }
    return false
  }
}

func sleepMilliseconds(_ count: UInt32) { usleep(count * 1000) }
