// SPDX-License-Identifier: Apache-2.0
//
// Bus 0: its slots' devices, and their ranges on the machine's buses. A write to a configuration
// space may move, show or hide ranges; the root then updates the buses. A range outside the windows
// or over another device is not shown until it can be.
//
// The slots' interrupt pins share a few lines. A line is asserted while any pin on it is.

import Synchronization

/// A function for a slot. Any vCPU may call it at any time.
package protocol PCIDevice: AnyObject, Sendable {
  /// Reads 1, 2 or 4 bytes of configuration space.
  func readConfiguration(_ offset: Int, width: Int) -> UInt32
  /// Writes 1, 2 or 4 bytes of configuration space.
  func writeConfiguration(_ offset: Int, width: Int, value: UInt32)
  /// Its current ranges.
  var ranges: [PCIRange] { get }
  /// Reads from one of its ranges.
  func read(range: Int, offset: UInt64, width: Int) -> UInt64
  /// Writes to one of its ranges.
  func write(range: Int, offset: UInt64, width: Int, value: UInt64)
  /// Resets the machine, while no CPU runs: restores the function's power-on state.
  func resetWithMachine()
  /// Whether requests from before a reset still access guest memory.
  var isBusy: Bool { get }
}

/// Where functions' ranges may be.
package struct PCIWindows: Sendable {
  package let memory: Range<UInt64>
  package let ports: Range<UInt64>
  package init(memory: Range<UInt64>, ports: Range<UInt64>) {
    self.memory = memory
    self.ports = ports
  }
}

/// The identity of the host bridge. Operating systems do not care, but firmware has drivers.
package enum PCIChipset: Sendable {
  case generic
  /// Intel's 82441FX, as far as QEMU's firmware uses it. Its registers that protect the memory
  /// below 1 MiB are writable without effect: all of it is RAM.
  case i440FX
  /// Intel's Q35 with the LPC bridge of its ICH9, as far as QEMU's firmware uses it. Firmware
  /// places configuration space in memory; the ACPI block is fixed.
  case q35

  /// The slot of the bridge to devices without a bus: the last one.
  package static let bridgeSlot = PCIRoot.slotCount - 1

  fileprivate var hostBridge: PCIConfiguration {
    switch self {
    case .generic:
      return PCIConfiguration(PCIIdentity(vendor: 0x1B36, device: 0x0008, classCode: 0x060000))
    case .i440FX:
      var space = PCIConfiguration(
        PCIIdentity(
          vendor: 0x8086, device: 0x1237, classCode: 0x060000, revision: 2, subsystem: 0x1100,
          subsystemVendor: 0x1AF4))
      space.addRegisters(at: 0x59, count: 7)
      return space
    case .q35:
      var space = PCIConfiguration(
        PCIIdentity(
          vendor: 0x8086, device: 0x29C0, classCode: 0x060000, subsystem: 0x1100,
          subsystemVendor: 0x1AF4))
      space.addRegisters(at: Q35.hostRegisters.lowerBound, count: Q35.hostRegisters.count)
      return space
    }
  }

  /// The bridge to devices without a bus, which firmware needs to find the serial port.
  fileprivate var lowPinCountBridge: PCIConfiguration? {
    guard self == .q35 else { return nil }
    var space = PCIConfiguration(
      PCIIdentity(
        vendor: 0x8086, device: 0x2918, classCode: 0x060100, revision: 2, subsystem: 0x1100,
        subsystemVendor: 0x1AF4))
    space.set(Q35.powerManagementBase, 4, Q35.powerManagementPort | 1)
    space.set(Q35.powerManagementControl, 1, Q35.powerManagementEnable)
    for registers in Q35.bridgeRegisters {
      space.addRegisters(at: registers.lowerBound, count: registers.count)
    }
    return space
  }

  /// The address of configuration space set by firmware; nil if it is not set.
  fileprivate func configurationBase(_ bridge: any PCIDevice) -> UInt64? {
    guard self == .q35 else { return nil }
    let low = bridge.readConfiguration(Q35.configurationBase, width: 4)
    let high = bridge.readConfiguration(Q35.configurationBase + 4, width: 4)
    // Bit 0 enables it; its size of 64, 128 or 256 MiB equals its alignment.
    return low & 1 == 0 ? nil : UInt64(high) << 32 | UInt64(low & 0xFC00_0000)
  }

  /// Intel 3 Series Express Chipset Family and ICH9 datasheets, "Register Address Map".
  private enum Q35 {
    /// Address of configuration space, memory protection below 1 MiB, SMRAM.
    static let hostRegisters = 0x50..<0xA0
    static let configurationBase = 0x60
    static let powerManagementBase = 0x40
    static let powerManagementPort: UInt32 = 0x600
    static let powerManagementControl = 0x44
    static let powerManagementEnable: UInt32 = 0x80
    /// Interrupt routes and decoded ranges; the root complex's base.
    static let bridgeRegisters = [0x60..<0x64, 0x68..<0x6C, 0x80..<0x90, 0xF0..<0xF4]
  }
}

package final class PCIRoot: Sendable {
  package static let slotCount = 32

  private struct State {
    var devices = [(any PCIDevice)?](repeating: nil, count: PCIRoot.slotCount)
    /// Ranges on the buses, by slot.
    var shown = [[PCIRange]](repeating: [], count: PCIRoot.slotCount)
    /// Whether some range is waiting for space.
    var isCrowded = false
    var configurationBase: UInt64?
  }

  private let memory: Bus
  private let ports: Bus
  private let windows: PCIWindows
  private let lines: [SharedInterruptLine]
  private let state = Mutex(State())
  private let chipset: PCIChipset
  private let configurationMoved: ConfigurationMoved

  /// Called when firmware has placed or removed configuration space in memory.
  package typealias ConfigurationMoved =
    @Sendable (_ root: PCIRoot, _ base: UInt64?) -> Void

  /// - Parameter lines: interrupt lines: a slot's INTA# goes to the line of its number,
  ///   modulo their count.
  package init(
    memory: Bus, ports: Bus, windows: PCIWindows, lines: [InterruptLine],
    chipset: PCIChipset = .generic,
    configurationMoved: @escaping ConfigurationMoved = { _, _ in }
  ) {
    self.chipset = chipset
    self.configurationMoved = configurationMoved
    self.memory = memory
    self.ports = ports
    self.windows = windows
    self.lines = lines.map(SharedInterruptLine.init)
    state.withLock { state in
      state.devices[0] = PlainFunction(chipset.hostBridge)
      if let bridge = chipset.lowPinCountBridge {
        state.devices[PCIChipset.bridgeSlot] = PlainFunction(bridge)
      }
    }
  }

  /// The wire of a slot's INTA#.
  package func interruptLine(slot: Int) -> InterruptLine {
    lines[slot % lines.count].makeInput()
  }

  /// Puts a device into a free slot.
  package func insert(_ device: any PCIDevice, slot: Int) {
    state.withLock { state in
      state.devices[slot] = device
      show(slot, &state)
    }
  }

  /// Removes a device and its ranges.
  package func remove(slot: Int) {
    state.withLock { state in
      state.devices[slot] = nil
      show(slot, &state)
    }
  }

  /// Resets all functions and removes their ranges.
  package func resetWithMachine() {
    state.withLock { state in
      for slot in state.devices.indices {
        state.devices[slot]?.resetWithMachine()
        show(slot, &state)
      }
    }
    placeConfiguration()
  }

  /// Applies the chipset's register that places configuration space.
  private func placeConfiguration() {
    let moved: UInt64?? = state.withLock { state in
      guard let bridge = state.devices[0] else { return nil }
      let (old, new) = (state.configurationBase, chipset.configurationBase(bridge))
      state.configurationBase = new
      return old == new ? nil : .some(new)
    }
    if let base = moved { configurationMoved(self, base) }
  }

  /// Whether a function still processes requests from before a reset.
  package var isBusy: Bool {
    state.withLock { $0.devices.contains { $0?.isBusy == true } }
  }

  /// Reads configuration space; all ones if there is no function.
  package func read(_ function: PCIAddress, _ offset: Int, width: Int) -> UInt32 {
    device(function)?.readConfiguration(offset, width: width) ?? .max
  }

  /// Writes configuration space.
  package func write(_ function: PCIAddress, _ offset: Int, width: Int, value: UInt32) {
    guard let device = device(function) else { return }
    device.writeConfiguration(offset, width: width, value: value)
    state.withLock { show(function.slot, &$0) }
    if function.slot == 0 { placeConfiguration() }
  }

  private func device(_ function: PCIAddress) -> (any PCIDevice)? {
    guard function.bus == 0, function.function == 0 else { return nil }
    return state.withLock { $0.devices[function.slot] }
  }

  // MARK: Ranges on the buses

  /// Updates the buses for a slot's device.
  private func show(_ slot: Int, _ state: inout State) {
    let wanted = state.devices[slot]?.ranges ?? []
    guard wanted != state.shown[slot] else { return }
    let gone = state.shown[slot].filter { !wanted.contains($0) }
    for range in gone { bus(range).detach(at: range.start) }
    state.shown[slot].removeAll { gone.contains($0) }
    // Removed ranges may have made room for others.
    if state.isCrowded && !gone.isEmpty {
      state.isCrowded = false
      for other in state.devices.indices { add(other, &state) }
    } else {
      add(slot, &state)
    }
  }

  private func add(_ slot: Int, _ state: inout State) {
    guard let device = state.devices[slot] else { return }
    for range in device.ranges where !state.shown[slot].contains(range) {
      let answer = RangeOnBus(device: device, range: range.register)
      if fits(range), bus(range).attach(answer, at: range.start, size: range.size) {
        state.shown[slot].append(range)
      } else {
        state.isCrowded = true
      }
    }
  }

  private func bus(_ range: PCIRange) -> Bus { range.isPorts ? ports : memory }

  private func fits(_ range: PCIRange) -> Bool {
    let window = range.isPorts ? windows.ports : windows.memory
    let (end, overflow) = range.start.addingReportingOverflow(range.size)
    return !overflow && range.start >= window.lowerBound && end <= window.upperBound
  }
}

/// A device's range on the bus.
private final class RangeOnBus: BusDevice {
  private let device: any PCIDevice
  private let range: Int

  init(device: any PCIDevice, range: Int) {
    self.device = device
    self.range = range
  }

  func read(offset: UInt64, width: Int) -> UInt64 {
    device.read(range: range, offset: offset, width: width)
  }

  func write(offset: UInt64, width: Int, value: UInt64) {
    device.write(range: range, offset: offset, width: width, value: value)
  }
}

/// A chipset function without ranges, such as 00:00.0, the processor's bridge to the bus: only a
/// configuration space.
private final class PlainFunction: PCIDevice {
  private let initialSpace: PCIConfiguration
  private let space: Mutex<PCIConfiguration>

  init(_ initial: PCIConfiguration) {
    initialSpace = initial
    space = Mutex(initial)
  }

  func readConfiguration(_ offset: Int, width: Int) -> UInt32 {
    space.withLock { $0.read(offset, width: width) }
  }

  func writeConfiguration(_ offset: Int, width: Int, value: UInt32) {
    space.withLock { $0.write(offset, width: width, value: value) }
  }

  func resetWithMachine() { space.withLock { $0 = initialSpace } }
  var isBusy: Bool { false }
  var ranges: [PCIRange] { [] }
  func read(range: Int, offset: UInt64, width: Int) -> UInt64 { .max }
  func write(range: Int, offset: UInt64, width: Int, value: UInt64) {}
}

/// A line shared by several pins.
private final class SharedInterruptLine: Sendable {
  private let line: InterruptLine
  private let raised = Mutex(Set<Int>())
  private let inputs = Atomic<Int>(0)

  init(_ line: @escaping InterruptLine) { self.line = line }

  func makeInput() -> InterruptLine {
    let number = inputs.add(1, ordering: .relaxed).newValue
    return { [self] level in
      raised.withLock { raised in
        let before = raised.isEmpty
        if level { raised.insert(number) } else { raised.remove(number) }
        if raised.isEmpty != before { line(!raised.isEmpty) }
      }
    }
  }
}
