// SPDX-License-Identifier: Apache-2.0
//
// Structures that are right more often than not. Pointers and memory ranges in them are never
// anything of this program's but what is meant to be written: KVM may write there.

import CHost
import Glibc

enum Make {
  private static func store<T>(_ value: T, _ place: UnsafeMutableRawPointer) -> Int {
    withUnsafeBytes(of: value) { place.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    return MemoryLayout<T>.size
  }

  /// A count, padding, and room for so many elements of any kind.
  static let list: Call.Structure = { worker, place in
    worker.fill(place, 64)
    let counts: [UInt32] = [0, 1, 100, 256, 256, 256]
    let count = worker.chance(16) ? UInt32(truncatingIfNeeded: worker.word()) : worker.of(counts)
    place.storeBytes(of: count, as: UInt32.self)
    return Worker.structureSize
  }

  /// `kvm_msrs`.
  static let registers: Call.Structure = { worker, place in
    let count = worker.below(9)
    worker.fill(place, 8)
    for index in 0..<count {
      let entry = kvm_msr_entry(
        index: worker.chance(8) ? UInt32(truncatingIfNeeded: worker.word()) : worker.of(msrs),
        reserved: 0, data: worker.word())
      _ = store(entry, place + 8 + index * MemoryLayout<kvm_msr_entry>.stride)
    }
    place.storeBytes(of: UInt32(count), as: UInt32.self)
    if worker.chance(32) {
      place.storeBytes(of: UInt32(truncatingIfNeeded: worker.word()), as: UInt32.self)
      return Worker.structureSize
    }
    return 8 + count * MemoryLayout<kvm_msr_entry>.stride
  }

  private static let msrs: [UInt32] =
    [
      0x10, 0x1B, 0x3A, 0x3B, 0x8B, 0xCE, 0xFE, 0x10A, 0x140, 0x174, 0x175, 0x176, 0x179, 0x17A,
      0x1A0, 0x1D9, 0x200, 0x201, 0x20F, 0x250, 0x277, 0x2FF, 0x345, 0x400, 0x401, 0x480, 0x48D,
      0x6E0, 0x800, 0x802, 0x808, 0x80B, 0x830, 0x832, 0x838, 0x83F, 0xDA0, 0x11, 0x12,
      0x4B56_4D00, 0x4B56_4D01, 0x4B56_4D02, 0x4B56_4D03, 0x4B56_4D04, 0x4B56_4D05, 0xC000_0080,
      0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0100, 0xC000_0101, 0xC000_0102,
      0xC000_0103, 0xC001_0015, 0xC001_0000, 0x309, 0x30B, 0x38D, 0x38E, 0x38F, 0x390, 0x4C1,
      0x4C8,
    ] + (0x400..<0x420) + (0xC1..<0xCA) + (0x186..<0x18F)

  /// `kvm_pmu_event_filter`, of events that count more often than not.
  static let eventFilter: Call.Structure = { worker, place in
    let count = worker.below(16)
    let events: [UInt64] = [0x3C, 0xC0, 0x13C, 0xC4, 0xC5, 0x4F2E]
    var filter = kvm_pmu_event_filter()
    filter.action = UInt32(worker.below(worker.chance(8) ? 4 : 2))
    filter.nevents =
      worker.chance(16) ? UInt32(truncatingIfNeeded: worker.word()) : UInt32(count)
    filter.fixed_counter_bitmap = UInt32(worker.below(16))
    filter.flags = worker.chance(16) ? 1 : 0
    let size = store(filter, place)
    for index in 0..<count {
      let event = worker.chance(4) ? worker.word() : worker.of(events)
      _ = store(event, place + size + index * 8)
    }
    // Where more are announced than there are, what lies behind them counts.
    return filter.nevents > 16 ? Worker.structureSize : size + count * 8
  }

  /// `kvm_device_attr`.
  static let attribute: Call.Structure = { worker, place in
    store(
      kvm_device_attr(
        flags: worker.rarely, group: worker.rarely, attr: UInt64(worker.rarely),
        addr: UInt64(worker.innerPointer())), place)
  }

  /// Guest-physical addresses: near the memory that machines begin with, devices, far away.
  private static func guestPage(_ worker: Worker) -> UInt64 {
    let bases: [UInt64] = [0, 0, 0x10_0000, 0x20_0000, 0xFEE0_0000, 0xFEC0_0000, 1 << 32, 1 << 40]
    return worker.of(bases) &+ UInt64(worker.below(64)) << 12
  }

  /// The longer struct: the same, then what memory that the client cannot see would need.
  static let memoryRegion2: Call.Structure = { worker, place in
    let size = memoryRegion(worker, place)
    for offset in stride(from: size, to: MemoryLayout<kvm_userspace_memory_region2>.size, by: 8) {
      _ = store(worker.chance(4) ? worker.word() : 0, place + offset)
    }
    return MemoryLayout<kvm_userspace_memory_region2>.size
  }

  static let memoryRegion: Call.Structure = { worker, place in
    let pages = worker.chance(3) ? 0 : worker.chance(8) ? 512 : 1 + worker.below(32)
    var region = kvm_userspace_memory_region()
    region.slot = worker.slot
    region.flags = UInt32(worker.below(worker.chance(8) ? 16 : 4))
    region.guest_phys_addr = guestPage(worker)
    region.memory_size = UInt64(pages) << 12
    region.userspace_addr = worker.guestMemory(pages)
    if worker.chance(16) {
      switch worker.below(4) {
      case 0: region.slot = UInt32(truncatingIfNeeded: worker.word())
      case 1: region.guest_phys_addr = worker.word()
      case 2: region.memory_size = worker.word() | 1
      default: region.userspace_addr |= UInt64(1 + worker.below(4095))
      }
    }
    return store(region, place)
  }

  static let dirtyLog: Call.Structure = { worker, place in
    var log = kvm_dirty_log()
    log.slot = worker.chance(16) ? UInt32(truncatingIfNeeded: worker.word()) : worker.slot
    log.dirty_bitmap = UnsafeMutableRawPointer(bitPattern: worker.innerPointer())
    return store(log, place)
  }

  static let clearDirtyLog: Call.Structure = { worker, place in
    var log = kvm_clear_dirty_log()
    log.slot = worker.chance(16) ? UInt32(truncatingIfNeeded: worker.word()) : worker.slot
    log.first_page = worker.chance(16) ? worker.word() : UInt64(worker.below(3) * 64)
    log.num_pages =
      worker.chance(16) ? UInt32(truncatingIfNeeded: worker.word()) : UInt32(worker.below(9) * 64)
    log.dirty_bitmap = UnsafeMutableRawPointer(bitPattern: worker.innerPointer())
    return store(log, place)
  }

  static let line: Call.Structure = { worker, place in
    var level = kvm_irq_level()
    level.irq = worker.chance(16) ? UInt32(truncatingIfNeeded: worker.word()) : worker.gsi
    level.level = UInt32(worker.below(2))
    return store(level, place)
  }

  static let message: Call.Structure = { worker, place in
    var message = kvm_msi()
    message.address_lo = 0xFEE0_0000 | UInt32(worker.below(1 << 20))
    message.data = UInt32(worker.below(1 << 16))
    if worker.chance(16) { worker.change(&message) }
    return store(message, place)
  }

  static let routing: Call.Structure = { worker, place in
    let count = worker.below(12)
    var header = kvm_irq_routing()
    header.nr = UInt32(count)
    _ = store(header, place)
    if worker.chance(32) {
      place.storeBytes(of: UInt32(truncatingIfNeeded: worker.word()), as: UInt32.self)
      return Worker.structureSize
    }
    for index in 0..<count {
      var entry = kvm_irq_routing_entry()
      entry.gsi = worker.gsi
      if worker.chance(2) {
        entry.type = UInt32(KVM_IRQ_ROUTING_MSI)
        entry.u.msi.address_lo = 0xFEE0_0000 | UInt32(worker.below(1 << 20))
        entry.u.msi.data = UInt32(worker.below(1 << 16))
      } else {
        entry.type = UInt32(KVM_IRQ_ROUTING_IRQCHIP)
        entry.u.irqchip.irqchip = UInt32(worker.below(3))
        entry.u.irqchip.pin = UInt32(worker.below(24))
      }
      if worker.chance(32) { worker.change(&entry) }
      _ = store(entry, place + 8 + index * MemoryLayout<kvm_irq_routing_entry>.stride)
    }
    return 8 + count * MemoryLayout<kvm_irq_routing_entry>.stride
  }

  static let chip: Call.Structure = { worker, place in
    let number = UInt32(worker.below(worker.chance(8) ? 5 : 3))
    place.storeBytes(of: number, as: UInt32.self)
    let size = worker.fillChanged(place, MemoryLayout<kvm_irqchip>.size, CKVM_GET_IRQCHIP)
    if !worker.chance(16) { place.storeBytes(of: number, as: UInt32.self) }
    return size
  }

  static let capability: Call.Structure = { worker, place in
    var capability = kvm_enable_cap()
    capability.cap = worker.chance(4) ? worker.of(settings) : UInt32(worker.below(230))
    capability.flags = worker.chance(32) ? 1 : 0
    switch worker.below(4) {
    case 0: capability.args.0 = worker.word()
    case 1: capability.args.0 = 1 &<< UInt64(worker.below(20))
    default: capability.args.0 = UInt64(worker.below(8))
    }
    return store(capability, place)
  }

  /// Capabilities that change how guests run.
  private static let settings: [UInt32] = [
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_CAP_X86_NOTIFY_VMEXIT,
    KVM_CAP_VM_DISABLE_NX_HUGE_PAGES, KVM_CAP_X86_DISABLE_EXITS, KVM_CAP_X86_APIC_BUS_CYCLES_NS,
  ].map { UInt32($0) }

  static let filter: Call.Structure = { worker, place in
    var filter = kvm_msr_filter()
    filter.flags = UInt32(worker.below(worker.chance(8) ? 4 : 2))
    withUnsafeMutableBytes(of: &filter.ranges) { bytes in
      let ranges = bytes.bindMemory(to: kvm_msr_filter_range.self)
      for index in 0..<worker.below(4) {
        ranges[index].flags = UInt32(worker.below(4))
        ranges[index].nmsrs =
          worker.chance(16) ? UInt32(truncatingIfNeeded: worker.word()) : UInt32(worker.below(600))
        ranges[index].base = worker.chance(2) ? 0xC000_0080 : UInt32(worker.below(0x800))
        ranges[index].bitmap = UnsafeMutablePointer(bitPattern: worker.innerPointer())
      }
    }
    return store(filter, place)
  }

  static let interruptEvent: Call.Structure = { worker, place in
    var event = kvm_irqfd()
    event.fd = UInt32(bitPattern: worker.eventDescriptor())
    event.gsi = worker.gsi
    event.flags = UInt32(worker.below(worker.chance(16) ? 16 : 4))
    event.resamplefd = UInt32(bitPattern: worker.eventDescriptor())
    return store(event, place)
  }

  static let doorbell: Call.Structure = { worker, place in
    var event = kvm_ioeventfd()
    event.fd = worker.eventDescriptor()
    event.len = worker.of([0, 1, 2, 4, 8, 4, 3])
    event.flags = UInt32(worker.below(worker.chance(16) ? 32 : 8))
    event.addr = worker.chance(2) ? UInt64(worker.below(16)) : 0x30_0000 + UInt64(worker.below(16))
    event.datamatch = UInt64(worker.below(4))
    if worker.chance(32) { event.addr = worker.word() }
    return store(event, place)
  }

  static let zone: Call.Structure = { worker, place in
    var zone = kvm_coalesced_mmio_zone()
    zone.addr = worker.chance(16) ? worker.word() : 0x30_0000 + UInt64(worker.below(16)) * 4
    zone.size = worker.chance(16) ? UInt32(truncatingIfNeeded: worker.word()) : 4096
    zone.pio = UInt32(worker.below(worker.chance(16) ? 4 : 2))
    return store(zone, place)
  }

  static let interrupt: Call.Structure = { worker, place in
    store(
      kvm_interrupt(
        irq: worker.chance(8)
          ? UInt32(truncatingIfNeeded: worker.word())
          : UInt32(worker.below(256))),
      place)
  }

  static let runState: Call.Structure = { worker, place in
    let state: UInt32 = worker.chance(2) ? 0 : UInt32(worker.below(12))
    return store(kvm_mp_state(mp_state: state), place)
  }

  static let cpuid: Call.Structure = { worker, place in
    place.storeBytes(of: UInt64(256), as: UInt64.self)
    _ = worker.call(.system, CKVM_GET_SUPPORTED_CPUID, place)
    let count = min(256, Int(place.load(as: UInt32.self)))
    let stride = MemoryLayout<kvm_cpuid_entry2>.stride
    for _ in 0..<worker.below(4) where count > 0 {
      worker.fill(place + 8 + worker.below(count) * stride + 12, 16)
    }
    if worker.chance(8) { place.storeBytes(of: UInt32(worker.below(400)), as: UInt32.self) }
    return 8 + 256 * stride
  }

  static let oldCPUID: Call.Structure = { worker, place in
    let count = worker.below(worker.chance(8) ? 300 : 10)
    worker.fill(place, 8 + count * MemoryLayout<kvm_cpuid_entry>.stride)
    place.storeBytes(of: UInt32(count), as: UInt32.self)
    return 8 + count * MemoryLayout<kvm_cpuid_entry>.stride
  }

  static let guestAddress: Call.Structure = { worker, place in
    store(worker.chance(8) ? worker.word() : UInt64(worker.below(1 << 20)), place)
  }

  /// Any signals but those that this program ends KVM_RUN with.
  static let signalMask: Call.Structure = { worker, place in
    let kick: UInt64 = 1 << UInt64(SIGUSR1 - 1)
    place.storeBytes(of: worker.chance(16) ? UInt32(worker.below(200)) : 8, as: UInt32.self)
    _ = store(worker.word() & ~kick, place + 4)
    return 12
  }

  static let machineCheckSetup: Call.Structure = { worker, place in
    let banks = UInt64(worker.below(40))
    return store(worker.chance(4) ? worker.word() : banks | 1 << 24 | 1 << 8, place)
  }

  static let machineCheck: Call.Structure = { worker, place in
    var report = kvm_x86_mce()
    worker.change(&report)
    report.status |= 1 << 63
    report.bank = UInt8(worker.below(40))
    return store(report, place)
  }

  static let debug: Call.Structure = { worker, place in
    var debug = kvm_guest_debug()
    debug.control = worker.chance(3) ? 0 : UInt32(worker.below(2)) | UInt32(worker.below(64)) << 16
    withUnsafeMutableBytes(of: &debug.arch) { bytes in
      for index in 0..<8 {
        bytes.storeBytes(
          of: UInt64(worker.below(1 << 16)), toByteOffset: index * 8, as: UInt64.self)
      }
    }
    if worker.chance(16) { worker.change(&debug) }
    return store(debug, place)
  }
}
