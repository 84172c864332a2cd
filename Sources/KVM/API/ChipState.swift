// SPDX-License-Identifier: Apache-2.0
//
// The states of 8259, I/O APIC and 8254, to and from the structs of KVM_GET_IRQCHIP and
// KVM_GET_PIT2. Pure conversions: they take no lock and touch no chip.

import CHost
import Host
import InterruptChips

/// The chips' states in KVM's structs and back.
enum ChipState {
  static func pic(_ chip: PIC8259) -> kvm_pic_state {
    var state = kvm_pic_state()
    state.last_irr = chip.lastIRR
    state.irr = chip.irr
    state.imr = chip.imr
    state.isr = chip.isr
    state.priority_add = chip.priorityAdd
    state.irq_base = chip.vectorBase
    state.read_reg_select = chip.readsISR ? 1 : 0
    state.poll = chip.isPolling ? 1 : 0
    state.special_mask = chip.specialMask ? 1 : 0
    state.init_state = chip.initialization.rawValue
    state.auto_eoi = chip.autoEOI ? 1 : 0
    state.rotate_on_auto_eoi = chip.rotateOnAutoEOI ? 1 : 0
    state.special_fully_nested_mode = chip.specialFullyNested ? 1 : 0
    state.init4 = chip.needsICW4 ? 1 : 0
    state.elcr = chip.elcr
    state.elcr_mask = chip.elcrMask
    return state
  }

  static func pic(_ state: kvm_pic_state, isMaster: Bool) -> PIC8259 {
    var chip = PIC8259(isMaster: isMaster)
    chip.lastIRR = state.last_irr
    chip.irr = state.irr
    chip.imr = state.imr
    chip.isr = state.isr
    chip.priorityAdd = state.priority_add & 7
    chip.vectorBase = state.irq_base
    chip.readsISR = state.read_reg_select != 0
    chip.isPolling = state.poll != 0
    chip.specialMask = state.special_mask != 0
    chip.initialization = PIC8259.Initialization(rawValue: state.init_state) ?? .done
    chip.autoEOI = state.auto_eoi != 0
    chip.rotateOnAutoEOI = state.rotate_on_auto_eoi != 0
    chip.specialFullyNested = state.special_fully_nested_mode != 0
    chip.needsICW4 = state.init4 != 0
    chip.elcr = state.elcr & chip.elcrMask
    return chip
  }

  /// The offset of `redirtbl`, a union of bit fields that Swift does not import.
  private static let redirectionOffset = 24

  static func ioapic(_ chip: IOAPIC.State) -> kvm_ioapic_state {
    var state = kvm_ioapic_state()
    state.base_address = chip.baseAddress
    state.ioregsel = chip.select
    state.id = chip.id
    state.irr = chip.irr
    unsafe withUnsafeMutableBytes(of: &state) {
      var bytes = unsafe $0.mutableBytes
      for pin in 0..<IOAPIC.pinCount {
        bytes.storeBytes(
          of: chip.entries[pin], toByteOffset: redirectionOffset + pin * 8, as: UInt64.self)
      }
    }
    return state
  }

  static func ioapic(_ state: kvm_ioapic_state) -> IOAPIC.State {
    var chip = IOAPIC.State()
    chip.baseAddress = state.base_address
    chip.select = state.ioregsel
    chip.id = state.id
    chip.irr = state.irr
    unsafe withUnsafeBytes(of: state) {
      let bytes = unsafe $0.bytes
      for pin in 0..<IOAPIC.pinCount {
        chip.entries[pin] = bytes.load(UInt64.self, at: redirectionOffset + pin * 8) ?? 0
      }
    }
    return chip
  }

  static func pit(_ chip: PIT8254.State, flags: UInt32) -> kvm_pit_state2 {
    var state = kvm_pit_state2()
    state.channels = (
      channel(chip.channels[0]), channel(chip.channels[1]), channel(chip.channels[2])
    )
    state.flags = flags | (chip.isSpeakerDataOn ? UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON) : 0)
    return state
  }

  static func pit(_ state: kvm_pit_state2) -> PIT8254.State {
    var chip = PIT8254.State()
    chip.channels[0] = channel(state.channels.0)
    chip.channels[1] = channel(state.channels.1)
    chip.channels[2] = channel(state.channels.2)
    chip.isSpeakerDataOn = state.flags & UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON) != 0
    return chip
  }

  private static func channel(_ chip: PIT8254.ChannelState) -> kvm_pit_channel_state {
    kvm_pit_channel_state(
      count: chip.count, latched_count: chip.latchedCount, count_latched: chip.countLatched,
      status_latched: chip.statusLatched, status: chip.status, read_state: chip.readState,
      write_state: chip.writeState, write_latch: chip.writeLatch, rw_mode: chip.rwMode,
      mode: chip.mode, bcd: chip.bcd, gate: chip.gate, count_load_time: chip.countLoadTime)
  }

  private static func channel(_ state: kvm_pit_channel_state) -> PIT8254.ChannelState {
    var chip = PIT8254.ChannelState()
    chip.count = state.count
    chip.latchedCount = state.latched_count
    chip.countLatched = state.count_latched
    chip.statusLatched = state.status_latched
    chip.status = state.status
    chip.readState = state.read_state
    chip.writeState = state.write_state
    chip.writeLatch = state.write_latch
    chip.rwMode = state.rw_mode
    chip.mode = state.mode
    chip.bcd = state.bcd
    chip.gate = state.gate
    chip.countLoadTime = state.count_load_time
    return chip
  }
}
