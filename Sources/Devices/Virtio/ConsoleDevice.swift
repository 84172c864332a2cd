// SPDX-License-Identifier: Apache-2.0
//
// A console with several ports (virtio 1.2, "Console Device"). Port 0 is a console, hvc0 in Linux;
// others are byte streams with names. All work is done in the event loop's thread. Bytes for a full
// host side stay in the guest's queue, and bytes for a guest without buffers stay at the host side,
// so neither grows.

import GuestMemory
import Host
import Synchronization
import SystemPackage

/// The host side of a port. Called in the event loop's thread.
package protocol ConsoleBackend: AnyObject, Sendable {
  /// Whether the host side is connected.
  var isOpen: Bool { get }
  /// Whether it accepts more of the guest's bytes. If not, it calls the device's `wake` later.
  var hasRoom: Bool { get }
  /// Whether there are bytes for the guest.
  var hasInput: Bool { get }
  /// Takes the guest's bytes.
  func put(_ bytes: [UInt8])
  /// Returns bytes for the guest: all available ones, at most `limit`.
  func take(_ limit: Int) -> [UInt8]
}

package final class ConsoleDevice: VirtioDevice {
  package struct Port: Sendable {
    package let name: String
    package let backend: any ConsoleBackend
    package init(name: String, backend: any ConsoleBackend) {
      self.name = name
      self.backend = backend
    }
  }

  /// A terminal's size.
  package struct Size: Sendable, Hashable {
    package var columns: UInt16
    package var rows: UInt16
    package init(columns: UInt16, rows: UInt16) { (self.columns, self.rows) = (columns, rows) }
  }

  /// Two queues for each port; the control queues follow port 0's.
  package static func queueSizes(ports: Int) -> [UInt16] {
    [UInt16](repeating: 64, count: 2 * (ports + 1))
  }
  package static let maximumPorts = 15

  private enum Feature {
    static let size: UInt64 = 1 << 0
    static let multiplePorts: UInt64 = 1 << 1
  }

  /// Events of control messages.
  private enum Event {
    static let deviceReady: UInt16 = 0
    static let portAdd: UInt16 = 1
    static let portReady: UInt16 = 3
    static let consolePort: UInt16 = 4
    static let resize: UInt16 = 5
    static let portOpen: UInt16 = 6
    static let portName: UInt16 = 7
  }

  private struct PortState {
    /// The driver has reported the port ready.
    var isReady = false
    /// Whether the driver was told that the host side is open.
    var toldOpen = false
  }

  private struct State {
    var hasPorts = false
    var ports: [PortState]
    /// Control messages that wait for buffers.
    var messages: [[UInt8]] = []
    var size: Size
  }

  private static let controlQueue = 2
  private static let messageSize = 8
  /// Limit of our pending messages, beyond which the driver's are not read.
  private static let messageLimit = 64
  /// Bytes of a request, and requests of a port before other handlers of the event loop get a turn.
  private static let requestLimit = 1 << 20
  private static let turn = 16

  package let type = VirtioDeviceType.console
  package let connection: VirtioConnection
  private let ports: [Port]
  private let bell: Doorbell
  private let state: Mutex<State>
  private let isActive = Atomic<Bool>(false)

  /// - Parameters:
  ///   - ports: 1 to `maximumPorts`; the first is the console.
  ///   - size: the console's size.
  package init(
    _ connection: VirtioConnection, ports: [Port], size: Size, loop: EventLoop
  ) throws(Errno) {
    self.connection = connection
    self.ports = ports
    bell = try Doorbell()
    state = Mutex(State(ports: ports.map { _ in PortState() }, size: size))
    try bell.answer(in: loop) { [weak self] in self?.serve() }
  }

  package var features: UInt64 { Feature.size | Feature.multiplePorts }

  /// Columns, rows, number of ports, and an emergency write register that is not offered.
  package var configuration: [UInt8] {
    let size = state.withLock { $0.size }
    var bytes: [UInt8] = []
    bytes.append(little: size.columns)
    bytes.append(little: size.rows)
    bytes.append(little: UInt32(truncatingIfNeeded: ports.count))
    bytes.append(little: UInt32(0))
    return bytes
  }

  package func activate(features: UInt64) {
    state.withLock { state in
      state.hasPorts = features & Feature.multiplePorts != 0
      state.ports = ports.map { _ in PortState() }
      state.messages = []
    }
    isActive.store(true, ordering: .releasing)
    bell.ring()
  }

  package func notify(queue: Int) { bell.ring() }

  /// Call it when the host side has bytes, has room, connects or disconnects.
  package func wake() { bell.ring() }

  /// The terminal has a new size.
  package func resize(_ size: Size) {
    let isNew = state.withLock { state in
      defer { state.size = size }
      if state.size == size { return false }
      if state.hasPorts, state.ports[0].isReady {
        Self.send(Event.resize, port: 0, value: 0, &state, Self.body(of: size))
      }
      return true
    }
    guard isNew, isActive.load(ordering: .acquiring) else { return }
    connection.interrupts.configurationChanged()
    bell.ring()
  }

  private static func body(of size: Size) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(little: size.columns)
    bytes.append(little: size.rows)
    return bytes
  }

  // MARK: In the event loop's thread

  private func serve() {
    guard isActive.load(ordering: .acquiring) else { return }
    state.withLock { state in
      var isDone = true
      if state.hasPorts {
        isDone = readControl(&state)
        tellOpen(&state)
        writeControl(&state)
      }
      for number in ports.indices where state.hasPorts || number == 0 {
        if !transmit(number) { isDone = false }
        if !receive(number, isReady: !state.hasPorts || state.ports[number].isReady) {
          isDone = false
        }
      }
      if !isDone { bell.ring() }
    }
  }

  /// A port's queues, named from the guest's view.
  private func queues(_ port: Int) -> (receive: VirtioQueue, transmit: VirtioQueue) {
    let first = port == 0 ? 0 : Self.controlQueue &+ 2 &* port
    return (connection.queues[first], connection.queues[first &+ 1])
  }

  /// Takes the guest's bytes; true when nothing more can be taken now.
  private func transmit(_ port: Int) -> Bool {
    let (backend, queue) = (ports[port].backend, queues(port).transmit)
    for _ in 0..<Self.turn {
      guard backend.hasRoom, let request = queue.pop() else { return true }
      let count = request.readable.count
      guard count <= Self.requestLimit, let bytes = request.readable.bytes(count: count) else {
        queue.fail(request, .badRequest("port \(port): \(count) bytes at once"))
        return true
      }
      // The host side is not connected: the bytes are lost.
      if backend.isOpen { backend.put(bytes) }
      queue.complete(request, written: 0)
    }
    return false
  }

  /// Passes received bytes to the guest; true when there are none left, or no buffers.
  private func receive(_ port: Int, isReady: Bool) -> Bool {
    guard isReady else { return true }
    let (backend, queue) = (ports[port].backend, queues(port).receive)
    for _ in 0..<Self.turn {
      guard backend.hasInput, case .requests(let requests) = queue.gather(bytes: 1, limit: 1),
        let request = requests.first
      else { return true }
      let bytes = backend.take(min(request.writable.count, Self.requestLimit))
      let count = request.writable.write(bytes.bytes)
      queue.complete(request, written: UInt32(truncatingIfNeeded: count))
    }
    return false
  }
}

// MARK: - Control messages

extension ConsoleDevice {
  private static func send(
    _ event: UInt16, port: Int, value: UInt16, _ state: inout State, _ body: [UInt8] = []
  ) {
    var message: [UInt8] = []
    message.append(little: UInt32(truncatingIfNeeded: port))
    message.append(little: event)
    message.append(little: value)
    state.messages.append(message + body)
  }

  /// Reads the driver's messages; true when no more can be read now.
  private func readControl(_ state: inout State) -> Bool {
    let queue = connection.queues[Self.controlQueue &+ 1]
    for _ in 0..<Self.turn {
      guard state.messages.count < Self.messageLimit, let request = queue.pop() else { return true }
      guard let bytes = request.readable.bytes(count: Self.messageSize),
        let port = bytes.load(UInt32.self, at: 0), let event = bytes.load(UInt16.self, at: 4),
        let value = bytes.load(UInt16.self, at: 6)
      else {
        queue.fail(request, .badRequest("a control message of \(request.readable.count) bytes"))
        return true
      }
      queue.complete(request, written: 0)
      take(event, Int(truncatingIfNeeded: port), value, &state)
    }
    return false
  }

  private func take(_ event: UInt16, _ port: Int, _ value: UInt16, _ state: inout State) {
    switch event {
    case Event.deviceReady where value == 1:
      for port in ports.indices { Self.send(Event.portAdd, port: port, value: 1, &state) }
    case Event.portReady where value == 1 && ports.indices.contains(port):
      introduce(port, &state)
    default: break
    }
  }

  /// Describes a port, once.
  private func introduce(_ port: Int, _ state: inout State) {
    guard !state.ports[port].isReady else { return }
    state.ports[port].isReady = true
    let size = state.size
    if port == 0 {
      Self.send(Event.consolePort, port: 0, value: 1, &state)
      Self.send(Event.resize, port: 0, value: 0, &state, Self.body(of: size))
    } else {
      Self.send(Event.portName, port: port, value: 1, &state, Array(ports[port].name.utf8) + [0])
    }
  }

  /// Reports ports whose host side has connected or disconnected.
  private func tellOpen(_ state: inout State) {
    for (number, port) in ports.enumerated() where state.ports[number].isReady {
      let isOpen = port.backend.isOpen
      guard isOpen != state.ports[number].toldOpen else { continue }
      state.ports[number].toldOpen = isOpen
      Self.send(Event.portOpen, port: number, value: isOpen ? 1 : 0, &state)
    }
  }

  private func writeControl(_ state: inout State) {
    let queue = connection.queues[Self.controlQueue]
    while let message = state.messages.first {
      switch queue.gather(bytes: message.count, limit: 1) {
      case .requests(let requests):
        guard let request = requests.first else { return }
        let count = request.writable.write(message.bytes)
        queue.complete(request, written: UInt32(truncatingIfNeeded: count))
      case .wait: return
      case .tooSmall: break
      }
      state.messages.removeFirst()
    }
  }
}
