// SPDX-License-Identifier: Apache-2.0
//
// A queue as devices use it, from any thread. A driver may reset the device while requests are
// being carried out: those are then counted until they are done, and what they report reaches
// nobody.

import GuestMemory
import Synchronization

/// A request that was taken from a queue and has to be given back to it.
package struct VirtioRequest: Sendable {
  package let chain: DescriptorChain
  fileprivate let session: UInt64

  package var readable: GuestBuffers { chain.readable }
  package var writable: GuestBuffers { chain.writable }
}

package final class VirtioQueue: Sendable {
  private struct State {
    /// nil while the driver has not enabled the queue, or has broken it.
    var ring: SplitQueue?
    /// Counts resets.
    var session: UInt64 = 0
    var inFlight = 0
  }

  package let index: Int
  package let maximumSize: UInt16
  private let memory: GuestMemory
  private let interrupts: VirtioInterrupts
  private let state = Mutex(State())

  init(index: Int, maximumSize: UInt16, _ memory: GuestMemory, _ interrupts: VirtioInterrupts) {
    self.index = index
    self.maximumSize = maximumSize
    self.memory = memory
    self.interrupts = interrupts
  }

  // MARK: The device's side

  /// Takes the next request; nil where there is none, and the driver notifies of the next.
  package func pop() -> VirtioRequest? {
    attempt { (state) throws(QueueError) in
      guard let chain = try state.ring?.pop(memory) else { return nil }
      state.inFlight &+= 1
      return VirtioRequest(chain: chain, session: state.session)
    } ?? nil
  }

  /// Whether another request can be taken; where not, the driver notifies of the next.
  package func hasMore() -> Bool {
    attempt { (state) throws(QueueError) in
      guard let ring = state.ring else { return false }
      if try ring.availableCount(memory) > 0 { return true }
      return try ring.askForNotification(memory)
    } ?? false
  }

  /// What `gather` finds.
  package enum Gathered {
    case requests([VirtioRequest])
    /// The driver has to add buffers, and notifies when it has.
    case wait
    /// There can never be enough.
    case tooSmall
  }

  /// Takes as many requests as have room for some bytes, or none.
  ///
  /// - Parameter limit: requests, at most.
  package func gather(bytes: Int, limit: Int) -> Gathered {
    attempt { (state) throws(QueueError) in
      // A copy, which takes the place of the queue when there is enough.
      guard var ring = state.ring else { return .wait }
      var requests: [VirtioRequest] = []
      var room = 0
      while room < bytes {
        if requests.count == limit { return .tooSmall }
        guard let chain = try ring.pop(memory) else {
          return requests.count >= Int(ring.size) ? .tooSmall : .wait
        }
        room &+= chain.writable.count
        requests.append(VirtioRequest(chain: chain, session: state.session))
      }
      state.ring = ring
      state.inFlight &+= requests.count
      return .requests(requests)
    } ?? .wait
  }

  /// Whether the driver still waits for a request.
  package func isCurrent(_ request: VirtioRequest) -> Bool {
    state.withLock { $0.session == request.session }
  }

  /// Gives a request back. Each is given back once.
  ///
  /// - Parameter written: bytes that were written, from the first writable one on.
  package func complete(_ request: VirtioRequest, written: UInt32) {
    complete([(request, written)])
  }

  /// Gives requests back, of which the driver sees all or none.
  package func complete(_ requests: [(VirtioRequest, written: UInt32)]) {
    _ = attempt { (state) throws(QueueError) in
      state.inFlight &-= requests.count
      let current = requests.filter { $0.0.session == state.session }
      if current.isEmpty { return }
      let chains = current.map { (head: $0.0.chain.head, written: $0.written) }
      if try state.ring?.push(chains, memory) == true { interrupts.raise(queue: index) }
    }
  }

  /// The driver has sent something that no device can make sense of: the device needs a reset.
  package func fail(_ request: VirtioRequest, _ error: QueueError) {
    _ = attempt { (state) throws(QueueError) in
      state.inFlight &-= 1
      if request.session == state.session { throw error }
    }
  }

  private func attempt<Result>(
    _ body: (inout State) throws(QueueError) -> Result
  ) -> Result? {
    // Interrupts and failures are told under the lock: none comes after the reset that takes the
    // queue away.
    state.withLock { state in
      do throws(QueueError) {
        return try body(&state)
      } catch {
        state.ring = nil
        interrupts.fail("queue \(index): \(error)")
        return nil
      }
    }
  }

  // MARK: The transport's side

  /// The driver enables the queue.
  ///
  /// - Returns: false where its parts cannot be where the driver says they are.
  func enable(_ place: QueuePlace, features: UInt64) -> Bool {
    guard place.size <= maximumSize, let ring = SplitQueue(place, features: features, memory)
    else { return false }
    state.withLock { $0.ring = ring }
    return true
  }

  /// Takes the queue from the driver.
  func disable() {
    state.withLock { state in
      state.ring = nil
      state.session &+= 1
    }
  }

  /// Whether the device still works on requests.
  var isBusy: Bool { state.withLock { $0.inFlight > 0 } }
}
