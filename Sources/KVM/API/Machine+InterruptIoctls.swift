// SPDX-License-Identifier: Apache-2.0
//
// The ioctls of the in-kernel interrupt chips: creation, lines, routes, MSIs, states. All but the
// first fail before the chips exist.

import CHost
import InterruptChips
import Synchronization
import SystemPackage
import X86CPU

/// The interrupt chips: creation, lines, routing, messages, state.
extension Machine {
  static let interruptIoctls: [(UInt32, Method)] = [
    (CKVM_CREATE_IRQCHIP, { (machine, _) throws(Errno) in try machine.createChips() }),
    (
      CKVM_IRQ_LINE,
      { (machine, argument) throws(Errno) in
        let level: kvm_irq_level = try argument.read()
        if level.level != 0 { machine.noteInterrupt() }
        _ = try machine.requireChips().setLine(level.irq, level.level != 0)
        return 0
      }
    ),
    (
      CKVM_IRQ_LINE_STATUS,
      { (machine, argument) throws(Errno) in
        var level: kvm_irq_level = try argument.read()
        if level.level != 0 { machine.noteInterrupt() }
        level.status = try machine.requireChips().setLine(level.irq, level.level != 0)
        try argument.write(level)
        return 0
      }
    ),
    (
      CKVM_SET_GSI_ROUTING,
      { (machine, argument) throws(Errno) in
        try machine.setRouting(argument)
      }
    ),
    (
      CKVM_SIGNAL_MSI,
      { (machine, argument) throws(Errno) in
        let message: kvm_msi = try argument.read()
        guard message.flags == 0 else { throw .invalidArgument }
        let interrupt = MessageSignalledInterrupt(
          addressLow: message.address_lo, addressHigh: message.address_hi, data: message.data)
        let chips = try machine.requireChips(.invalidArgument)
        guard interrupt.isValid(machine.options.withLock { $0.messageFormat }) else {
          throw .invalidArgument
        }
        machine.noteInterrupt()
        return max(chips.signal(interrupt), 0)
      }
    ),
    (CKVM_GET_IRQCHIP, { (machine, argument) throws(Errno) in try machine.getChip(argument) }),
    (CKVM_SET_IRQCHIP, { (machine, argument) throws(Errno) in try machine.setChip(argument) }),
  ]

  /// User space is about to interrupt the guest: it may have written to guest memory undetected.
  func noteInterrupt() {
    if hypervisor.watchesCode { PhysicalCPU.contentsMayHaveChanged() }
  }

  func requireChips(
    _ error: Errno = .noSuchAddressOrDevice
  ) throws(Errno) -> InterruptController {
    guard let interrupts else { throw error }
    return interrupts
  }

  /// The 8259 pair and the I/O APIC; an error if they are the client's.
  func requireAllChips(
    _ error: Errno = .noSuchAddressOrDevice
  ) throws(Errno) -> InterruptController {
    let chips = try requireChips(error)
    if chips.isSplit { throw error }
    return chips
  }

  private func createChips() throws(Errno) -> Int32 {
    try configuration.withLock { (_) throws(Errno) in
      guard interrupts == nil else { throw .fileExists }
      guard virtualCPUs.isEmpty else { throw .invalidArgument }
      try installInterruptController()
    }
    return 0
  }

  // MARK: Routing

  private func setRouting(_ argument: Argument) throws(Errno) -> Int32 {
    let chips = try requireChips(.invalidArgument)
    let header: kvm_irq_routing = try argument.read()
    guard header.nr <= UInt32(GSIRoutingTable.limit), header.flags == 0 else {
      throw .invalidArgument
    }
    let format = options.withLock { $0.messageFormat }
    var routes: [(gsi: UInt32, route: GSIRoute)] = []
    for index in 0..<Int(header.nr) {
      let entry: kvm_irq_routing_entry = try argument.element(index, at: 8)
      let route = try Self.route(entry)
      switch route {
      case .message(let message):
        guard message.isValid(format) else { throw .invalidArgument }
      case .picMaster, .picSlave, .ioapic:
        if chips.isSplit { throw .invalidArgument }
      }
      routes.append((entry.gsi, route))
    }
    guard let table = GSIRoutingTable(routes) else { throw .invalidArgument }
    chips.setRouting(table)
    return 0
  }

  private static func route(_ entry: kvm_irq_routing_entry) throws(Errno) -> GSIRoute {
    guard entry.flags == 0 else { throw .invalidArgument }
    switch Int32(bitPattern: entry.type) {
    case KVM_IRQ_ROUTING_IRQCHIP:
      guard let pin = unsafe UInt8(exactly: entry.u.irqchip.pin) else { throw .invalidArgument }
      switch unsafe Int32(bitPattern: entry.u.irqchip.irqchip) {
      case KVM_IRQCHIP_PIC_MASTER: return .picMaster(pin: pin)
      case KVM_IRQCHIP_PIC_SLAVE: return .picSlave(pin: pin)
      case KVM_IRQCHIP_IOAPIC: return .ioapic(pin: pin)
      default: throw .invalidArgument
      }
    case KVM_IRQ_ROUTING_MSI:
      let message = unsafe entry.u.msi
      return .message(
        MessageSignalledInterrupt(
          addressLow: message.address_lo, addressHigh: message.address_hi, data: message.data))
    default: throw .invalidArgument
    }
  }

  // MARK: State

  private func getChip(_ argument: Argument) throws(Errno) -> Int32 {
    let chips = try requireAllChips()
    var chip: kvm_irqchip = try argument.read()
    let (pic, ioapic) = chips.chips.withLock { ($0.pic, $0.ioapic) }
    switch Int32(bitPattern: chip.chip_id) {
    case KVM_IRQCHIP_PIC_MASTER: unsafe chip.chip.pic = ChipState.pic(pic.master)
    case KVM_IRQCHIP_PIC_SLAVE: unsafe chip.chip.pic = ChipState.pic(pic.slave)
    case KVM_IRQCHIP_IOAPIC: unsafe chip.chip.ioapic = ChipState.ioapic(ioapic.state)
    default: throw .invalidArgument
    }
    try argument.write(chip)
    return 0
  }

  private func setChip(_ argument: Argument) throws(Errno) -> Int32 {
    let controller = try requireAllChips()
    let chip: kvm_irqchip = try argument.read()
    try controller.chips.withLock { (chips) throws(Errno) in
      switch Int32(bitPattern: chip.chip_id) {
      case KVM_IRQCHIP_PIC_MASTER:
        let master = unsafe ChipState.pic(chip.chip.pic, isMaster: true)
        chips.pic.load(master: master, slave: chips.pic.slave)
      case KVM_IRQCHIP_PIC_SLAVE:
        let slave = unsafe ChipState.pic(chip.chip.pic, isMaster: false)
        chips.pic.load(master: chips.pic.master, slave: slave)
      case KVM_IRQCHIP_IOAPIC:
        let pins = unsafe chips.ioapic.load(ChipState.ioapic(chip.chip.ioapic))
        controller.service(pins, &chips)
        return
      default: throw .invalidArgument
      }
      controller.updatePIC(&chips)
    }
    return 0
  }
}
