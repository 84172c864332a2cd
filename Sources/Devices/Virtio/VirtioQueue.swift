// SPDX-License-Identifier: Apache-2.0
//
// A queue for devices, usable from any thread. A driver may reset the device while requests are
// being processed: they are then counted until they are done, and their results are dropped.

import GuestMemory
import Synchronization

/// A request taken from a queue, which must be returned to it.
package struct VirtioRequest: Sendable {
  package let chain: DescriptorChain
  fileprivate let session: UInt64

  package var readable: GuestBuffers { chain.readable }
  package var writable: GuestBuffers { chain.writable }
}

package final class VirtioQueue: Sendable {
  private struct State {
    /// nil unless the driver has enabled the queue without errors.
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

  /// Takes the next request; nil if there is none, and then the driver notifies of the next.
  package func pop() -> VirtioRequest? {
    attempt { (state) throws(QueueError) in
      guard let chain = try state.ring?.pop(memory) else { return nil }
      state.inFlight &+= 1
      return VirtioRequest(chain: chain, session: state.session)
    } ?? nil
  }

  /// Whether another request can be taken; if not, the driver notifies of the next.
  package func hasMore() -> Bool {
    attempt { (state) throws(QueueError) in
      guard let ring = state.ring else { return false }
      if try ring.availableCount(memory) > 0 { return true }
      return try ring.askForNotification(memory)
    } ?? false
  }

  /// The result of `gather`.
  package enum Gathered {
    case requests([VirtioRequest])
    /// The driver must add buffers, and will notify.
    case wait
    /// The queue can never hold enough.
    case tooSmall
  }

  /// Takes as many requests as some bytes need, or none.
  ///
  /// - Parameter limit: maximum of requests.
  package func gather(bytes: Int, limit: Int) -> Gathered {
    attempt { (state) throws(QueueError) in
      // A copy, which replaces the queue on success.
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

  /// Whether the driver still expects an answer to a request: no reset came since.
  package func isCurrent(_ request: VirtioRequest) -> Bool {
    state.withLock { $0.session == request.session }
  }

  /// Returns a request. Call it once for each.
  ///
  /// - Parameter written: bytes that were written, from the first writable one on.
  package func complete(_ request: VirtioRequest, written: UInt32) {
    complete([(request, written)])
  }

  /// Returns requests atomically: the driver sees all or none.
  package func complete(_ requests: [(VirtioRequest, written: UInt32)]) {
    _ = attempt { (state) throws(QueueError) in
      state.inFlight &-= requests.count
      let current = requests.filter { $0.0.session == state.session }
      if current.isEmpty { return }
      let chains = current.map { (head: $0.0.chain.head, written: $0.written) }
      if try state.ring?.push(chains, memory) == true { interrupts.raise(queue: index) }
    }
  }

  /// The driver has sent an invalid request: the device needs a reset.
  package func fail(_ request: VirtioRequest, _ error: QueueError) {
    _ = attempt { (state) throws(QueueError) in
      state.inFlight &-= 1
      if request.session == state.session { throw error }
    }
  }

  private func attempt<Result>(
    _ body: (inout State) throws(QueueError) -> Result
  ) -> Result? {
    // Interrupts and failures are reported under the lock, so that none follows the reset that
    // disables the queue.
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
  /// - Returns: false if the driver's addresses are invalid.
  func enable(_ place: QueuePlace, features: UInt64) -> Bool {
    guard place.size <= maximumSize, let ring = SplitQueue(place, features: features, memory)
    else { return false }
    state.withLock { $0.ring = ring }
    return true
  }

  /// Disables the queue.
  func disable() {
    state.withLock { state in
      state.ring = nil
      state.session &+= 1
    }
  }

  /// Whether the device still processes requests.
  var isBusy: Bool { state.withLock { $0.inFlight > 0 } }
}
