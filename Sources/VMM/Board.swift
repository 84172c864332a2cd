// SPDX-License-Identifier: Apache-2.0
//
// The devices of the machine on their buses. What a device asks of the machine as a whole (power
// off, reset, exit) goes through `MachineControl`, because the devices exist before the machine.

import Devices
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

  init(machine: Machine, console: ConsoleWriter) throws(Errno) {
    let control = try MachineControl()
    let clockChanged = try SharedEvent()
    func line(_ number: UInt32) -> InterruptLine {
      { level in try? machine.setInterruptLine(number, level) }
    }
    serial = SerialPort(interrupt: line(GuestMap.Interrupt.serial)) { console.put($0) }
    clock = RealTimeClockDevice(
      interrupt: line(GuestMap.Interrupt.realTimeClock), now: { HostClock.realtime() },
      eventChanged: { clockChanged.file.signal() })

    var ports = Bus()
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

    self.ports = ports
    memoryMapped = Bus()
    self.control = control
    self.console = console
    self.clockChanged = clockChanged
  }
}

/// An event file that several owners share.
final class SharedEvent: Sendable {
  let file: EventFile
  init() throws(Errno) { file = try EventFile() }
}
