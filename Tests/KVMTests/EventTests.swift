// SPDX-License-Identifier: Apache-2.0
//
// irqfd, ioeventfd and coalesced writes: signals arrive as edges, levels and doorbells as Linux
// documents them; on both engines.

import CHost
import Glibc
import KVMClient
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct EventTests {
  private func request(
    _ event: Int32, gsi: UInt32, flags: Int32 = 0, resample: Int32 = 0
  ) -> kvm_irqfd {
    var value = kvm_irqfd()
    value.fd = UInt32(bitPattern: event)
    value.gsi = gsi
    value.flags = UInt32(flags)
    value.resamplefd = UInt32(bitPattern: resample)
    return value
  }

  private func enableLocalAPIC(_ client: Client) throws { try client.setLocalAPIC(0xF0, 0x1FF) }

  @Test func interruptEventMakesAnEdge() throws {
    let client = try Client(chips: .all)
    try enableLocalAPIC(client)
    try client.route(40, vector: 0x55)
    let event = Client.event()
    try client.set(client.vm, CKVM_IRQFD, request(event, gsi: 40))
    #expect(try !client.isRequested(0x55))
    Client.signal(event)
    #expect(try Client.eventually { try client.isRequested(0x55) })
    #expect(
      client.error(client.vm, CKVM_IRQFD, with: request(event, gsi: 41)) == .resourceBusy)
    try client.set(
      client.vm, CKVM_IRQFD, request(event, gsi: 40, flags: KVM_IRQFD_FLAG_DEASSIGN))
    try client.route(40, vector: 0x56)
    Client.signal(event)
    usleep(20_000)
    #expect(try !client.isRequested(0x56))
    // The event that nobody took is seen when it is assigned again.
    try client.set(client.vm, CKVM_IRQFD, request(event, gsi: 40))
    #expect(try Client.eventually { try client.isRequested(0x56) })
    close(event)
  }

  @Test func interruptEventErrors() throws {
    let none = try Client()
    let event = Client.event()
    #expect(none.error(none.vm, CKVM_IRQFD, with: request(event, gsi: 1)) == .invalidArgument)
    let client = try Client(chips: .all)
    #expect(
      client.error(client.vm, CKVM_IRQFD, with: request(1234, gsi: 1)) == .badFileDescriptor)
    let file = open("/dev/null", O_RDWR)
    #expect(client.error(client.vm, CKVM_IRQFD, with: request(file, gsi: 1)) == .invalidArgument)
    #expect(
      client.error(client.vm, CKVM_IRQFD, with: request(event, gsi: 1, flags: 64))
        == .invalidArgument)
    let split = try Client(chips: .split(routes: 24))
    #expect(
      split.error(
        split.vm, CKVM_IRQFD,
        with: request(event, gsi: 1, flags: KVM_IRQFD_FLAG_RESAMPLE, resample: event))
        == .invalidArgument)
    close(file)
    close(event)
  }

  /// The line stays up until the guest's EOI, which tells the client.
  @Test func resampling() throws {
    let client = try Client(chips: .all)
    // The 8259: vectors from 0x20, line 5 open and level-triggered; sti; hlt.
    var code: [UInt8] = []
    for (port, value) in [
      (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x28), (0xA1, 2),
      (0xA1, 1), (0x21, 0xDF), (0xA1, 0xFF),
    ] as [(UInt8, UInt8)] { code += [0xB0, value, 0xE6, port] }
    // mov dx, 0x4d0; mov al, 0x20; out dx, al; sti; hlt; jmp to hlt
    client.load(code + [0xE6, 0x92, 0xBA, 0xD0, 0x04, 0xB0, 0x20, 0xEE, 0xFB, 0xF4, 0xEB, 0xFD])
    // out 0x90, al; mov al, 0x20; out 0x20, al; iret
    client.load([0xE6, 0x90, 0xB0, 0x20, 0xE6, 0x20, 0xCF], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 0x25 * 4, as: UInt32.self)
    let (event, resample) = (Client.event(), Client.event())
    try client.set(
      client.vm, CKVM_IRQFD,
      request(event, gsi: 5, flags: KVM_IRQFD_FLAG_RESAMPLE, resample: resample))
    #expect(try client.nextOut()?.port == 0x92)
    Client.signal(event)
    #expect(try client.nextOut()?.port == 0x90)
    #expect(Client.take(resample, wait: false) == 0)
    // The next exit is the second interrupt, so the EOI of the first is done by then.
    let wait = Thread {
      _ = Client.take(resample)
      Client.signal(event)
    }
    #expect(try client.nextOut()?.port == 0x90)
    wait.join()
    close(event)
    close(resample)
  }

  // MARK: ioeventfd

  private enum Flag {
    static let match: UInt32 = 1
    static let port: UInt32 = 2
    static let deassign: UInt32 = 4
  }

  private func bell(
    _ event: Int32, _ address: UInt64, _ length: UInt32, _ flags: UInt32 = 0, match: UInt64 = 0
  ) -> kvm_ioeventfd {
    var value = kvm_ioeventfd()
    value.fd = event
    value.addr = address
    value.len = length
    value.flags = flags
    value.datamatch = match
    return value
  }

  @Test func doorbellsOnPorts() throws {
    let client = try Client()
    let (any, three) = (Client.event(), Client.event())
    let set = CKVM_IOEVENTFD
    try client.set(client.vm, set, bell(any, 0x77, 0, Flag.port))
    try client.set(client.vm, set, bell(three, 0x78, 1, Flag.port | Flag.match, match: 3))
    // mov al, 3; out 0x77, al; out 0x77, ax; out 0x78, al; mov al, 4; out 0x78, al; hlt
    client.load([0xB0, 3, 0xE6, 0x77, 0xE7, 0x77, 0xE6, 0x78, 0xB0, 4, 0xE6, 0x78, 0xF4])
    let out = try #require(try client.nextOut())
    #expect(out.port == 0x78 && out.value == 4)
    #expect(Client.take(any) == 2)
    #expect(Client.take(three) == 1)
    #expect(try client.run() == KVM_EXIT_HLT)
    // Taken away, the same write is the client's.
    try client.set(client.vm, set, bell(any, 0x77, 0, Flag.port | Flag.deassign))
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x77)
  }

  @Test func doorbellsInMemory() throws {
    let client = try Client()
    let (word, quiet) = (Client.event(), Client.event())
    try client.set(client.vm, CKVM_IOEVENTFD, bell(word, 0xD000_0010, 2))
    try client.set(
      client.vm, CKVM_IOEVENTFD, bell(quiet, 0xD000_0020, 4, Flag.match, match: 7))
    // All of the value to match counts: nothing of four bytes is this.
    try client.set(
      client.vm, CKVM_IOEVENTFD, bell(quiet, 0xD000_0020, 4, Flag.match, match: 0x1_0000_0008))
    try client.changeSpecial { $0.ds.base = 0xD000_0000 }
    // mov [0x10], ax; mov dword [0x20], 7; mov dword [0x20], 8; mov [0x10], al; hlt
    client.load([
      0xA3, 0x10, 0, 0x66, 0xC7, 0x06, 0x20, 0, 7, 0, 0, 0,
      0x66, 0xC7, 0x06, 0x20, 0, 8, 0, 0, 0, 0xA2, 0x10, 0, 0xF4,
    ])
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(client.shared.pointee.mmio.phys_addr == 0xD000_0020)
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(client.shared.pointee.mmio.phys_addr == 0xD000_0010)
    #expect(client.shared.pointee.mmio.len == 1)
    #expect(Client.take(word) == 1)
    #expect(Client.take(quiet) == 1)
  }

  @Test func doorbellErrors() throws {
    let client = try Client()
    let event = Client.event()
    let set = CKVM_IOEVENTFD
    func error(_ value: kvm_ioeventfd) -> Errno? { client.error(client.vm, set, with: value) }
    #expect(error(bell(event, 0x10, 3)) == .invalidArgument)
    #expect(error(bell(event, .max, 4)) == .invalidArgument)
    #expect(error(bell(event, 0x10, 0, Flag.match)) == .invalidArgument)
    #expect(error(bell(event, 0x10, 4, 0x80)) == .invalidArgument)
    #expect(error(bell(1234, 0x10, 4)) == .badFileDescriptor)
    #expect(error(bell(event, 0x10, 4, Flag.deassign)) == .noSuchFileOrDirectory)
    #expect(error(bell(event, 0x10, 4, Flag.match, match: 1)) == nil)
    #expect(error(bell(event, 0x10, 4, Flag.match, match: 2)) == nil)
    #expect(error(bell(event, 0x10, 4, Flag.match, match: 1)) == .fileExists)
    #expect(error(bell(event, 0x10, 4)) == .fileExists)
    #expect(error(bell(event, 0x10, 2)) == nil)
    #expect(error(bell(event, 0x10, 4, Flag.match | Flag.deassign, match: 1)) == nil)
    close(event)
  }

  // MARK: Coalesced writes

  @Test func coalescedWritesWaitInTheRing() throws {
    let client = try Client()
    func zone(_ address: UInt64, _ size: UInt32, pio: UInt32) -> kvm_coalesced_mmio_zone {
      var zone = kvm_coalesced_mmio_zone()
      zone.addr = address
      zone.size = size
      zone.pio = pio
      return zone
    }
    let register = CKVM_REGISTER_COALESCED_MMIO
    #expect(
      client.error(client.vm, register, with: zone(0xD000_0000, 0x100, pio: 2))
        == .invalidArgument)
    try client.set(client.vm, register, zone(0xD000_0000, 0x100, pio: 0))
    try client.set(client.vm, register, zone(0x90, 2, pio: 1))
    try client.changeSpecial { $0.ds.base = 0xD000_0000 }
    // mov ax, 0x1234; mov [8], ax; out 0x91, al; mov [0xff], ax
    client.load([0xB8, 0x34, 0x12, 0xA3, 8, 0, 0xE6, 0x91, 0xA3, 0xFF, 0])
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(client.shared.pointee.mmio.phys_addr == 0xD000_00FF)
    let ring = client.pages + 8192
    #expect(ring.load(as: UInt32.self) == 0)
    #expect(ring.load(fromByteOffset: 4, as: UInt32.self) == 2)
    let first = ring.load(fromByteOffset: 8, as: kvm_coalesced_mmio.self)
    #expect(first.phys_addr == 0xD000_0008 && first.len == 2 && first.pio == 0)
    #expect(first.data.0 == 0x34 && first.data.1 == 0x12)
    let second = ring.load(fromByteOffset: 32, as: kvm_coalesced_mmio.self)
    #expect(second.phys_addr == 0x91 && second.len == 1 && second.pio == 1)
    // Without the zone the write is the client's again.
    try client.set(client.vm, CKVM_UNREGISTER_COALESCED_MMIO, zone(0x90, 2, pio: 1))
    try client.setRegisters { $0.rip = 0x1006 }
    client.shared.pointee.immediate_exit = 1
    #expect(client.error { () throws(Errno) in _ = try client.run() } == .interrupted)
    client.shared.pointee.immediate_exit = 0
    try client.setRegisters { $0.rip = 0x1006 }
    #expect(try client.nextOut()?.port == 0x91)
  }

  /// Linux shows one page in the mappings of all vCPUs.
  @Test func allCPUsShowOneRing() throws {
    let client = try Client()
    let second = try client.call(client.vm, CKVM_CREATE_VCPU, 1)
    let size = Int(try client.call(client.system, CKVM_GET_VCPU_MMAP_SIZE))
    let pages = try client.transport.mapRun(second, size: size)
    var zone = kvm_coalesced_mmio_zone()
    (zone.addr, zone.size, zone.pio) = (0x90, 1, 1)
    try client.set(client.vm, CKVM_REGISTER_COALESCED_MMIO, zone)
    client.load([0xB0, 0x42, 0xE6, 0x90, 0xE6, 0x91])  // mov al, 0x42; out 0x90, al; out 0x91, al
    #expect(try client.nextOut()?.port == 0x91)
    for ring in [client.pages + 8192, pages + 8192] {
      #expect(ring.load(fromByteOffset: 4, as: UInt32.self) == 1)
      let entry = ring.load(fromByteOffset: 8, as: kvm_coalesced_mmio.self)
      #expect(entry.phys_addr == 0x90 && entry.data.0 == 0x42)
    }
    // What the client takes by one mapping is taken in all; the rest of the pages is each one's
    // own.
    (pages + 8192).storeBytes(of: 1, as: UInt32.self)
    #expect((client.pages + 8192).load(as: UInt32.self) == 1)
    pages.storeBytes(of: 1, toByteOffset: 1, as: UInt8.self)
    #expect(client.pages.load(fromByteOffset: 1, as: UInt8.self) == 0)
    client.transport.unmapRun(second, pages, size: size)
    client.transport.close(second)
  }

  @Test func fullRingLeavesToTheClient() throws {
    let client = try Client()
    var zone = kvm_coalesced_mmio_zone()
    zone.addr = 0x90
    zone.size = 1
    zone.pio = 1
    try client.set(client.vm, CKVM_REGISTER_COALESCED_MMIO, zone)
    // again: out 0x90, al; inc al; jmp again
    client.load([0xE6, 0x90, 0xFE, 0xC0, 0xEB, 0xFA])
    let out = try #require(try client.nextOut())
    // 170 entries, one of which stays free.
    #expect(out.port == 0x90 && out.value == 169)
    // A client that writes nonsense into the ring harms only itself.
    client.pages.storeBytes(of: 0xFFFF_FFFF, toByteOffset: 8196, as: UInt32.self)
    #expect(try client.nextOut()?.value == 170)
  }
}

/// A thread whose end a test waits for.
final class Thread: @unchecked Sendable {
  private var thread = pthread_t()
  private let body: @Sendable () -> Void

  init(_ body: @escaping @Sendable () -> Void) {
    self.body = body
    let me = Unmanaged.passRetained(self).toOpaque()
    pthread_create(
      &thread, nil,
      { argument in
        guard let argument else { return nil }
        Unmanaged<Thread>.fromOpaque(argument).takeRetainedValue().body()
        return nil
      }, me)
  }

  func join() { pthread_join(thread, nil) }
}
