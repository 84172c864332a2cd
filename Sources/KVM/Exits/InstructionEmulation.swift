// SPDX-License-Identifier: Apache-2.0
//
// MMIO and string I/O. The processor executes the instruction that exited once more, and asks the
// vCPU, its `EmulationContext`, for every access outside memory: `readMMIO` and its siblings below.
// The interrupt chips answer at once. An access that only the client can answer stops the
// instruction before it changes anything. With the answer the instruction starts again, and `log`
// replays its finished accesses in order:
//
//     add [device], eax:   read -> stop; client answers 5
//                          read -> log 5; write 5 + eax -> stop; client takes it
//                          read -> log 5; write -> log; done
//
// The log belongs to the instruction at `rip`; for any other it is empty.
//
// Repeated string I/O exits to the client as in Linux. Each item of OUTS has its own exit, with the
// registers already past it, because clients read only one item. Items of INS are requested in
// advance, as many as are sure to be consumed; the rest of them wait in `inputs`.

import CHost
import Host
import InterruptChips
import Synchronization
import X86
import X86CPU

/// The instruction in emulation. Only the thread in an ioctl of the vCPU uses it.
struct InstructionEmulation {
  enum Kind { case readMemory, writeMemory, readPort, writePort }

  struct Access {
    var kind: Kind
    var address: UInt64
    var size: Int
    var value: UInt64
  }

  private var log: [Access] = []
  private var position = 0
  private(set) var pending: Access?
  /// `VCPURegisters.loadCount` at the exit for the pending access.
  var loadCount: UInt64 = 0
  /// VM entries made to replay the emulated instruction.
  var replayEntries = 0
  /// RIP of the log's instruction.
  private(set) var rip: UInt64 = 0
  /// RCX at the time of the log's accesses.
  private var count: UInt64 = 0

  /// The item of OUTS not yet sent to the client; its value is in the port data page.
  private(set) var output: (port: UInt16, size: Int)?
  /// Items of INS from the client.
  private var inputs: [UInt64] = []
  /// The repeated INS whose items are requested in advance.
  var repeatedInput: RepeatedInput?
  /// The number of INS items requested at once.
  private(set) var inputBatch = 1

  struct RepeatedInput {
    var size: Int
    /// The memory operand, and RDI, of the first item.
    var linear: UInt64
    var rdi: UInt64
    /// The address-size mask of RCX and RDI.
    var mask: UInt64
  }

  /// An access failed because the client's memory is unmapped.
  private var isHostFault = false

  mutating func takeHostFault() -> Bool {
    defer { isHostFault = false }
    return isHostFault
  }

  mutating func noteHostFault() { isHostFault = true }

  /// Requests at most the items in the next item's page, so that no fault comes between them.
  mutating func chooseInputBatch(_ cpu: CPU) {
    inputBatch = 1
    guard let input = repeatedInput else { return }
    let s = unsafe cpu.s
    let linear = unsafe input.linear &+ (s.pointee.gpr[7] & input.mask) &- (input.rdi & input.mask)
    let isDown = unsafe s.pointee.rflags & RFLAGS.df.rawValue != 0
    let inPage = isDown ? linear & 0xFFF : 4096 &- linear & 0xFFF
    let items = min(inPage, UInt64(VirtualCPU.portDataSize)) / UInt64(input.size)
    inputBatch = unsafe max(1, Int(min(items, s.pointee.gpr[1] & input.mask)))
  }

  /// Takes the item of OUTS for an exit to the client.
  mutating func takeOutput() -> (port: UInt16, size: Int)? {
    defer { output = nil }
    return output
  }

  /// The client's answer to a request for INS items; the first is consumed at once.
  mutating func answer(_ values: [UInt64]) {
    inputs = values.reversed()
    if let first = inputs.popLast() { answer(first) }
  }

  /// Called before an instruction is executed from its start.
  mutating func begin(at rip: UInt64, _ cpu: CPU) {
    if rip != self.rip {
      log.removeAll(keepingCapacity: true)
      inputs.removeAll(keepingCapacity: true)
    }
    if log.isEmpty { count = unsafe cpu.gpr[1] }
    self.rip = rip
    position = 0
    pending = nil
  }

  /// Called after the instruction.
  mutating func finish() {
    log.removeAll(keepingCapacity: true)
    position = 0
    pending = nil
  }

  /// The client's answer to the pending access.
  mutating func answer(_ value: UInt64) {
    guard var access = pending else { return }
    access.value = value
    log.append(access)
    pending = nil
  }

  /// The next access's value, if the log has it.
  mutating func replay(_ cpu: CPU) -> UInt64? {
    // RCX has counted this repeated instruction's finished iterations.
    if unsafe cpu.gpr[1] != count {
      log.removeAll(keepingCapacity: true)
      position = 0
      count = unsafe cpu.gpr[1]
    }
    guard position < log.count else { return nil }
    position &+= 1
    return log[position &- 1].value
  }

  /// Logs a finished access.
  mutating func note(_ access: Access) {
    log.append(access)
    position &+= 1
  }

  /// Makes an access wait for the client.
  mutating func stop(at access: Access) { pending = access }

  /// The next INS item that was received in advance.
  mutating func takeInput() -> UInt64? { inputs.popLast() }

  /// Queues an OUTS item whose value is in the port data page. False if one is already waiting.
  mutating func send(_ port: UInt16, size: Int) -> Bool {
    if output != nil { return false }
    output = (port, size)
    return true
  }
}

/// The accesses outside memory during emulation.
extension VirtualCPU: EmulationContext {
  func readMMIO(_ address: UInt64, size: Int) -> UInt64? {
    if let known = emulation.replay(cpu) { return known }
    guard let address = machineAddress(address, writing: false) else { return nil }
    let value = readDevice(address, size: size)
    return end(.init(kind: .readMemory, address: address, size: size, value: 0), value)
  }

  func writeMMIO(_ address: UInt64, size: Int, value: UInt64) -> Bool {
    if emulation.replay(cpu) != nil { return true }
    guard let address = machineAddress(address, writing: true) else { return false }
    let isDone = writeDevice(address, size: size, value: value)
    return end(
      .init(kind: .writeMemory, address: address, size: size, value: value), isDone ? value : nil)
      != nil
  }

  func readPort(_ port: UInt16, size: Int) -> UInt64? {
    if let known = emulation.replay(cpu) { return known }
    let value = emulation.takeInput() ?? readChipPort(port)
    return end(.init(kind: .readPort, address: UInt64(port), size: size, value: 0), value)
  }

  func writePort(_ port: UInt16, size: Int, value: UInt64) -> Bool {
    if writeChipPort(port, value)
      || writeSink(UInt64(port), size: size, value: value, isPort: true)
    {
      return true
    }
    guard emulation.send(port, size: size) else { return false }
    unsafe portData.storeBytes(of: value, as: UInt64.self)
    return true
  }

  func mapMemory(_ address: UInt64, writing: Bool) -> Bool {
    // What is emulated for L2 reaches memory by `readMMIO` and `writeMMIO`.
    if runsNestedGuest { return false }
    switch memory.map(address, writing: writing) {
    // Emulation waits for the page in the access.
    case .mapped, .waits: return true
    case .dirtied(let slot, let page):
      _ = noteDirty(slot: slot, page: page)
      return true
    case .fault:
      emulation.noteHostFault()
      return false
    case .none: return false
    }
  }

  /// Logs an answered access, or makes it wait for the client.
  private func end(_ access: InstructionEmulation.Access, _ value: UInt64?) -> UInt64? {
    var access = access
    guard let value else {
      emulation.stop(at: access)
      return nil
    }
    access.value = value
    emulation.note(access)
    return value
  }
}

extension VirtualCPU {
  /// Executes the instruction at RIP with device accesses.
  func emulateInstruction() -> Disposition {
    guard let slot else { return .resume }
    var budget = 64
    while true {
      mailbox.enter(slot.index)
      guard isMemoryCurrent(slot) else {
        // Resume the guest, which waits for the memory; the same exit comes again.
        leaveGuest()
        return .resume
      }
      let rip = backend[.rip]
      emulation.begin(at: rip, cpu)
      let result = slot.cpu.emulate(self)
      leaveGuest()
      switch result {
      case .stopped where emulation.output != nil:
        // Send the finished item first; the rest of the instruction is another exit.
        emulation.finish()
        return sendOutput()
      case .stopped: return requestAccess()
      case .vanished:
        runState.completion = .none
        emulation.finish()
        return memoryVanished()
      case .faulted(let exception):
        let disposition = emulationFaulted(exception)
        return emulation.output != nil ? sendOutput() : disposition
      case .completed:
        runState.completion = .none
        emulation.finish()
        if debug.isStepping { debug.isStepDone = true }
        clearShadow()
        if emulation.output != nil { return sendOutput() }
        budget -= 1
        // Continue a repeated string instruction here unless a request is pending.
        if backend[.rip] != rip || budget == 0 || debug.isStepDone
          || mailbox.mayHaveRequests
        {
          return .resume
        }
      }
    }
  }

  private func emulationFaulted(_ exception: GuestException) -> Disposition {
    runState.completion = .none
    emulation.finish()
    if exception.isVMExit { return emulation.takeHostFault() ? hostFault() : emulationFailed() }
    if exception.vector == ExceptionVector.pageFault.rawValue {
      unsafe cpu.s.pointee.cr2 = unsafe cpu.s.pointee.faultAddress
    }
    raise(exception)
    return .resume
  }

  /// Exits to the client with the finished OUTS item.
  private func sendOutput() -> Disposition {
    runState.completion = .none
    if let output = emulation.takeOutput() {
      describePort(output.port, output.size, count: 1, isInput: false)
    }
    return .userSpace
  }

  /// Exits to the client for the pending access.
  private func requestAccess() -> Disposition {
    if emulation.takeHostFault() {
      runState.completion = .none
      emulation.finish()
      return hostFault()
    }
    guard let access = emulation.pending else {
      emulation.finish()
      return emulationFailed()
    }
    runState.completion = .emulation
    emulation.loadCount = registers.loadCount
    switch access.kind {
    case .readMemory, .writeMemory:
      unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_MMIO)
      unsafe run.pointee.mmio.phys_addr = access.address
      unsafe run.pointee.mmio.len = UInt32(access.size)
      unsafe run.pointee.mmio.is_write = access.kind == .writeMemory ? 1 : 0
      unsafe withUnsafeMutableBytes(of: &run.pointee.mmio.data) {
        unsafe $0.storeBytes(of: access.value, as: UInt64.self)
      }
    case .readPort, .writePort:
      unsafe portData.storeBytes(of: 0, as: UInt64.self)
      emulation.chooseInputBatch(cpu)
      describePort(
        UInt16(truncatingIfNeeded: access.address), access.size, count: emulation.inputBatch,
        isInput: true)
    }
    return .userSpace
  }

  /// Executes the instruction again with the client's answer. False if it needs another exit to the
  /// client.
  func completeEmulation() -> Bool {
    guard let access = emulation.pending else {
      runState.completion = .none
      return true
    }
    if access.kind == .readPort {
      emulation.answer((0..<emulation.inputBatch).map { portItem($0, access.size) })
    } else {
      emulation.answer(answerValue(access))
    }
    // If the physical CPU has lost the exit's state, enter the guest: the same exit returns to
    // emulation with the log intact.
    emulation.replayEntries = 0
    if emulation.loadCount != registers.loadCount { return true }
    return emulateInstruction() == .resume
  }

  /// After an exit other than the replayed one: drops the log if the guest has left the
  /// instruction.
  func checkReplay() {
    emulation.replayEntries += 1
    if backend[.rip] == emulation.rip, emulation.replayEntries < 64 { return }
    runState.completion = .none
    emulation.finish()
  }

  func isMemoryCurrent(_ slot: PhysicalCPUSlot) -> Bool {
    unsafe machine.memory.gate.load(ordering: .sequentiallyConsistent) == 0
      && slot.mappingGeneration == hypervisor.mappings.load(ordering: .acquiring)
  }

  private func answerValue(_ access: InstructionEmulation.Access) -> UInt64 {
    let mask: UInt64 = access.size >= 8 ? .max : 1 &<< UInt64(access.size * 8) &- 1
    switch access.kind {
    case .readMemory:
      return unsafe withUnsafeBytes(of: run.pointee.mmio.data) { unsafe $0.load(as: UInt64.self) }
        & mask
    case .readPort, .writeMemory, .writePort: return access.value
    }
  }

  private func portItem(_ index: Int, _ size: Int) -> UInt64 {
    unsafe Self.load(portData + min(index, Self.portDataSize / size - 1) * size, size)
  }

  /// INS or OUTS.
  func emulateStringIO(_ access: StringPortExit) -> Disposition {
    emulation.repeatedInput =
      unsafe access.isInput && access.isRepeated
      ? .init(
        size: access.size, linear: access.linear, rdi: cpu.gpr[7], mask: access.addressMask)
      : nil
    return emulateInstruction()
  }

  // MARK: Devices of the hypervisor

  func readDevice(_ address: UInt64, size: Int) -> UInt64? {
    switch memory.place(address, count: size) {
    case .at(let place):
      var value: UInt64 = 0
      if unsafe GuardedCopy.copy(from: place, to: &value, count: min(size, 8)) { return value }
      memory.hostMemoryVanished()
      emulation.noteHostFault()
      return nil
    case .fault:
      emulation.noteHostFault()
      return nil
    case .none: break
    }
    guard let apic, let interrupts = unsafe machine.interrupts else { return nil }
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
      unsafe withUnsafeBytes(of: value) {
        unsafe memory.copyMemory(from: $0.baseAddress!, byteCount: min(size, 8))
      }
    }
    if isMemory { return true }
    if case .fault = memory.place(address, count: size, writing: true) {
      emulation.noteHostFault()
      return false
    }
    if writeChip(address, size: size, value: value) { return true }
    return writeSink(address, size: size, value: value, isPort: false)
  }

  private func writeChip(_ address: UInt64, size: Int, value: UInt64) -> Bool {
    guard let apic, let interrupts = unsafe machine.interrupts else { return false }
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
      // Partial writes are ignored.
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
      unsafe value |= UInt64(place.load(fromByteOffset: index, as: UInt8.self)) << UInt64(index * 8)
    }
    return value
  }
}
