// SPDX-License-Identifier: Apache-2.0
//
// A network card (virtio 1.2, "Network Device") with one pair of queues and no offloads. All its
// work is done in the event loop's thread; a vCPU only rings. Frames that the guest has no buffers
// for stay in the socket, and what the socket does not take stays in the guest's queue. So neither
// side loses frames or grows.

import GuestMemory
import Host
import Synchronization
import SystemPackage

/// A card's hardware address.
package struct MACAddress: Sendable, Hashable {
  package let bytes: [UInt8]

  /// Reads text such as "52:54:00:12:34:56"; nil where it is none, or the address of a group.
  package init?(_ text: String) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    let bytes = parts.compactMap { $0.count == 2 ? UInt8($0, radix: 16) : nil }
    guard parts.count == 6, bytes.count == 6, bytes[0] & 1 == 0 else { return nil }
    self.bytes = bytes
  }
}

package final class NetworkDevice: VirtioDevice {
  package static let queueSizes: [UInt16] = [256, 256]
  /// The largest packet: what passt takes.
  package static let mtu: UInt16 = 65_520
  private static let headerSize = 12
  /// Frames each way until others in the event loop have their turn.
  private static let turn = 64
  /// Buffers that a frame may be spread over.
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
    /// Frames wait for buffers of the guest.
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
  ///   - ended: called when its other end is closed. The guest sees that the link is down.
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

  /// - Parameter isCut: nobody is at the other end. What has come before is read first, if it can
  ///   be.
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

  /// Waits for the socket: to be written to while something is left, to be read while the guest has
  /// buffers.
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

  /// Sends what the guest has; true where nothing is left that could be sent now.
  private func transmit(_ state: inout State) -> Bool {
    state.stream.flush()
    for _ in 0..<Self.turn {
      guard !state.stream.wantsToWrite, let request = transmitQueue.pop() else { return true }
      state.stream.send(request.readable.slice(from: Self.headerSize))
      transmitQueue.complete(request, written: 0)
    }
    return false
  }

  /// Gives the guest what has come; true where there is nothing more, or the guest has no buffers.
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
    // No flags, no offsets; how many buffers follows.
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
