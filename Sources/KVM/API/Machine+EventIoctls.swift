// SPDX-License-Identifier: Apache-2.0
//
// The ioctls for eventfds of a machine (irqfd, ioeventfd) and for zones of coalesced writes.

import CHost
import Host
import Synchronization
import SystemPackage

/// irqfd, ioeventfd and coalesced writes.
extension Machine {
  static let eventIoctls: [(UInt32, Method)] = [
    (
      CKVM_IRQFD,
      { (machine, argument) throws(Errno) in
        try machine.setInterruptEvent(argument.read())
        return 0
      }
    ),
    (
      CKVM_IOEVENTFD,
      { (machine, argument) throws(Errno) in
        try machine.setDoorbell(argument.read())
        return 0
      }
    ),
    (
      CKVM_REGISTER_COALESCED_MMIO,
      { (machine, argument) throws(Errno) in
        try machine.writeSinks.add(zone(argument))
        return 0
      }
    ),
    (
      CKVM_UNREGISTER_COALESCED_MMIO,
      { (machine, argument) throws(Errno) in
        machine.writeSinks.remove(try zone(argument))
        return 0
      }
    ),
  ]

  private static func zone(_ argument: Argument) throws(Errno) -> WriteSinks.Zone {
    let zone: kvm_coalesced_mmio_zone = try argument.read()
    guard zone.pio <= 1 else { throw .invalidArgument }
    return WriteSinks.Zone(isPort: zone.pio == 1, address: zone.addr, size: UInt64(zone.size))
  }

  /// The ring that all vCPUs fill and map: it is in the first one's file.
  var coalescedRing: CoalescedRing? {
    cpus.all.first.map { unsafe CoalescedRing(base: $0.pages + CoalescedRing.page * 4096) }
  }

  private func setInterruptEvent(_ request: kvm_irqfd) throws(Errno) {
    let known = UInt32(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE)
    guard request.flags & ~known == 0 else { throw .invalidArgument }
    let client = Int32(truncatingIfNeeded: request.fd)
    if request.flags & UInt32(KVM_IRQFD_FLAG_DEASSIGN) != 0 {
      // Fails for a bad descriptor, as in Linux.
      _ = try ClientEvent(client)
      interruptEvents?.deassign(gsi: request.gsi, client: client)
      return
    }
    let chips = try requireChips(.invalidArgument)
    var resample: ClientEvent?
    if request.flags & UInt32(KVM_IRQFD_FLAG_RESAMPLE) != 0 {
      guard !chips.isSplit else { throw .invalidArgument }
      resample = try ClientEvent(Int32(truncatingIfNeeded: request.resamplefd))
    }
    let event = try ClientEvent(client)
    let events = try configuration.withLock { (_) throws(Errno) in
      try makeInterruptEvents(chips)
    }
    try events.assign(gsi: request.gsi, event: event, resample: resample)
  }

  private func setDoorbell(_ request: kvm_ioeventfd) throws(Errno) {
    func has(_ flag: Int) -> Bool { request.flags & 1 << UInt32(flag) != 0 }
    let hasMatch = has(Self.datamatch)
    guard request.flags & ~0xF == 0, [0, 1, 2, 4, 8].contains(request.len),
      !request.addr.addingReportingOverflow(UInt64(request.len)).overflow,
      !has(Self.virtioCCW), request.len != 0 || !hasMatch
    else { throw .invalidArgument }
    let event = try ClientEvent(request.fd)
    let place = WriteSinks.Place(isPort: has(Self.pio), address: request.addr)
    let bell = WriteSinks.Doorbell(
      length: request.len, match: hasMatch ? request.datamatch : nil, event: event)
    if has(Self.deassign) {
      try writeSinks.remove(bell, at: place)
    } else {
      try writeSinks.add(bell, at: place)
    }
  }

  // Bits of kvm_ioeventfd.flags, an anonymous enumeration of the header.
  private static let datamatch = 0
  private static let pio = 1
  private static let deassign = 2
  private static let virtioCCW = 3
}

extension VirtualCPU {
  /// Offers a write to ioeventfds and coalesced zones.
  func writeSink(_ address: UInt64, size: Int, value: UInt64, isPort: Bool) -> Bool {
    unsafe machine.writeSinks.write(
      WriteSinks.Place(isPort: isPort, address: address), size: size, value: value
    ) { unsafe machine.coalescedRing }
  }
}
