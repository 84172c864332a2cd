// SPDX-License-Identifier: Apache-2.0
//
// The devices of the machine on their buses. What a device asks of the machine as a whole (power
// off, reset, exit) goes through `MachineControl`, because the devices exist before the machine.

import Devices
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import Synchronization
import SystemPackage

/// Carries a device's wish to end the run to whoever runs the machine.
final class MachineControl: Sendable {
  private let outcome = Mutex<Outcome?>(nil)
  private let ended: EventFile

  init() throws(Errno) { ended = try EventFile() }

  /// Readable when the run is to end.
  var descriptor: Int32 { ended.descriptor.rawValue }

  /// The first outcome counts.
  func end(_ outcome: Outcome) {
    self.outcome.withLock { if $0 == nil { $0 = outcome } }
    ended.signal()
  }

  var result: Outcome? { outcome.withLock { $0 } }
}

/// The buses and the devices that the VMM itself talks to.
struct Board: Sendable {
  let ports: Bus
  let memoryMapped: Bus
  let control: MachineControl
  let console: ConsoleWriter
  let serial: SerialPort
  let clock: RealTimeClockDevice
  /// Readable when the clock's next event has changed.
  let clockChanged: SharedEvent
  /// Served by the main thread; devices register with it.
  let loop: EventLoop
  private let slots: PCISlots

  init(
    machine: MachineHandle, memory: GuestMemory, console: ConsoleWriter, equipment: Equipment
  ) throws(Errno) {
    let control = try MachineControl()
    let clockChanged = try SharedEvent()
    func line(_ number: UInt32) -> InterruptLine {
      { level in try? machine.setInterruptLine(number, level) }
    }
    serial = SerialPort(interrupt: line(GuestMap.Interrupt.serial)) { console.put($0) }
    clock = RealTimeClockDevice(
      interrupt: line(GuestMap.Interrupt.realTimeClock), now: { HostClock.realtime() },
      eventChanged: { clockChanged.file.signal() })

    let ports = Bus()
    // Port 0x61 lies between the keyboard controller's two ports; the hypervisor answers it.
    ports.attach(
      KeyboardController { control.end(.restart) }, at: GuestMap.Port.keyboardController, size: 5)
    ports.attach(clock, at: GuestMap.Port.realTimeClock, size: 2)
    ports.attach(
      DebugExit { control.end(.debugExit($0)) }, at: GuestMap.Port.debugExit, size: 4)
    ports.attach(serial, at: GuestMap.Port.serial, size: 8)
    ports.attach(
      PowerManagement(
        interrupt: line(GuestMap.Interrupt.acpi), now: { HostClock.monotonic() },
        powerOff: { control.end(.poweredOff) }),
      at: GuestMap.Port.powerManagement, size: PowerManagement.size)
    ports.attach(ResetRegister { control.end(.restart) }, at: GuestMap.Port.reset, size: 1)

    let memoryMapped = Bus()
    let pci = PCIRoot(
      memory: memoryMapped, ports: ports,
      windows: PCIWindows(memory: GuestMap.pciMemory, ports: GuestMap.Port.pci),
      lines: GuestMap.Interrupt.pci.map(line))
    Self.attach(pci, ports: ports, memoryMapped: memoryMapped)
    loop = try EventLoop()
    slots = try PCISlots(equipment, pci, machine: machine, memory: memory, loop: loop)

    self.ports = ports
    self.memoryMapped = memoryMapped
    self.control = control
    self.console = console
    self.clockChanged = clockChanged
  }

  /// The ways to PCI's configuration space.
  private static func attach(_ pci: PCIRoot, ports: Bus, memoryMapped: Bus) {
    let address = PCIAddressPort()
    // The reset register is at the next port.
    ports.attach(address, at: GuestMap.Port.pciAddress, size: 1)
    ports.attach(PCIDataPort(pci, address), at: GuestMap.Port.pciData, size: PCIDataPort.size)
    memoryMapped.attach(
      PCIConfigurationMemory(pci), at: GuestMap.pciConfiguration.lowerBound,
      size: PCIConfigurationMemory.size)
  }

  /// Starts the devices' threads. No guest code has run.
  func start() throws(Errno) { try slots.start() }

  /// Ends the devices' threads, after the vCPUs' have ended.
  func stop() { slots.stop() }
}

/// An event file that several owners share.
final class SharedEvent: Sendable {
  let file: EventFile
  init() throws(Errno) { file = try EventFile() }
}
