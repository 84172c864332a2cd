// SPDX-License-Identifier: Apache-2.0
//
// The devices of the machine on their buses. Requests of devices to the whole machine (power off,
// reset, exit) go through `MachineControl`, because the devices exist before the machine.

import Devices
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import Logging
import Synchronization
import SystemPackage

/// Passes a device's request to end the run to the machine.
final class MachineControl: Sendable {
  private let outcome = Mutex<Outcome?>(nil)
  private let ended: EventFile
  private let onReboot: RebootAction
  private let isRestarting = Atomic<Bool>(false)

  init(onReboot: RebootAction) throws(Errno) {
    ended = try EventFile()
    self.onReboot = onReboot
  }

  /// Readable when the run must end, or the guest restart.
  var descriptor: Int32 { ended.descriptor.rawValue }

  /// The first outcome counts.
  func end(_ outcome: Outcome) {
    self.outcome.withLock { if $0 == nil { $0 = outcome } }
    ended.signal()
  }

  var result: Outcome? { outcome.withLock { $0 } }

  /// The guest requests a reset of the machine.
  func reboot() {
    switch onReboot {
    case .exit: end(.restart)
    case .restart:
      isRestarting.store(true, ordering: .releasing)
      ended.signal()
    }
  }

  /// Whether the guest has requested a restart since the last call.
  func takeRestart() -> Bool {
    guard isRestarting.exchange(false, ordering: .acquiringAndReleasing) else { return false }
    ended.consume()
    return true
  }
}

/// The buses and the devices that the VMM itself accesses.
struct Board: Sendable {
  let ports: Bus
  let memoryMapped: Bus
  let control: MachineControl
  let console: ConsoleWriter
  let serial: SerialPort
  let power: PowerManagement
  /// The receiver of the terminal's input.
  let input: any InputReceiver
  let clock: RealTimeClockDevice
  /// Readable when the clock's next event has changed.
  let clockChanged: SharedEvent
  /// Runs in the main thread; devices register with it.
  let loop: EventLoop
  /// Stops the CPUs while the host's disk is full.
  let hold: MachineHold
  /// Seconds that a guest has to power off after SIGTERM.
  let shutdownTime: Int
  private let slots: PCISlots
  private let pci: PCIRoot
  /// Devices that a reset of the machine resets.
  private let devices: [any BusDevice]

  init(
    machine: MachineHandle, memory: GuestMemory, console: ConsoleWriter, equipment: Equipment,
    flash: PlacedFlash?, _ configuration: Configuration
  ) throws(Errno) {
    let control = try MachineControl(onReboot: configuration.onReboot)
    let clockChanged = try SharedEvent()
    func line(_ number: UInt32) -> InterruptLine {
      { level in try? machine.setInterruptLine(number, level) }
    }
    serial = SerialPort(interrupt: line(GuestMap.Interrupt.serial)) { console.put($0) }
    let highMemory = memory.regions.dropFirst().reduce(UInt64(0)) { $0 &+ $1.size }
    clock = RealTimeClockDevice(
      memory: (memory.lowEnd, highMemory), interrupt: line(GuestMap.Interrupt.realTimeClock),
      now: { HostClock.realtime() },
      eventChanged: { clockChanged.file.signal() })

    let ports = Bus()
    // Port 0x61 is between the keyboard controller's two ports; the hypervisor answers it.
    let keyboard = KeyboardController(isPresent: flash == nil) { control.reboot() }
    ports.attach(keyboard, at: GuestMap.Port.keyboardController, size: 5)
    ports.attach(clock, at: GuestMap.Port.realTimeClock, size: 2)
    ports.attach(
      DebugExit { control.end(.debugExit($0)) }, at: GuestMap.Port.debugExit, size: 4)
    ports.attach(serial, at: GuestMap.Port.serial, size: 8)
    power = PowerManagement(
      interrupt: line(GuestMap.Interrupt.acpi), now: { HostClock.monotonic() },
      sleepTypes: flash == nil
        ? [PowerManagement.powerOffSleepType]
        : [PowerManagement.powerOffSleepType, PowerManagement.firmwareSleepType],
      powerOff: { control.end(.poweredOff) })
    ports.attach(power, at: GuestMap.Port.powerManagement, size: PowerManagement.size)
    ports.attach(ResetRegister { control.reboot() }, at: GuestMap.Port.reset, size: 1)

    let memoryMapped = Bus()
    let window = ConfigurationWindow(memoryMapped)
    let firmware = configuration.firmware.map { _ in
      Firmware.configuration(
        memory, processors: configuration.processors, pci: flash == nil ? .standard : .firmware(),
        diskSlots: PCISlots.firstSlot..<PCISlots.firstSlot + equipment.disks.count)
    }
    let pci = PCIRoot(
      memory: memoryMapped, ports: ports,
      windows: PCIWindows(
        memory: flash == nil ? GuestMap.pciMemory : PCIMap.firmware().memory,
        ports: GuestMap.Port.pci),
      lines: GuestMap.Interrupt.pci.map(line),
      chipset: configuration.firmware.map { $0.isUEFI ? .q35 : .i440FX } ?? .generic,
      configurationMoved: { root, base in
        window.move(root, to: base)
        guard let base else { return }
        firmware?.replace(
          FirmwareTables.files(
            memory, processors: configuration.processors, pci: .firmware(base: base)))
      })
    let address = PCIAddressPort()
    Self.attach(pci, address, ports: ports, memoryMapped: flash == nil ? memoryMapped : nil)
    loop = try EventLoop()
    let terminal = configuration.usesVirtioConsole ? TerminalPort(console) : nil
    input = terminal ?? serial
    hold = try MachineHold()
    slots = try PCISlots(
      equipment, pci, machine: machine, memory: memory, loop: loop, terminal: terminal, hold: hold)

    shutdownTime = configuration.shutdownTime
    self.pci = pci
    var devices: [any BusDevice] = [serial, clock, keyboard, power, address]
    if let firmware {
      ports.attach(
        firmware, at: GuestMap.Port.firmwareConfiguration, size: FirmwareConfiguration.size)
      devices.append(firmware)
      if log.logLevel <= .debug {
        let debug = DebugPort { log.debug("firmware: \($0)") }
        ports.attach(debug, at: GuestMap.Port.firmwareDebug, size: 1)
      }
    }
    if let flash {
      memoryMapped.attach(flash.device, at: flash.start, size: UInt64(flash.device.size))
      devices.append(flash.device)
    }
    self.devices = devices
    self.ports = ports
    self.memoryMapped = memoryMapped
    self.control = control
    self.console = console
    self.clockChanged = clockChanged
  }

  /// Attaches the access mechanisms of PCI configuration space.
  ///
  /// - Parameter memoryMapped: nil if firmware places it in memory.
  private static func attach(
    _ pci: PCIRoot, _ address: PCIAddressPort, ports: Bus, memoryMapped: Bus?
  ) {
    // The next port is the reset register.
    ports.attach(address, at: GuestMap.Port.pciAddress, size: 1)
    ports.attach(PCIDataPort(pci, address), at: GuestMap.Port.pciData, size: PCIDataPort.size)
    memoryMapped?.attach(
      PCIConfigurationMemory(pci), at: GuestMap.pciConfiguration.lowerBound,
      size: PCIConfigurationMemory.size)
  }

  /// Resets the devices. Call it while no CPU runs.
  func reset() {
    for device in devices { device.resetWithMachine() }
    pci.resetWithMachine()
  }

  /// The terminal was resized.
  func resizeTerminal(_ size: ConsoleDevice.Size) { slots.console?.resize(size) }

  /// The balloon's figures, for `--stats`.
  var balloonLines: [String] { slots.balloon?.figures.lines ?? [] }

  /// Whether no device processes requests from before a reset.
  var isIdle: Bool { !pci.isBusy }

  /// Starts the devices' threads. Call it before any guest code runs.
  func start() throws(Errno) { try slots.start() }

  /// Ends the devices' threads. Call it after the vCPUs' threads have ended.
  func stop() { slots.stop() }
}

/// An event file that several owners share.
final class SharedEvent: Sendable {
  let file: EventFile
  init() throws(Errno) { file = try EventFile() }
}

/// Configuration space in memory, at the address set by firmware.
private final class ConfigurationWindow: Sendable {
  private let bus: Bus
  private let place = Mutex<UInt64?>(nil)

  init(_ bus: Bus) { self.bus = bus }

  /// A range that overlaps other devices is not attached.
  func move(_ root: PCIRoot, to base: UInt64?) {
    place.withLock { place in
      if let place { bus.detach(at: place) }
      let space = PCIConfigurationMemory(root)
      let isThere = base.map { bus.attach(space, at: $0, size: PCIConfigurationMemory.size) }
      place = isThere == true ? base : nil
    }
  }
}
