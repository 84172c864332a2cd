// SPDX-License-Identifier: Apache-2.0
//
// What a configuration puts into the slots of PCI bus 0: disks from slot 1 on, then the network,
// then the source of random bytes.

import Devices
import GuestMemory
import Host
import KVMClient
import Logging
import SystemPackage

/// What a machine is equipped with, opened before anything is built.
struct Equipment {
  let disks: [any BlockImage]
  let network: UserNetwork?
  let hasEntropy: Bool

  init(_ configuration: Configuration) throws(RunError) {
    disks = try configuration.disks.enumerated().map { (number, disk) throws(RunError) in
      try disk.open { log.warning("disk\(number): \($0)") }
    }
    hasEntropy = configuration.hasEntropy
    if let network = configuration.network {
      self.network = try UserNetwork(network)
    } else {
      network = nil
    }
  }
}

/// The devices in the slots.
struct PCISlots: Sendable {
  /// Behind the host bridge.
  static let firstSlot = 1
  private let pci: PCIRoot
  private let machine: MachineHandle
  private var nextSlot = firstSlot
  private var disks: [(name: String, device: BlockDevice)] = []

  init(
    _ equipment: Equipment, _ pci: PCIRoot, machine: MachineHandle, memory: GuestMemory,
    loop: EventLoop
  ) throws(Errno) {
    self.pci = pci
    self.machine = machine
    for (number, image) in equipment.disks.enumerated() {
      let name = "disk\(number)"
      let connection = connection(name, memory, BlockDevice.queueSizes)
      let disk = BlockDevice(
        connection, image, serial: name, report: { log.warning("\(name): \($0)") })
      insert(disk)
      disks.append((name, disk))
    }
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
  }

  /// What the device in the next slot is connected by.
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
