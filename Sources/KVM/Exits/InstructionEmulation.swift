// SPDX-License-Identifier: Apache-2.0
//
// MMIO and string I/O: the processor executes the instruction that exited once more, and every
// access that memory does not answer comes here. The interrupt chips answer at once. What only the
// client can answer stops the instruction before it has changed anything; when the answer has come
// the instruction is executed again, and `log` feeds it all accesses that are done, in their order:
//
//     add [device], eax:   read -> stop; client answers 5
//                          read -> log 5; write 5 + eax -> stop; client takes it
//                          read -> log 5; write -> log; done
//
// The log belongs to the instruction at `rip`; with any other it is empty.

import CHost
import InterruptChips
import Synchronization
import X86
import X86CPU

final class InstructionEmulation: EmulationContext {
  enum Kind { case readMemory, writeMemory, readPort, writePort }

  struct Access {
    var kind: Kind
    var address: UInt64
    var size: Int
    var value: UInt64
  }

  unowned(unsafe) var vcpu: VirtualCPU!
  private var log: [Access] = []
  private var position = 0
  private(set) var pending: Access?
  /// RIP of the instruction that the log belongs to.
  private(set) var rip: UInt64 = 0
  /// RCX when the log's accesses were made.
  private var count: UInt64 = 0

  /// Before an instruction is executed from its start.
  func begin(at rip: UInt64) {
    if rip != self.rip { log.removeAll(keepingCapacity: true) }
    if log.isEmpty { count = vcpu.cpu.gpr[1] }
    self.rip = rip
    position = 0
    pending = nil
  }

  /// The instruction is over.
  func finish() {
    log.removeAll(keepingCapacity: true)
    position = 0
    pending = nil
  }

  /// The client answered the pending access.
  func answer(_ value: UInt64) {
    guard var access = pending else { return }
    access.value = value
    log.append(access)
    pending = nil
  }

  /// The value of an access: from the log, from a device of ours, or later from the client.
  private func perform(
    _ kind: Kind, _ address: UInt64, _ size: Int, _ value: UInt64, _ device: () -> UInt64?
  ) -> UInt64? {
    // A repeated instruction has finished the iterations that RCX has counted.
    if vcpu.cpu.gpr[1] != count {
      log.removeAll(keepingCapacity: true)
      position = 0
      count = vcpu.cpu.gpr[1]
    }
    if position < log.count {
      position += 1
      return log[position - 1].value
    }
    var access = Access(kind: kind, address: address, size: size, value: value)
    guard let result = device() else {
      pending = access
      return nil
    }
    access.value = result
    log.append(access)
    position += 1
    return result
  }

  func readMMIO(_ address: UInt64, size: Int) -> UInt64? {
    perform(.readMemory, address, size, 0) { vcpu.readDevice(address, size: size) }
  }

  func writeMMIO(_ address: UInt64, size: Int, value: UInt64) -> Bool {
    perform(.writeMemory, address, size, value) {
      vcpu.writeDevice(address, size: size, value: value) ? value : nil
    } != nil
  }

  func readPort(_ port: UInt16, size: Int) -> UInt64? {
    perform(.readPort, UInt64(port), size, 0) { vcpu.readChipPort(port) }
  }

  func writePort(_ port: UInt16, size: Int, value: UInt64) -> Bool {
    perform(.writePort, UInt64(port), size, value) {
      vcpu.writeChipPort(port, value) ? value : nil
    } != nil
  }
}

extension VirtualCPU {
  /// Executes the instruction at RIP with devices in place of missing memory.
  func emulateInstruction() -> Disposition {
    guard let slot else { return .resume }
    var budget = 64
    while true {
      runningOn.store(slot.index, ordering: .sequentiallyConsistent)
      guard isMemoryCurrent(slot) else {
        // Enter the guest, which waits for the memory; the same exit comes again.
        leaveGuest()
        return .resume
      }
      let rip = backend[.rip]
      emulation.begin(at: rip)
      let result = slot.cpu.emulate(emulation)
      leaveGuest()
      switch result {
      case .stopped: return requestAccess()
      case .faulted(let exception): return emulationFaulted(exception)
      case .completed:
        completion = .none
        emulation.finish()
        clearShadow()
        budget -= 1
        // A repeated string instruction goes on here, unless somebody waits.
        if backend[.rip] != rip || budget == 0 || requests.load(ordering: .relaxed) != 0 {
          return .resume
        }
      }
    }
  }

  private func emulationFaulted(_ exception: GuestException) -> Disposition {
    completion = .none
    emulation.finish()
    if exception.isVMExit { return internalError(KVM_INTERNAL_ERROR_EMULATION) }
    if exception.vector == ExceptionVector.pageFault.rawValue {
      cpu.s.pointee.cr2 = cpu.s.pointee.faultAddress
    }
    raise(exception)
    return .resume
  }

  /// Asks the client for the pending access.
  private func requestAccess() -> Disposition {
    guard let access = emulation.pending else {
      emulation.finish()
      return internalError(KVM_INTERNAL_ERROR_EMULATION)
    }
    completion = .emulation
    emulationLoadCount = loadCount
    switch access.kind {
    case .readMemory, .writeMemory:
      run.pointee.exit_reason = UInt32(KVM_EXIT_MMIO)
      run.pointee.mmio.phys_addr = access.address
      run.pointee.mmio.len = UInt32(access.size)
      run.pointee.mmio.is_write = access.kind == .writeMemory ? 1 : 0
      withUnsafeMutableBytes(of: &run.pointee.mmio.data) {
        $0.storeBytes(of: access.value, as: UInt64.self)
      }
    case .readPort, .writePort:
      fillPort(
        UInt16(truncatingIfNeeded: access.address), access.size,
        value: access.kind == .writePort ? access.value : nil)
    }
    return .userSpace
  }

  /// The client has answered: execute the instruction again. False where it needs the client once
  /// more.
  func completeEmulation() -> Bool {
    guard let access = emulation.pending else {
      completion = .none
      return true
    }
    emulation.answer(answerValue(access))
    // Where the physical CPU no longer has everything as the exit left it, the guest is entered, and
    // the same exit brings it back to its emulation with the log in place.
    replayEntries = 0
    if emulationLoadCount != loadCount { return true }
    return emulateInstruction() == .resume
  }

  /// After an exit that was not the one to be replayed: give the instruction up if it is gone.
  func checkReplay() {
    replayEntries += 1
    if backend[.rip] == emulation.rip, replayEntries < 64 { return }
    completion = .none
    emulation.finish()
  }

  private func isMemoryCurrent(_ slot: PhysicalCPUSlot) -> Bool {
    machine.memory.gate.load(ordering: .sequentiallyConsistent) == 0
      && slot.mappingGeneration == hypervisor.mappings.load(ordering: .acquiring)
  }

  private func answerValue(_ access: InstructionEmulation.Access) -> UInt64 {
    let mask: UInt64 = access.size >= 8 ? .max : 1 &<< UInt64(access.size * 8) &- 1
    switch access.kind {
    case .readMemory:
      return withUnsafeBytes(of: run.pointee.mmio.data) { $0.load(as: UInt64.self) } & mask
    case .readPort: return portData.load(as: UInt64.self) & mask
    case .writeMemory, .writePort: return access.value
    }
  }

  // MARK: Devices that the hypervisor has

  func readDevice(_ address: UInt64, size: Int) -> UInt64? {
    if let memory = machine.memory.pointer(address, count: size, writing: false) {
      return Self.load(memory, size)
    }
    guard let apic, let interrupts = machine.interrupts else { return nil }
    if InterruptController.ownsAddress(address) {
      return interrupts.readIOAPIC(address, size: size)
    }
    let time = apicTime
    return apic.state.withLock { apic in
      guard apic.mode == .xAPIC, address & ~0xFFF == apic.baseAddress else { return nil }
      return apic.readMMIO(Int(address & 0xFFF), width: size, at: time)
    }
  }

  func writeDevice(_ address: UInt64, size: Int, value: UInt64) -> Bool {
    if let memory = machine.memory.pointer(address, count: size, writing: true) {
      withUnsafeBytes(of: value) {
        memory.copyMemory(from: $0.baseAddress!, byteCount: min(size, 8))
      }
      PhysicalCPU.noteHostWrite(memory, count: size)
      return true
    }
    guard let apic, let interrupts = machine.interrupts else { return false }
    if InterruptController.ownsAddress(address) {
      interrupts.writeIOAPIC(address, value)
      return true
    }
    let time = apicTime
    let effect = apic.state.withLock { apic -> LocalAPIC.Effect? in
      guard apic.mode == .xAPIC, address & ~0xFFF == apic.baseAddress else { return nil }
      // Only whole registers are written.
      guard size >= 4 else { return LocalAPIC.Effect.none }
      return apic.writeRegister(
        Int(address & 0xFFF), UInt32(truncatingIfNeeded: value), at: time)
    }
    guard let effect else { return false }
    perform(effect)
    return true
  }

  private static func load(_ place: UnsafeRawPointer, _ size: Int) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<min(size, 8) {
      value |= UInt64(place.load(fromByteOffset: index, as: UInt8.self)) << UInt64(index * 8)
    }
    return value
  }
}
