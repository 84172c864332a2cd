// SPDX-License-Identifier: Apache-2.0
//
// Stream sockets between guest and host (virtio 1.2, "Socket Device"). The host's end of a
// connection is a stream socket of the host; who makes it is the backend's affair. All work is done
// in the event loop's thread.
//
// The number of connections is limited, and so is what each keeps (`VsockConnection`). Packets that
// refuse something wait in a list; while it is long, nothing more is read of what the guest sends.

import GuestMemory
import Host
import Synchronization
import SystemPackage

/// Makes connections to the host. Called in the event loop's thread.
package protocol VsockBackend: AnyObject, Sendable {
  /// Connects to whatever waits for a port of the host, and tells the device by
  /// `VsockDevice.connected`, after this has returned.
  ///
  /// - Returns: false where that cannot be done; then nothing is told.
  func connect(port: UInt32, number: UInt64) -> Bool
}

package final class VsockDevice: VirtioDevice {
  package static let queueSizes: [UInt16] = [128, 128, 16]
  /// The host's address, and the first that a guest can have.
  package static let hostAddress: UInt64 = 2
  package static let firstGuestAddress: UInt32 = 3
  /// Connections at a time.
  package static let connectionLimit = 256

  /// Refusals that wait for buffers until no more packets are read.
  private static let refusalLimit = 128
  /// Packets each way until others in the event loop have their turn.
  private static let turn = 64
  /// Ports of the host for connections that the host asks for.
  private static let firstPort: UInt32 = 1 << 30
  private static let streamFeature: UInt64 = 1 << 0

  private struct State {
    var connections: [UInt64: VsockConnection] = [:]
    /// Those that the guest knows of.
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

  /// After a reset the guest has forgotten all connections. A vCPU may not close what the event
  /// loop waits for.
  private func forgetAll() {
    guard hasReset.exchange(false, ordering: .acquiringAndReleasing) else { return }
    state.withLock { state in
      for connection in Array(state.connections.values) { remove(connection, &state) }
      state.refusals = []
    }
  }

  // MARK: The host's side, in the event loop's thread

  /// A client of the host wants to be connected to a port of the guest. When it is, it gets a line
  /// with the port that stands for it. A socket for which there is no place is closed.
  package func offer(port: UInt32, socket: consuming OwnedFileDescriptor) {
    forgetAll()
    guard isActive.load(ordering: .acquiring) else { return }
    // Made by way of an optional: a closure cannot consume what it captures.
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
  /// - Parameter socket: one that does not wait; nil where nobody listens.
  package func connected(_ number: UInt64, _ socket: consuming OwnedFileDescriptor?) {
    forgetAll()
    var socket = consume socket
    state.withLock { state in
      // It may be gone by now.
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

  /// Forgets a connection and closes its socket.
  private func remove(_ connection: VsockConnection, _ state: inout State) {
    forgetPorts(connection, &state)
    if let source = connection.source { loop.remove(source) }
    connection.source = nil
    state.connections[connection.number] = nil
  }

  /// The guest does not know of the connection any more.
  private func forgetPorts(_ connection: VsockConnection, _ state: inout State) {
    if state.numbers[connection.ports] == connection.number {
      state.numbers[connection.ports] = nil
    }
    if connection.isQueued { state.queue.removeAll { $0 == connection.number } }
    connection.isQueued = false
  }

  /// Ends a connection that the guest knows of.
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

  /// Something has happened to a connection's socket.
  private func wake(_ number: UInt64, _ readiness: Poller.Readiness) {
    state.withLock { state in
      guard let connection = state.connections[number] else { return }
      if !readiness.isDisjoint(with: [.hangUp, .error]) {
        guard connection.stage == .open else { return refuseOrRemove(connection, &state) }
        // This would be told again and again.
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

  /// What follows from a connection's state: packets for the guest, what its socket is waited for,
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
      // While refusals wait for buffers, the guest's next notification goes on with it.
      let isHeld = state.refusals.count >= Self.refusalLimit
      if !hasReceived || !hasSent && !isHeld { bell.ring() }
    }
  }

  /// Takes what the guest has sent; true where nothing is left.
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
    // A refusal would go to somebody else.
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

  /// Carries out what the guest says about a connection; false where that makes no sense.
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

  /// The guest has done with a connection. It is told at once that it can forget it; the host's
  /// side gets the rest.
  private func finish(_ connection: VsockConnection, _ state: inout State) {
    state.refusals.append(header(connection.ports, VsockHeader.Operation.reset))
    forgetPorts(connection, &state)
    connection.stage = .draining
  }

  /// Gives the guest what there is for it; true where there is nothing more, or no buffer.
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

  /// A buffer of the guest's with room for a header and some data.
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
