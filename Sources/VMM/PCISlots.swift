// SPDX-License-Identifier: Apache-2.0
//
// The devices in the slots of PCI bus 0: disks from slot 1 on, then the network, the source of
// random bytes, the console, the sockets and the balloon.

import Devices
import GuestMemory
import Host
import KVMClient
import Logging
import SystemPackage

/// A machine's images and sockets, opened before anything is built.
struct Equipment {
  let disks: [any BlockImage]
  let diskConfigurations: [DiskConfiguration]
  let network: UserNetwork?
  let hasEntropy: Bool
  let sockets: VsockSocket?
  let balloon: BalloonConfiguration?
  /// The guest's figures of its memory are wanted at the end.
  let hasStatistics: Bool
  let ports: [(name: String, socket: SocketPort)]

  init(_ configuration: Configuration) throws(RunError) {
    disks = try configuration.disks.enumerated().map { (number, disk) throws(RunError) in
      try disk.open { log.warning("disk\(number): \($0)") }
    }
    diskConfigurations = configuration.disks
    hasEntropy = configuration.hasEntropy
    balloon = configuration.balloon
    hasStatistics = configuration.statistics
    if let sockets = configuration.sockets {
      self.sockets = try VsockSocket(sockets)
    } else {
      sockets = nil
    }
    ports = try configuration.ports.map { (port) throws(RunError) in
      (port.name, try SocketPort(port))
    }
    if let network = configuration.network {
      self.network = try UserNetwork(network)
    } else {
      network = nil
    }
  }
}

/// The devices in the slots.
struct PCISlots: Sendable {
  /// After the host bridge.
  static let firstSlot = 1
  private let pci: PCIRoot
  private let machine: MachineHandle
  private var nextSlot = firstSlot
  private var disks: [(name: String, device: BlockDevice)] = []
  private(set) var console: ConsoleDevice?
  private(set) var balloon: BalloonDevice?
  private var balloonWatch: BalloonWatch?

  /// - Parameter terminal: the console's; nil: there is a console only if there are ports.
  init(
    _ equipment: Equipment, _ pci: PCIRoot, machine: MachineHandle, memory: GuestMemory,
    loop: EventLoop, terminal: TerminalPort?, hold: MachineHold
  ) throws(Errno) {
    self.pci = pci
    self.machine = machine
    insertDisks(equipment, memory, hold)
    if let network = equipment.network {
      let connection = connection("net", memory, NetworkDevice.queueSizes)
      insert(
        try NetworkDevice(
          connection, address: network.configuration.address, socket: network.takeSocket(),
          loop: loop, ended: { log.warning("net: passt has ended: \(network.lastWords)") }))
    }
    if equipment.hasEntropy {
      insert(
        try EntropyDevice(connection("rng", memory, EntropyDevice.queueSizes), loop: loop))
    }
    if terminal != nil || !equipment.ports.isEmpty {
      try insertConsole(equipment, terminal, memory, loop)
    }
    if let sockets = equipment.sockets {
      let device = try VsockDevice(
        connection("vsock", memory, VsockDevice.queueSizes),
        address: sockets.configuration.address, backend: sockets, loop: loop)
      try sockets.start(loop, device)
      insert(device)
    }
    if let configuration = equipment.balloon {
      let device = try BalloonDevice(
        connection("balloon", memory, BalloonDevice.queueSizes), memory, configuration.options,
        loop: loop)
      insert(device)
      balloon = device
      if equipment.hasStatistics { balloonWatch = try BalloonWatch(device, loop) }
    }
  }

  private mutating func insertDisks(
    _ equipment: Equipment, _ memory: GuestMemory, _ hold: MachineHold
  ) {
    for (number, image) in equipment.disks.enumerated() {
      let name = "disk\(number)"
      let configuration = equipment.diskConfigurations[number]
      let disk = BlockDevice(
        connection(name, memory, BlockDevice.queueSizes), image, serial: name,
        roomWatch: configuration.pausesWhenFull ? DiskRoomWatch(name, configuration, hold) : nil,
        report: { log.warning("\(name): \($0)") })
      insert(disk)
      disks.append((name, disk))
    }
  }

  private mutating func insertConsole(
    _ equipment: Equipment, _ terminal: TerminalPort?, _ memory: GuestMemory, _ loop: EventLoop
  ) throws(Errno) {
    let first: any ConsoleBackend = terminal ?? NobodyPort()
    let ports =
      [ConsoleDevice.Port(name: "console", backend: first)]
      + equipment.ports.map { ConsoleDevice.Port(name: $0.name, backend: $0.socket) }
    let device = try ConsoleDevice(
      connection("console", memory, ConsoleDevice.queueSizes(ports: ports.count)), ports: ports,
      size: .init(columns: 80, rows: 25), loop: loop)
    terminal?.connect { [weak device] in device?.wake() }
    for port in equipment.ports {
      try port.socket.connect(loop) { [weak device] in device?.wake() }
    }
    insert(device)
    console = device
  }

  /// The connection of the device in the next slot.
  private func connection(
    _ name: String, _ memory: GuestMemory, _ queueSizes: [UInt16]
  ) -> VirtioConnection {
    let machine = machine
    let wires = DeviceWires(
      message: { try? machine.signalMessage(address: $0.address, data: $0.data) },
      line: pci.interruptLine(slot: nextSlot), report: { log.warning("\(name): \($0)") })
    return VirtioConnection(memory, queueSizes: queueSizes, wires)
  }

  private mutating func insert(_ device: any VirtioDevice) {
    pci.insert(VirtioPCI(device), slot: nextSlot)
    nextSlot += 1
  }

  /// Starts the devices' threads.
  func start() throws(Errno) {
    for disk in disks { try disk.device.start(name: disk.name) }
  }

  /// Ends them.
  func stop() { for disk in disks { disk.device.stop() } }
}
