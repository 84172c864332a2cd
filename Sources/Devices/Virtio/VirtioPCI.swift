// SPDX-License-Identifier: Apache-2.0
//
// A virtio device as a PCI function (virtio 1.2, "Virtio Over PCI Bus"); no legacy interface. Range
// 0 has the registers; range 1 has MSI-X's table and pending bits. Capabilities describe where the
// parts are.
//
//     0x0000 common configuration     0x1000 ISR status
//     0x2000 device configuration     0x3000 notifications
//
// A reset must not complete before the device has released the driver's buffers, and the vCPU that
// requests it must not wait. So the queues are disabled at once, and the status becomes 0, which
// drivers wait for, when the last request is done.

import Host
import Synchronization

package final class VirtioPCI: PCIDevice {
  /// The PCI vendor of virtio; device IDs are `firstDevice` plus the type.
  package static let vendor: UInt16 = 0x1AF4
  package static let firstDevice: UInt16 = 0x1040

  enum Part {
    static let common: UInt64 = 0x0000
    static let interruptStatus: UInt64 = 0x1000
    static let device: UInt64 = 0x2000
    static let notifications: UInt64 = 0x3000
    static let size: UInt64 = 0x1000
    static let all: UInt64 = 0x4000
  }
  private enum RangeNumber {
    static let registers = 0
    static let messages = 1
  }
  /// Offset of the pending bits in range 1.
  private static let pendingBits: UInt64 = 0x800
  private static let messagesSize: UInt64 = 0x1000
  /// Distance between the queues' notification addresses.
  static let notifyMultiplier: UInt32 = 4

  /// The common configuration's registers and the function's configuration space.
  struct State {
    var space: PCIConfiguration
    /// Offsets of MSI-X's capability and of the configuration access capability.
    var messageCapability = 0
    var accessCapability = 0
    var common: CommonConfiguration
  }

  let device: any VirtioDevice
  let state: Mutex<State>
  /// Configuration space at power-on.
  private let initialSpace: PCIConfiguration

  package init(_ device: any VirtioDevice) {
    self.device = device
    let identity = PCIIdentity(
      vendor: Self.vendor, device: Self.firstDevice &+ device.type.rawValue,
      classCode: device.type.classCode, revision: 1, subsystem: device.type.rawValue &+ 0x40)
    let queues = device.connection.queues
    var state = State(
      space: PCIConfiguration(identity),
      common: CommonConfiguration(queueSizes: queues.map(\.maximumSize)))
    state.space.addRange(RangeNumber.registers, .memory32, size: Part.all)
    state.space.addRange(RangeNumber.messages, .memory32, size: Self.messagesSize)
    state.space.setInterruptPin(1)
    Self.addCapabilities(&state, vectors: device.connection.interrupts.vectorCount)
    initialSpace = state.space
    self.state = Mutex(state)
  }

  package func resetWithMachine() {
    state.withLock { state in
      reset(&state.common)
      state.space = initialSpace
    }
    interrupts.resetWithMachine()
  }

  package var isBusy: Bool { device.connection.queues.contains(where: \.isBusy) }

  var interrupts: VirtioInterrupts { device.connection.interrupts }

  // MARK: Capabilities

  /// Types of the vendor's capabilities ("Virtio Structure PCI Capabilities").
  private enum CapabilityType {
    static let common: UInt8 = 1
    static let notifications: UInt8 = 2
    static let interruptStatus: UInt8 = 3
    static let device: UInt8 = 4
    static let access: UInt8 = 5
  }
  private static let vendorCapability: UInt8 = 0x09

  private static func addCapabilities(_ state: inout State, vectors: Int) {
    func add(_ type: UInt8, _ offset: UInt64, _ size: UInt64, more: [UInt32] = []) {
      _ = state.space.addCapability(
        vendorCapability, body(type, UInt32(offset), UInt32(size), more))
    }
    add(CapabilityType.common, Part.common, UInt64(CommonConfiguration.size))
    add(
      CapabilityType.notifications, Part.notifications, Part.size,
      more: [Self.notifyMultiplier])
    add(CapabilityType.interruptStatus, Part.interruptStatus, 4)
    add(CapabilityType.device, Part.device, Part.size)
    // The driver may write bar, offset, length and data.
    state.accessCapability = state.space.addCapability(
      vendorCapability, body(CapabilityType.access, 0, 0, [0]),
      writable: [0, 0, 0xFF, 0, 0, 0] + [UInt8](repeating: 0xFF, count: 12))
    let size = UInt16(truncatingIfNeeded: vectors &- 1)
    let table = UInt32(RangeNumber.messages)
    var messages: [UInt8] = []
    messages.append(little: size)
    messages.append(little: table)
    messages.append(little: UInt32(Self.pendingBits) | table)
    state.messageCapability = state.space.addCapability(
      MSIXTable.capability, messages, writable: [0, 0xC0])
  }

  /// A capability's body after identifier and link: length, type, range, two bytes of padding,
  /// offset, length.
  private static func body(
    _ type: UInt8, _ offset: UInt32, _ size: UInt32, _ more: [UInt32]
  ) -> [UInt8] {
    var bytes = [UInt8(16 + more.count * 4), type, UInt8(RangeNumber.registers), 0, 0, 0]
    for value in [offset, size] + more { bytes.append(little: value) }
    return bytes
  }

  // MARK: Configuration space

  package var ranges: [PCIRange] { state.withLock { $0.space.ranges } }

  package func readConfiguration(_ offset: Int, width: Int) -> UInt32 {
    if let access = dataAccess(offset, width) {
      let value = read(range: access.range, offset: access.offset, width: access.width)
      return UInt32(truncatingIfNeeded: value)
    }
    let isPending = interrupts.hasInterruptPending
    return state.withLock { state in
      state.space.status =
        state.space.status & ~PCICommand.interruptPending
        | (isPending ? PCICommand.interruptPending : 0)
      return state.space.read(offset, width: width)
    }
  }

  package func writeConfiguration(_ offset: Int, width: Int, value: UInt32) {
    if let access = dataAccess(offset, width) {
      write(
        range: access.range, offset: access.offset, width: access.width, value: UInt64(value))
      return
    }
    state.withLock { state in
      state.space.write(offset, width: width, value: value)
      let control = state.space.get(state.messageCapability &+ 2, 2)
      interrupts.setControl(
        UInt16(truncatingIfNeeded: control),
        pinIsDisabled: state.space.command & PCICommand.interruptDisable != 0)
    }
  }

  /// An access to the data field of the "PCI configuration access capability".
  private func dataAccess(
    _ offset: Int, _ width: Int
  ) -> (range: Int, offset: UInt64, width: Int)? {
    state.withLock { state in
      let capability = state.accessCapability
      guard offset == capability &+ 16 else { return nil }
      let length = Int(state.space.get(capability &+ 12, 4))
      guard [1, 2, 4].contains(length), length == width else { return nil }
      let range = Int(state.space.get(capability &+ 4, 1))
      return (range, UInt64(state.space.get(capability &+ 8, 4)), length)
    }
  }

  // MARK: Ranges

  package func read(range: Int, offset: UInt64, width: Int) -> UInt64 {
    if range == RangeNumber.messages { return readMessages(offset, width) }
    guard range == RangeNumber.registers else { return .max }
    let inside = offset & (Part.size &- 1)
    switch offset & ~(Part.size &- 1) {
    case Part.common: return readCommon(inside, width)
    case Part.interruptStatus: return inside == 0 ? UInt64(interrupts.takeStatus()) : 0
    case Part.device:
      let bytes = device.configuration
      return (0..<UInt64(width)).reversed().reduce(0) { value, index in
        let place = Int(truncatingIfNeeded: inside &+ index)
        return value << 8 | UInt64(place < bytes.count ? bytes[place] : 0)
      }
    default: return 0
    }
  }

  package func write(range: Int, offset: UInt64, width: Int, value: UInt64) {
    if range == RangeNumber.messages { return writeMessages(offset, width, value) }
    guard range == RangeNumber.registers else { return }
    let inside = offset & (Part.size &- 1)
    switch offset & ~(Part.size &- 1) {
    case Part.common: writeCommon(inside, width, value)
    case Part.device:
      device.writeConfiguration(Int(truncatingIfNeeded: inside), width: width, value: value)
    case Part.notifications:
      let queue = Int(truncatingIfNeeded: inside / UInt64(Self.notifyMultiplier))
      if queue < device.connection.queues.count { device.notify(queue: queue) }
    default: break
    }
  }

  /// The table and the pending bits allow accesses of 4 and 8 bytes.
  private func readMessages(_ offset: UInt64, _ width: Int) -> UInt64 {
    func part(_ offset: UInt64) -> UInt64 {
      if offset >= Self.pendingBits {
        return UInt64(interrupts.readPending(offset &- Self.pendingBits))
      }
      return UInt64(interrupts.readTable(offset))
    }
    guard width >= 4, offset & 3 == 0 else { return .max }
    return width == 8 ? part(offset) | part(offset &+ 4) << 32 : part(offset)
  }

  private func writeMessages(_ offset: UInt64, _ width: Int, _ value: UInt64) {
    guard width >= 4, offset & 3 == 0, offset < Self.pendingBits else { return }
    interrupts.writeTable(offset, UInt32(truncatingIfNeeded: value))
    if width == 8 { interrupts.writeTable(offset &+ 4, UInt32(truncatingIfNeeded: value >> 32)) }
  }
}
