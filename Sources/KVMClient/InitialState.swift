// SPDX-License-Identifier: Apache-2.0
//
// The initial state of a machine, saved so that a restart of the guest can restore it instead of
// building another machine.

import CHost
import SystemPackage

/// The interrupt chips and the timer of a machine.
package struct ChipState: Sendable {
  fileprivate var chips: [kvm_irqchip]
  fileprivate var timer: kvm_pit_state2
}

extension MachineHandle {
  private static let chipCount: UInt32 = 3

  /// The 8259 pair, the IOAPIC and the 8254.
  package func chipState() throws(Errno) -> ChipState {
    var chips: [kvm_irqchip] = []
    for number in 0..<Self.chipCount {
      var chip = kvm_irqchip()
      chip.chip_id = number
      try call(CKVM_GET_IRQCHIP, &chip)
      chips.append(chip)
    }
    var timer = kvm_pit_state2()
    try call(CKVM_GET_PIT2, &timer)
    return ChipState(chips: chips, timer: timer)
  }

  /// Call it while no virtual CPU runs.
  package func setChipState(_ state: ChipState) throws(Errno) {
    for var chip in state.chips { try call(CKVM_SET_IRQCHIP, &chip) }
    var timer = state.timer
    try call(CKVM_SET_PIT2, &timer)
  }
}

/// The state of a virtual CPU except its time-stamp counter, which keeps running.
package struct VirtualCPUState: Sendable {
  fileprivate var general: kvm_regs
  fileprivate var special: kvm_sregs
  fileprivate var extended: kvm_xsave
  fileprivate var controls: kvm_xcrs
  fileprivate var debug: kvm_debugregs
  fileprivate var apic: kvm_lapic_state
  fileprivate var events: kvm_vcpu_events
  fileprivate var waits: kvm_mp_state
  fileprivate var model: [(index: UInt32, value: UInt64)]
}

extension VirtualCPUHandle {
  /// Registers whose writes change the time-stamp counter.
  private static let timeRegisters: Set<UInt32> = [0x10, 0x3B]

  /// - Parameter registers: model-specific ones; unreadable ones are skipped.
  package func state(registers: [UInt32]) throws(Errno) -> VirtualCPUState {
    let model = registers.compactMap { index -> (UInt32, UInt64)? in
      guard !Self.timeRegisters.contains(index), let value = modelRegister(index) else {
        return nil
      }
      return (index, value)
    }
    return VirtualCPUState(
      general: try get(CKVM_GET_REGS, kvm_regs()), special: try get(CKVM_GET_SREGS, kvm_sregs()),
      extended: try get(CKVM_GET_XSAVE, kvm_xsave()), controls: try get(CKVM_GET_XCRS, kvm_xcrs()),
      debug: try get(CKVM_GET_DEBUGREGS, kvm_debugregs()),
      apic: try get(CKVM_GET_LAPIC, kvm_lapic_state()),
      events: try get(CKVM_GET_VCPU_EVENTS, kvm_vcpu_events()),
      waits: try get(CKVM_GET_MP_STATE, kvm_mp_state()), model: model)
  }

  /// Call it while the CPU does not run. Drops an instruction that waits for its completion.
  package func setState(_ state: VirtualCPUState) throws(Errno) {
    try complete()
    try set(CKVM_SET_SREGS, state.special)
    try set(CKVM_SET_REGS, state.general)
    try set(CKVM_SET_XSAVE, state.extended)
    try set(CKVM_SET_XCRS, state.controls)
    try set(CKVM_SET_DEBUGREGS, state.debug)
    for register in state.model { _ = try? setMSRs([register]) }
    try set(CKVM_SET_LAPIC, state.apic)
    try set(CKVM_SET_VCPU_EVENTS, state.events)
    try set(CKVM_SET_MP_STATE, state.waits)
  }

  /// Ends a device access that KVM_RUN has exited for: the next KVM_RUN completes it and returns at
  /// once.
  private func complete() throws(Errno) {
    setImmediateExit(1)
    defer { setImmediateExit(0) }
    do throws(Errno) {
      _ = try transport.ioctl(handle, CKVM_RUN, 0)
    } catch {
      // A CPU that waits for its start-up message reports that there is nothing to run.
      guard error == .interrupted || error == .resourceTemporarilyUnavailable else { throw error }
    }
  }

  private func modelRegister(_ index: UInt32) -> UInt64? {
    var list = EntryList([kvm_msr_entry(index: index, reserved: 0, data: 0)])
    let count = try? list.call { (argument) throws(Errno) in
      try transport.ioctl(handle, CKVM_GET_MSRS, argument)
    }
    return count == 1 ? list.entries.first?.data : nil
  }
}

extension System {
  /// Model-specific registers that can be saved.
  package func modelRegisters() throws(Errno) -> [UInt32] {
    try EntryList.read(capacity: 256, limit: 1 << 14, headerSize: 4) {
      (argument) throws(Errno) in
      try transport.ioctl(handle, CKVM_GET_MSR_INDEX_LIST, argument)
    }
  }
}
