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
//
// Repeated string I/O goes to the client as in Linux: an item of OUTS in an exit of its own, as
// clients read no more than one, with the registers behind it; items of INS are asked for ahead, as
// many as will surely be taken, and those not yet taken wait in `inputs`.

import CHost
import Host
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

  /// The item of OUTS that the client has not seen; its value is in the port data page.
  private(set) var output: (port: UInt16, size: Int)?
  /// Items of INS that the client gave.
  private var inputs: [UInt64] = []
  /// The repeated INS whose items are asked for ahead.
  var repeatedInput: RepeatedInput?
  /// How many items of INS were asked for at once.
  private(set) var inputBatch = 1

  struct RepeatedInput {
    var size: Int
    /// The memory operand, and RDI, of the first item.
    var linear: UInt64
    var rdi: UInt64
    /// Of the address size, by which RCX and RDI count.
    var mask: UInt64
  }

  /// An access was to memory that the client has not there.
  private var isHostFault = false

  func takeHostFault() -> Bool {
    defer { isHostFault = false }
    return isHostFault
  }

  func noteHostFault() { isHostFault = true }

  /// As many items as lie in the page of the next one, so that no fault comes between them.
  func chooseInputBatch() {
    inputBatch = 1
    guard let input = repeatedInput else { return }
    let s = vcpu.cpu.s
    let linear = input.linear &+ (s.pointee.gpr[7] & input.mask) &- (input.rdi & input.mask)
    let isDown = s.pointee.rflags & RFLAGS.df.rawValue != 0
    let inPage = isDown ? linear & 0xFFF : 4096 &- linear & 0xFFF
    let items = min(inPage, UInt64(VirtualCPU.portDataSize)) / UInt64(input.size)
    inputBatch = max(1, Int(min(items, s.pointee.gpr[1] & input.mask)))
  }

  /// The client sees the item of OUTS now.
  func takeOutput() -> (port: UInt16, size: Int)? {
    defer { output = nil }
    return output
  }

  /// The client answered a request for items of INS; the first comes at once.
  func answer(_ values: [UInt64]) {
    inputs = values.reversed()
    if let first = inputs.popLast() { answer(first) }
  }

  /// Before an instruction is executed from its start.
  func begin(at rip: UInt64) {
    if rip != self.rip {
      log.removeAll(keepingCapacity: true)
      inputs.removeAll(keepingCapacity: true)
    }
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
    perform(.readPort, UInt64(port), size, 0) { inputs.popLast() ?? vcpu.readChipPort(port) }
  }

  func writePort(_ port: UInt16, size: Int, value: UInt64) -> Bool {
    if vcpu.writeChipPort(port, value)
      || vcpu.writeBus(UInt64(port), size: size, value: value, isPort: true)
    {
      return true
    }
    if output != nil { return false }
    vcpu.portData.storeBytes(of: value, as: UInt64.self)
    output = (port, size)
    return true
  }

  func mapMemory(_ address: UInt64, writing: Bool) -> Bool {
    switch vcpu.memory.map(address, writing: writing) {
    // Here it waits in the access.
    case .mapped, .waits: return true
    case .dirtied(let slot, let page):
      _ = vcpu.noteDirty(slot: slot, page: page)
      return true
    case .fault:
      isHostFault = true
      return false
    case .none: return false
    }
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
      case .stopped where emulation.output != nil:
        // What was done comes first; the rest of the instruction is another exit.
        emulation.finish()
        return sendOutput()
      case .stopped: return requestAccess()
      case .vanished:
        completion = .none
        emulation.finish()
        return memoryVanished()
      case .faulted(let exception):
        let disposition = emulationFaulted(exception)
        return emulation.output != nil ? sendOutput() : disposition
      case .completed:
        completion = .none
        emulation.finish()
        if debug.isStepping { isStepDone = true }
        clearShadow()
        if emulation.output != nil { return sendOutput() }
        budget -= 1
        // A repeated string instruction goes on here, unless somebody waits.
        if backend[.rip] != rip || budget == 0 || isStepDone
          || requests.load(ordering: .relaxed) != 0
        {
          return .resume
        }
      }
    }
  }

  private func emulationFaulted(_ exception: GuestException) -> Disposition {
    completion = .none
    emulation.finish()
    if exception.isVMExit { return emulation.takeHostFault() ? hostFault() : emulationFailed() }
    if exception.vector == ExceptionVector.pageFault.rawValue {
      cpu.s.pointee.cr2 = cpu.s.pointee.faultAddress
    }
    raise(exception)
    return .resume
  }

  /// Gives the client the item of OUTS that was done.
  private func sendOutput() -> Disposition {
    completion = .none
    if let output = emulation.takeOutput() {
      describePort(output.port, output.size, count: 1, isInput: false)
    }
    return .userSpace
  }

  /// Asks the client for the pending access.
  private func requestAccess() -> Disposition {
    if emulation.takeHostFault() {
      completion = .none
      emulation.finish()
      return hostFault()
    }
    guard let access = emulation.pending else {
      emulation.finish()
      return emulationFailed()
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
      portData.storeBytes(of: 0, as: UInt64.self)
      emulation.chooseInputBatch()
      describePort(
        UInt16(truncatingIfNeeded: access.address), access.size, count: emulation.inputBatch,
        isInput: true)
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
    if access.kind == .readPort {
      emulation.answer((0..<emulation.inputBatch).map { portItem($0, access.size) })
    } else {
      emulation.answer(answerValue(access))
    }
    // Where the physical CPU no longer has everything as the exit left it, the guest is entered,
    // and the same exit brings it back to its emulation with the log in place.
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
    case .readPort, .writeMemory, .writePort: return access.value
    }
  }

  private func portItem(_ index: Int, _ size: Int) -> UInt64 {
    Self.load(portData + min(index, Self.portDataSize / size - 1) * size, size)
  }

  /// INS or OUTS.
  func emulateStringIO(_ access: StringPortExit) -> Disposition {
    emulation.repeatedInput =
      access.isInput && access.isRepeated
      ? .init(
        size: access.size, linear: access.linear, rdi: cpu.gpr[7], mask: access.addressMask)
      : nil
    return emulateInstruction()
  }

  // MARK: Devices that the hypervisor has

  func readDevice(_ address: UInt64, size: Int) -> UInt64? {
    switch memory.place(address, count: size) {
    case .at(let place):
      var value: UInt64 = 0
      if GuardedCopy.copy(from: place, to: &value, count: min(size, 8)) { return value }
      memory.hostMemoryVanished()
      emulation.noteHostFault()
      return nil
    case .fault:
      emulation.noteHostFault()
      return nil
    case .none: break
    }
    guard let apic, let interrupts = machine.interrupts else { return nil }
    if interrupts.ownsAddress(address) {
      return interrupts.readIOAPIC(address, size: size)
    }
    let time = apicTime
    return apic.state.withLock { apic in
      guard address & ~0xFFF == apic.baseAddress else { return nil }
      guard apic.mode == .xAPIC else { return isQuirkOn(Quirks.lapicHole) ? .max : nil }
      if address & 0xFF0 == APICRegister.tpr { noteTPRAccess(isWrite: false) }
      return apic.readMMIO(Int(address & 0xFFF), width: size, at: time)
    }
  }

  func writeDevice(_ address: UInt64, size: Int, value: UInt64) -> Bool {
    let isMemory = writeMemory(address, count: size) { memory in
      withUnsafeBytes(of: value) {
        memory.copyMemory(from: $0.baseAddress!, byteCount: min(size, 8))
      }
    }
    if isMemory { return true }
    if case .fault = memory.place(address, count: size, writing: true) {
      emulation.noteHostFault()
      return false
    }
    if writeChip(address, size: size, value: value) { return true }
    return writeBus(address, size: size, value: value, isPort: false)
  }

  private func writeChip(_ address: UInt64, size: Int, value: UInt64) -> Bool {
    guard let apic, let interrupts = machine.interrupts else { return false }
    if interrupts.ownsAddress(address) {
      interrupts.writeIOAPIC(address, value)
      return true
    }
    let time = apicTime
    let effect = apic.state.withLock { apic -> LocalAPIC.Effect? in
      guard address & ~0xFFF == apic.baseAddress else { return nil }
      guard apic.mode == .xAPIC else {
        return isQuirkOn(Quirks.lapicHole) ? LocalAPIC.Effect.none : nil
      }
      // Only whole registers are written.
      guard size >= 4 else { return LocalAPIC.Effect.none }
      if address & 0xFF0 == APICRegister.tpr { noteTPRAccess(isWrite: true) }
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
