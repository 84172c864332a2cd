// SPDX-License-Identifier: Apache-2.0
//
// A network card (virtio 1.2, "Network Device") with one pair of queues and no offloads. The event
// loop's thread does all its work; a vCPU only rings the doorbell. Frames for a guest without
// buffers stay in the socket, and frames for a full socket stay in the guest's queue. So neither
// side loses frames or grows.

import GuestMemory
import Host
import Synchronization
import SystemPackage

/// A card's hardware address.
package struct MACAddress: Sendable, Hashable {
  package let bytes: [UInt8]

  /// Reads text such as "52:54:00:12:34:56"; nil if it is invalid or a group address.
  package init?(_ text: String) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    let bytes = parts.compactMap { $0.count == 2 ? UInt8($0, radix: 16) : nil }
    guard parts.count == 6, bytes.count == 6, bytes[0] & 1 == 0 else { return nil }
    self.bytes = bytes
  }
}

package final class NetworkDevice: VirtioDevice {
  package static let queueSizes: [UInt16] = [256, 256]
  /// The largest packet: passt's MTU.
  package static let mtu: UInt16 = 65_520
  private static let headerSize = 12
  /// Frames in each direction before other handlers of the event loop get a turn.
  private static let turn = 64
  /// Limit of buffers for a frame.
  private static let bufferLimit = 64

  private enum Feature {
    static let mtu: UInt64 = 1 << 3
    static let mac: UInt64 = 1 << 5
    static let mergeableBuffers: UInt64 = 1 << 15
    static let status: UInt64 = 1 << 16
  }

  private struct State: ~Copyable {
    var stream: FrameStream
    var source: EventLoop.Source?
    var interest: Poller.Readiness = []
    /// Frames are waiting for guest buffers.
    var isFull = false
    var merges = false
  }

  package let type = VirtioDeviceType.network
  package let connection: VirtioConnection
  private let address: MACAddress
  private let loop: EventLoop
  private let bell: Doorbell
  private let state: Mutex<State>
  private let isUp = Atomic<Bool>(true)
  private let isActive = Atomic<Bool>(false)
  private let ended: @Sendable () -> Void

  private var receiveQueue: VirtioQueue { connection.queues[0] }
  private var transmitQueue: VirtioQueue { connection.queues[1] }

  /// - Parameters:
  ///   - socket: a stream socket with frames.
  ///   - ended: called when its other end is closed. The guest sees the link go down.
  package init(
    _ connection: VirtioConnection, address: MACAddress, socket: consuming OwnedFileDescriptor,
    loop: EventLoop, ended: @escaping @Sendable () -> Void
  ) throws(Errno) {
    self.connection = connection
    self.address = address
    self.loop = loop
    self.ended = ended
    bell = try Doorbell()
    state = Mutex(State(stream: try FrameStream(socket)))
    try bell.answer(in: loop) { [weak self] in self?.serve() }
  }

  package var features: UInt64 {
    Feature.mtu | Feature.mac | Feature.mergeableBuffers | Feature.status
  }

  /// The address, the status, the number of pairs of queues, the MTU.
  package var configuration: [UInt8] {
    let status: UInt8 = isUp.load(ordering: .acquiring) ? 1 : 0
    var bytes = address.bytes + [status, 0, 1, 0]
    bytes.append(little: Self.mtu)
    return bytes
  }

  package func activate(features: UInt64) {
    state.withLock { $0.merges = features & Feature.mergeableBuffers != 0 }
    isActive.store(true, ordering: .releasing)
    bell.ring()
  }

  package func notify(queue: Int) { bell.ring() }

  // MARK: In the event loop's thread

  /// - Parameter isCut: the other end is closed. Bytes received before are read first, if
  ///   possible.
  private func serve(isCut: Bool = false) {
    guard isActive.load(ordering: .acquiring), isUp.load(ordering: .acquiring) else { return }
    let hasEnded = state.withLock { state in
      let isDone = [transmit(&state), receive(&state)].allSatisfy { $0 }
      if isCut, state.isFull { state.stream.giveUp() }
      if !isDone { bell.ring() }
      if !state.stream.hasEnded { wait(&state) }
      return state.stream.hasEnded
    }
    if hasEnded { disconnect() }
  }

  /// Sets the events to wait for: the socket is writable if a rest is unsent, readable if the guest
  /// has buffers.
  private func wait(_ state: inout State) {
    var interest: Poller.Readiness = state.isFull ? [] : .readable
    if state.stream.wantsToWrite { interest.insert(.writable) }
    if let source = state.source {
      if interest != state.interest { try? loop.change(source, interest: interest) }
    } else {
      state.source = try? loop.add(state.stream.descriptor, interest: interest) {
        [weak self] readiness in
        self?.serve(isCut: !readiness.isDisjoint(with: [.hangUp, .error]))
      }
    }
    state.interest = interest
  }

  private func disconnect() {
    state.withLock { state in
      if let source = state.source { loop.remove(source) }
      state.source = nil
    }
    isUp.store(false, ordering: .releasing)
    connection.interrupts.configurationChanged()
    ended()
  }

  /// Sends the guest's frames; true when no more can be sent now.
  private func transmit(_ state: inout State) -> Bool {
    state.stream.flush()
    for _ in 0..<Self.turn {
      guard !state.stream.wantsToWrite, let request = transmitQueue.pop() else { return true }
      state.stream.send(request.readable.slice(from: Self.headerSize))
      transmitQueue.complete(request, written: 0)
    }
    return false
  }

  /// Passes received frames to the guest; true when there are none left, or no buffers.
  private func receive(_ state: inout State) -> Bool {
    state.isFull = false
    let merges = state.merges
    for _ in 0..<Self.turn {
      switch state.stream.takeFrame({ deliver($0, merges) }) {
      case true?: break
      case false?:
        state.isFull = true
        return true
      case nil: if state.stream.fill() != .more { return true }
      }
    }
    return false
  }

  /// Puts a frame into the guest's buffers, or drops one that can never fit; false where it has to
  /// wait.
  private func deliver(_ frame: RawSpan, _ merges: Bool) -> Bool {
    let size = Self.headerSize &+ frame.byteCount
    let requests: [VirtioRequest]
    switch receiveQueue.gather(bytes: size, limit: merges ? Self.bufferLimit : 1) {
    case .requests(let taken): requests = taken
    case .wait: return false
    case .tooSmall: return true
    }
    // No flags, no offsets, only the number of buffers.
    var bytes = [UInt8](repeating: 0, count: Self.headerSize)
    bytes[10] = UInt8(truncatingIfNeeded: requests.count)
    bytes.append(frame)
    var done = 0
    let written = requests.map { request in
      let count = request.writable.write(bytes.bytes.extracting(done...))
      done &+= count
      return UInt32(truncatingIfNeeded: count)
    }
    receiveQueue.complete(Array(zip(requests, written)))
    return true
  }
}
