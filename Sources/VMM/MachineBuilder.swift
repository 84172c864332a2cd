// SPDX-License-Identifier: Apache-2.0
//
// The recipe of a machine, from memory to the first CPU's registers.

import CHost
import Devices
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import Logging
import SystemPackage
import X86

/// Makes a machine that is ready to run.
enum MachineBuilder {
  static func build(
    _ configuration: Configuration, _ engine: Engine, output: Int32
  ) throws(RunError) -> VirtualMachine {
    // What the user named is read first: most mistakes are there.
    let image = try GuestImage(configuration)
    let equipment = try Equipment(configuration)

    let memory = try step("map \(configuration.memory >> 20)M of memory; give less") {
      () throws(Errno) in
      try GuestMemory(size: configuration.memory) { engine.transport.noteWrite($0, count: $1) }
    }
    let entry = try image.load(into: memory, configuration)
    log.debug("entry: \(entry)")

    let system = try step("open the engine") { () throws(Errno) in
      try System(transport: engine.transport)
    }
    try checkProcessors(configuration.processors, system)
    let machine = try step("make a virtual machine") { () throws(Errno) in
      let machine = try system.createMachine()
      try prepare(machine, memory)
      return machine
    }
    let (board, cpus) = try step("make the devices and CPUs") { () throws(Errno) in
      let board = try Board(
        machine: machine, memory: memory, console: ConsoleWriter(descriptor: output),
        equipment: equipment)
      return (board, try makeProcessors(configuration.processors, system, machine, entry))
    }
    return VirtualMachine(
      memory: memory, machine: machine, board: board, processors: cpus, engine: engine)
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
      try machine.setMemory(
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
    _ count: Int, _ system: System, _ machine: MachineHandle, _ entry: EntryPoint
  ) throws(Errno) -> [VirtualCPUHandle] {
    let policy = CPUIDPolicy(
      supported: try system.supportedCPUID(), processors: count,
      hasDeadlineTimer: system.capability(KVM_CAP_TSC_DEADLINE_TIMER) > 0)
    var cpus: [VirtualCPUHandle] = []
    for number in 0..<UInt32(count) {
      let cpu = try machine.createVirtualCPU(number)
      try cpu.setCPUID(policy.entries(for: number))
      try ProcessorReset.apply(to: cpu)
      if number == 0 { try ProcessorReset.enter(entry, cpu) }
      cpus.append(cpu)
    }
    return cpus
  }

  /// Runs a step of the recipe; its errno becomes a line that names it.
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

/// What firmware leaves in a CPU's registers.
private enum ProcessorReset {
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
    // The 8259's output on LINT0 and NMIs on LINT1, as the MP specification's virtual wire mode.
    var apic = try cpu.localAPIC()
    withUnsafeMutableBytes(of: &apic) { registers in
      registers.storeBytes(
        of: externalInterrupt, toByteOffset: APICRegister.lvtLINT0, as: UInt32.self)
      registers.storeBytes(
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

/// The files of a guest, or the built-in one.
private struct GuestImage {
  /// More than a guest can be given below 4 GiB, where kernel and initrd have to be.
  private static let limit = Int(GuestMap.fourGiB)

  private let kernel: (bytes: [UInt8], name: String)?
  private let initrd: BootLoader.InitialRAMDisk?

  init(_ configuration: Configuration) throws(RunError) {
    if let path = configuration.kernel {
      kernel = (try Self.read(path, "--kernel"), path)
    } else {
      guard configuration.initrd == nil else {
        throw RunError("--initrd needs a kernel; give one with --kernel")
      }
      guard BuiltInGuest.standard != nil else {
        throw RunError(
          "no kernel given, and this program has no built-in guest; give one with --kernel, "
            + "or use `make run`, which fetches a Linux")
      }
      kernel = nil
    }
    if let path = configuration.initrd {
      initrd = BootLoader.InitialRAMDisk(bytes: try Self.read(path, "--initrd"), name: path)
    } else {
      initrd = nil
    }
  }

  private static func read(_ path: String, _ option: String) throws(RunError) -> [UInt8] {
    do throws(Errno) {
      return try contentsOfFile(path, limit: limit)
    } catch {
      switch error {
      case .noSuchFileOrDirectory: throw RunError("\(option) \(path): no such file; check the path")
      case .isDirectory: throw RunError("\(option) \(path): is a directory; give a file")
      case .fileTooLarge:
        throw RunError("\(option) \(path): larger than \(limit >> 20)M; check the path")
      case .permissionDenied:
        throw RunError("\(option) \(path): not readable; change its permissions")
      default: throw RunError("\(option) \(path): cannot be read (\(error)); check the file")
      }
    }
  }

  func load(
    into memory: GuestMemory, _ configuration: Configuration
  ) throws(RunError) -> EntryPoint {
    guard let kernel else { return try loadBuiltIn(into: memory) }
    do throws(LoadError) {
      let loader = BootLoader(
        memory: memory, processors: configuration.processors,
        decompresses: configuration.decompresses)
      return try loader.load(
        kernel: kernel.bytes, kernelName: kernel.name, initrd: initrd,
        commandLine: configuration.commandLine)
    } catch {
      throw RunError(error.description)
    }
  }

  private func loadBuiltIn(into memory: GuestMemory) throws(RunError) -> EntryPoint {
    guard let guest = BuiltInGuest.standard, memory.write(guest.image, at: guest.loadAddress) else {
      throw RunError("the built-in guest does not fit into memory; give more with --memory")
    }
    return .realMode(segment: guest.entrySegment, offset: guest.entryOffset)
  }
}
