// SPDX-License-Identifier: Apache-2.0
//
// Stream sockets between guest and host (virtio 1.2, "Socket Device"). The host's end of a
// connection is a stream socket, which a backend provides. The event loop's thread does all work.
//
// The number of connections and the data buffered for each (`VsockConnection`) are limited. Resets
// wait in a list for buffers; while it is long, the device reads no packets.

import GuestMemory
import Host
import Synchronization
import SystemPackage

/// Connects to sockets of the host. Called in the event loop's thread.
package protocol VsockBackend: AnyObject, Sendable {
  /// Connects to the listener for a port of the host; later calls `VsockDevice.connected`.
  ///
  /// - Returns: false if it cannot; then it does not call `connected`.
  func connect(port: UInt32, number: UInt64) -> Bool
}

package final class VsockDevice: VirtioDevice {
  package static let queueSizes: [UInt16] = [128, 128, 16]
  /// The host's address, and the lowest for a guest.
  package static let hostAddress: UInt64 = 2
  package static let firstGuestAddress: UInt32 = 3
  /// Connections at a time.
  package static let connectionLimit = 256

  /// Length of the list of resets from which on the device reads no packets.
  private static let refusalLimit = 128
  /// Packets in each direction per turn of the event loop.
  private static let turn = 64
  /// First host port of connections from host clients.
  private static let firstPort: UInt32 = 1 << 30
  private static let streamFeature: UInt64 = 1 << 0

  private struct State {
    var connections: [UInt64: VsockConnection] = [:]
    /// Connections that the guest knows.
    var numbers: [VsockPorts: UInt64] = [:]
    var nextNumber: UInt64 = 0
    var nextPort = VsockDevice.firstPort
    /// Connections with packets for the guest, the next first.
    var queue: [UInt64] = []
    var refusals: [VsockHeader] = []
  }

  package let type = VirtioDeviceType.socket
  package let connection: VirtioConnection
  private let address: UInt64
  private let backend: any VsockBackend
  private let loop: EventLoop
  private let bell: Doorbell
  private let state = Mutex(State())
  private let isActive = Atomic<Bool>(false)
  private let hasReset = Atomic<Bool>(false)

  private var receiveQueue: VirtioQueue { connection.queues[0] }
  private var transmitQueue: VirtioQueue { connection.queues[1] }

  /// - Parameter address: the guest's.
  package init(
    _ connection: VirtioConnection, address: UInt32, backend: any VsockBackend, loop: EventLoop
  ) throws(Errno) {
    self.connection = connection
    self.address = UInt64(address)
    self.backend = backend
    self.loop = loop
    bell = try Doorbell()
    try bell.answer(in: loop) { [weak self] in self?.serve() }
  }

  package var features: UInt64 { Self.streamFeature }

  package var configuration: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(little: address)
    return bytes
  }

  package func activate(features: UInt64) {
    isActive.store(true, ordering: .releasing)
    bell.ring()
  }

  package func notify(queue: Int) { bell.ring() }

  package func reset() {
    isActive.store(false, ordering: .releasing)
    hasReset.store(true, ordering: .releasing)
    bell.ring()
  }

  /// Closes all connections after a reset. A vCPU may not close descriptors of the event loop.
  private func forgetAll() {
    guard hasReset.exchange(false, ordering: .acquiringAndReleasing) else { return }
    state.withLock { state in
      for connection in Array(state.connections.values) { remove(connection, &state) }
      state.refusals = []
    }
  }

  // MARK: The host's side, in the event loop's thread

  /// Connects a host client to a port of the guest. The client gets a line with its host port once
  /// the guest accepts. The socket is closed if there are too many connections.
  package func offer(port: UInt32, socket: consuming OwnedFileDescriptor) {
    forgetAll()
    guard isActive.load(ordering: .acquiring) else { return }
    // An optional, because a closure cannot consume a capture.
    var socket: OwnedFileDescriptor? = consume socket
    state.withLock { state in
      guard state.connections.count < Self.connectionLimit else { return }
      var ports = VsockPorts(host: state.nextPort, guest: port)
      while state.numbers[ports] != nil {
        state.nextPort = state.nextPort &+ 1 | Self.firstPort
        ports = VsockPorts(host: state.nextPort, guest: port)
      }
      state.nextPort = state.nextPort &+ 1 | Self.firstPort
      let connection = add(ports, .offered, &state)
      connection.socket = socket.take()
      connection.replies.insert(.request)
      settle(connection, &state)
    }
    bell.ring()
  }

  /// The answer to `VsockBackend.connect`.
  ///
  /// - Parameter socket: nonblocking; nil if nobody listens.
  package func connected(_ number: UInt64, _ socket: consuming OwnedFileDescriptor?) {
    forgetAll()
    var socket = consume socket
    state.withLock { state in
      // The guest may have closed it meanwhile.
      guard let connection = state.connections[number], connection.stage == .connecting else {
        return
      }
      connection.socket = socket.take()
      guard connection.socket != nil else { return refuse(connection, &state) }
      connection.stage = .open
      connection.replies.insert(.response)
      connection.fill()
      settle(connection, &state)
    }
    bell.ring()
  }

  private func add(
    _ ports: VsockPorts, _ stage: VsockConnection.Stage, _ state: inout State
  ) -> VsockConnection {
    state.nextNumber &+= 1
    let connection = VsockConnection(number: state.nextNumber, ports, stage)
    state.connections[connection.number] = connection
    state.numbers[ports] = connection.number
    return connection
  }

  /// Removes a connection and closes its socket.
  private func remove(_ connection: VsockConnection, _ state: inout State) {
    forgetPorts(connection, &state)
    if let source = connection.source { loop.remove(source) }
    connection.source = nil
    state.connections[connection.number] = nil
  }

  /// The guest no longer knows the connection.
  private func forgetPorts(_ connection: VsockConnection, _ state: inout State) {
    if state.numbers[connection.ports] == connection.number {
      state.numbers[connection.ports] = nil
    }
    if connection.isQueued { state.queue.removeAll { $0 == connection.number } }
    connection.isQueued = false
  }

  /// Resets a connection.
  private func refuse(_ connection: VsockConnection, _ state: inout State) {
    if connection.stage != .offered || connection.hasAsked {
      state.refusals.append(header(connection.ports, VsockHeader.Operation.reset))
    }
    remove(connection, &state)
  }

  private func header(_ ports: VsockPorts, _ operation: UInt16) -> VsockHeader {
    VsockHeader(
      source: Self.hostAddress, destination: address, sourcePort: ports.host,
      destinationPort: ports.guest, operation: operation)
  }

  /// Handles an event of a connection's socket.
  private func wake(_ number: UInt64, _ readiness: Poller.Readiness) {
    state.withLock { state in
      guard let connection = state.connections[number] else { return }
      if !readiness.isDisjoint(with: [.hangUp, .error]) {
        guard connection.stage == .open else { return refuseOrRemove(connection, &state) }
        // Otherwise the event would repeat without end.
        if let source = connection.source { loop.remove(source) }
        connection.source = nil
        connection.noteCut()
      } else if readiness.contains(.writable) {
        connection.flush()
      }
      connection.fill()
      settle(connection, &state)
    }
    serve()
  }

  private func refuseOrRemove(_ connection: VsockConnection, _ state: inout State) {
    if connection.stage == .draining {
      remove(connection, &state)
    } else {
      refuse(connection, &state)
    }
  }

  /// Updates what depends on a connection's state: its place in the queue, the events to wait for,
  /// its end.
  private func settle(_ connection: VsockConnection, _ state: inout State) {
    if connection.isCut { connection.fill() }
    connection.closeHalf()
    if connection.stage == .draining, connection.isFlushed { return remove(connection, &state) }
    if connection.hasPacket, connection.stage != .draining, !connection.isQueued {
      connection.isQueued = true
      state.queue.append(connection.number)
    }
    guard let raw = connection.socket?.rawValue, !connection.isCut else { return }
    let (wanted, number) = (connection.wanted, connection.number)
    if let source = connection.source {
      if wanted != connection.interest { try? loop.change(source, interest: wanted) }
    } else {
      connection.source = try? loop.add(raw, interest: wanted) { [weak self] readiness in
        self?.wake(number, readiness)
      }
      if connection.source == nil { return refuseOrRemove(connection, &state) }
    }
    connection.interest = wanted
  }

  // MARK: The guest's side, in the event loop's thread

  private func serve() {
    forgetAll()
    guard isActive.load(ordering: .acquiring) else { return }
    state.withLock { state in
      let hasSent = transmit(&state)
      let hasReceived = receive(&state)
      // While resets wait for buffers, the guest's next notification continues the work.
      let isHeld = state.refusals.count >= Self.refusalLimit
      if !hasReceived || !hasSent && !isHeld { bell.ring() }
    }
  }

  /// Processes packets from the guest; true if none is left.
  private func transmit(_ state: inout State) -> Bool {
    for _ in 0..<Self.turn {
      guard state.refusals.count < Self.refusalLimit else { return false }
      guard let request = transmitQueue.pop() else { return true }
      guard let bytes = request.readable.bytes(count: VsockHeader.size),
        let header = VsockHeader(bytes)
      else {
        transmitQueue.fail(request, .badRequest("a packet of \(request.readable.count) bytes"))
        return true
      }
      take(header, request.readable.slice(from: VsockHeader.size), &state)
      transmitQueue.complete(request, written: 0)
    }
    return false
  }

  private func take(_ header: VsockHeader, _ data: GuestBuffers, _ state: inout State) {
    typealias Operation = VsockHeader.Operation
    // A reset would go to a wrong address.
    guard header.source == address else { return }
    guard header.destination == Self.hostAddress, header.type == VsockHeader.stream else {
      return refuse(header, &state)
    }
    let ports = VsockPorts(host: header.destinationPort, guest: header.sourcePort)
    guard let connection = state.numbers[ports].flatMap({ state.connections[$0] }) else {
      if header.operation == Operation.request { return open(ports, header, &state) }
      return refuse(header, &state)
    }
    connection.noteCredit(header)
    guard answer(header, data, connection, &state) else { return refuse(connection, &state) }
    if state.connections[connection.number] != nil { settle(connection, &state) }
  }

  private func refuse(_ header: VsockHeader, _ state: inout State) {
    if header.operation != VsockHeader.Operation.reset { state.refusals.append(header.refusal) }
  }

  /// The guest asks for a connection.
  private func open(_ ports: VsockPorts, _ header: VsockHeader, _ state: inout State) {
    guard state.connections.count < Self.connectionLimit else { return refuse(header, &state) }
    let connection = add(ports, .connecting, &state)
    connection.noteCredit(header)
    if !backend.connect(port: ports.host, number: connection.number) { refuse(connection, &state) }
  }

  /// Processes a packet of a connection; false if it is not valid in the connection's state.
  private func answer(
    _ header: VsockHeader, _ data: GuestBuffers, _ connection: VsockConnection,
    _ state: inout State
  ) -> Bool {
    typealias Operation = VsockHeader.Operation
    switch (header.operation, connection.stage) {
    case (Operation.reset, _):
      remove(connection, &state)
    case (Operation.response, .offered) where connection.hasAsked:
      return connection.accept()
    case (Operation.data, .open):
      let count = Int(header.length)
      return data.count >= count && connection.accept(data.slice(from: 0, count: count))
    case (Operation.shutdown, .open):
      connection.noteShutdown(header.flags)
      if connection.guestShutdown == VsockHeader.Shutdown.both { finish(connection, &state) }
    case (Operation.creditUpdate, .open): break
    case (Operation.creditRequest, .open): connection.replies.insert(.credit)
    default: return false
    }
    return true
  }

  /// The guest has closed a connection: confirms that at once, and keeps sending buffered data to
  /// the host.
  private func finish(_ connection: VsockConnection, _ state: inout State) {
    state.refusals.append(header(connection.ports, VsockHeader.Operation.reset))
    forgetPorts(connection, &state)
    connection.stage = .draining
  }

  /// Sends packets to the guest; true if none is left, or no buffer.
  private func receive(_ state: inout State) -> Bool {
    for _ in 0..<Self.turn {
      guard !state.refusals.isEmpty || !state.queue.isEmpty else { return true }
      guard let request = nextBuffer() else { return true }
      if !state.refusals.isEmpty {
        give(state.refusals.removeFirst(), [], request)
        continue
      }
      let connection = state.connections[state.queue.removeFirst()]
      guard let connection else {
        receiveQueue.complete(request, written: 0)
        continue
      }
      connection.isQueued = false
      var packet = header(connection.ports, VsockHeader.Operation.creditUpdate)
      let data = connection.nextPacket(
        room: request.writable.count &- VsockHeader.size, &packet)
      give(packet, data, request)
      connection.fill()
      settle(connection, &state)
    }
    return false
  }

  /// A buffer with room for a header and some data.
  private func nextBuffer() -> VirtioRequest? {
    switch receiveQueue.gather(bytes: VsockHeader.size &+ 1, limit: 1) {
    case .requests(let requests): return requests.first
    case .wait: break
    case .tooSmall:
      if let request = receiveQueue.pop() {
        receiveQueue.fail(request, .badRequest("a buffer of \(request.writable.count) bytes"))
      }
    }
    return nil
  }

  private func give(_ header: VsockHeader, _ data: ArraySlice<UInt8>, _ request: VirtioRequest) {
    let bytes = header.bytes + data
    let count = request.writable.write(bytes.bytes)
    receiveQueue.complete(request, written: UInt32(truncatingIfNeeded: count))
  }
}
