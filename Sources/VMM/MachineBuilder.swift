// SPDX-License-Identifier: Apache-2.0
//
// Builds a machine, from memory to the first CPU's registers.

import CHost
import Devices
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import Logging
import SystemPackage
import X86

/// Builds a machine that is ready to run.
enum MachineBuilder {
  static func build(
    _ given: Configuration, _ engine: Engine, output: Int32
  ) throws(RunError) -> VirtualMachine {
    // Read the user's files first: most errors are there.
    let equipment = try Equipment(given)
    var configuration = given
    configuration.firmware = given.firmware?.resolved(for: equipment.disks.first)
    let image = try GuestImage(configuration)

    let memory = try step("map \(configuration.memory >> 20)M of memory; give less") {
      () throws(Errno) in
      try unsafe GuestMemory(
        size: configuration.memory,
        hole: configuration.firmware?.isUEFI == true
          ? GuestMap.firmwareMemoryHole : GuestMap.memoryHole
      ) { unsafe engine.transport.noteWrite($0, count: $1) }
    }
    let entry = try image.load(into: memory)
    log.debug("entry: \(entry)")

    let system = try step("open the engine") { () throws(Errno) in
      try System(transport: engine.transport)
    }
    try checkProcessors(configuration.processors, system)
    let firmwareSlot = UInt32(truncatingIfNeeded: memory.regions.count)
    let machine = try step("make a virtual machine") { () throws(Errno) in
      let machine = try system.createMachine()
      try prepare(machine, memory)
      try image.map(into: machine, slot: firmwareSlot)
      return machine
    }
    let (board, cpus, state) = try step("make the devices and CPUs") { () throws(Errno) in
      let board = try Board(
        machine: machine, memory: memory, console: ConsoleWriter(descriptor: output),
        equipment: equipment, flash: image.makeFlash(machine, slot: firmwareSlot + 1),
        configuration)
      let cpus = try makeProcessors(configuration, system, machine)
      let state = try InitialState(image, system, machine, cpus)
      try ProcessorReset.enter(entry, cpus[0])
      return (board, cpus, state)
    }
    return VirtualMachine(
      memory: memory, machine: machine, board: board, processors: cpus, engine: engine,
      initialState: state)
  }

  /// Memory slots and interrupt chips.
  private static func prepare(_ machine: MachineHandle, _ memory: GuestMemory) throws(Errno) {
    try machine.setTSSAddress(GuestMap.taskStatePages)
    try machine.setIdentityMapAddress(GuestMap.identityMapPage)
    try machine.createInterruptChips()
    try machine.createTimer()
    for (slot, region) in memory.regions.enumerated() {
      let start = String(region.guestAddress, radix: 16)
      log.debug("memory slot \(slot): \(region.size >> 10)K at 0x\(start)")
      try unsafe machine.setMemory(
        slot: UInt32(slot), guestAddress: region.guestAddress, size: region.size,
        hostAddress: region.hostAddress)
    }
  }

  private static func checkProcessors(_ count: Int, _ system: System) throws(RunError) {
    let limit = Int(system.capability(KVM_CAP_MAX_VCPUS))
    guard limit <= 0 || count <= limit else {
      throw RunError("--cpus \(count): the engine has no more than \(limit); give fewer")
    }
  }

  private static func makeProcessors(
    _ configuration: Configuration, _ system: System, _ machine: MachineHandle
  ) throws(Errno) -> [VirtualCPUHandle] {
    let count = configuration.processors
    let isUEFI = configuration.firmware?.isUEFI == true
    let policy = CPUIDPolicy(
      supported: try system.supportedCPUID(), processors: count,
      hasDeadlineTimer: system.capability(KVM_CAP_TSC_DEADLINE_TIMER) > 0,
      addressBitsLimit: isUEFI ? CPUIDPolicy.firmwareAddressBits : nil)
    var cpus: [VirtualCPUHandle] = []
    for number in 0..<UInt32(count) {
      let cpu = try machine.createVirtualCPU(number)
      try cpu.setCPUID(policy.entries(for: number))
      if !isUEFI { try ProcessorReset.apply(to: cpu) }
      cpus.append(cpu)
    }
    return cpus
  }

  /// Runs a build step; its errno becomes a line that names the step.
  private static func step<Result>(
    _ what: String, _ body: () throws(Errno) -> Result
  ) throws(RunError) -> Result {
    do throws(Errno) {
      return try body()
    } catch {
      throw RunError("cannot \(what): \(error)", status: ExitStatus.engineFailed)
    }
  }
}

/// The state that a restart of the guest restores.
struct InitialState: Sendable {
  private let image: GuestImage
  private let chips: ChipState
  private let processors: [VirtualCPUState]

  /// Saves the state of a newly built machine.
  init(
    _ image: GuestImage, _ system: System, _ machine: MachineHandle, _ cpus: [VirtualCPUHandle]
  ) throws(Errno) {
    self.image = image
    chips = try machine.chipState()
    let registers = try system.modelRegisters()
    processors = try cpus.map { (cpu) throws(Errno) in try cpu.state(registers: registers) }
  }

  /// Restores chips and CPUs, and loads the guest into zeroed memory.
  func restore(
    _ machine: MachineHandle, _ cpus: [VirtualCPUHandle], _ memory: GuestMemory
  ) throws(RunError) {
    let entry = try image.load(into: memory)
    do throws(Errno) {
      for (cpu, state) in zip(cpus, processors) { try cpu.setState(state) }
      try machine.setChipState(chips)
      if let first = cpus.first { try ProcessorReset.enter(entry, first) }
    } catch {
      throw RunError("\(error)", status: ExitStatus.engineFailed)
    }
  }
}

/// A CPU's registers as firmware leaves them.
enum ProcessorReset {
  private static let fastStrings: UInt64 = 1
  /// Memory type range registers on, everything write-back.
  private static let allWriteBack: UInt64 = 1 << 11 | 6
  private static let externalInterrupt: UInt32 = 7 << 8
  private static let nonMaskableInterrupt: UInt32 = 4 << 8

  static func apply(to cpu: VirtualCPUHandle) throws(Errno) {
    _ = try cpu.setMSRs([
      (MSR.miscEnable.rawValue, fastStrings), (MSR.mtrrDefType.rawValue, allWriteBack),
    ])
    var fpu = kvm_fpu()
    fpu.fcw = 0x37F
    fpu.mxcsr = 0x1F80
    try cpu.setFPU(fpu)
    // The 8259's output on LINT0 and NMIs on LINT1, as in the MP specification's virtual wire mode.
    var apic = try cpu.localAPIC()
    unsafe withUnsafeMutableBytes(of: &apic) { registers in
      unsafe registers.storeBytes(
        of: externalInterrupt, toByteOffset: APICRegister.lvtLINT0, as: UInt32.self)
      unsafe registers.storeBytes(
        of: nonMaskableInterrupt, toByteOffset: APICRegister.lvtLINT1, as: UInt32.self)
    }
    try cpu.setLocalAPIC(apic)
  }

  static func enter(_ entry: EntryPoint, _ cpu: VirtualCPUHandle) throws(Errno) {
    var special = try cpu.specialRegisters()
    entry.apply(to: &special)
    try cpu.setSpecialRegisters(special)
    try cpu.setRegisters(entry.registers)
  }
}
