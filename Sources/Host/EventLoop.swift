// SPDX-License-Identifier: Apache-2.0
//
// One thread that waits for many descriptors and calls their handlers. Any thread may add and
// remove descriptors; handlers run in the loop's thread, one after the other, and must not block.
//
//     let loop = try EventLoop()
//     let source = try loop.add(socket) { _ in receive() }
//     while !done { try loop.runOnce(timeout: 500) }
//     loop.remove(source)

import Synchronization
import SystemPackage

/// Descriptors and their handlers.
package final class EventLoop: Sendable {
  /// Called with the events.
  package typealias Handler = @Sendable (Poller.Readiness) -> Void

  /// A registered descriptor.
  package struct Source: Sendable, Hashable {
    package let descriptor: Int32
    fileprivate let token: UInt64
  }

  private struct State {
    var handlers: [UInt64: Handler] = [:]
    /// Tokens are never reused, so an event of a removed source finds no handler.
    var nextToken: UInt64 = 0
  }

  private let poller: Poller
  private let state = Mutex(State())

  package init() throws(Errno) { poller = try Poller() }

  /// Registers a descriptor, which must stay open until it is removed. Plain files throw
  /// `Errno.notPermitted`.
  package func add(
    _ descriptor: Int32, interest: Poller.Readiness = .readable, _ handler: @escaping Handler
  ) throws(Errno) -> Source {
    let token = state.withLock { state in
      state.nextToken &+= 1
      state.handlers[state.nextToken] = handler
      return state.nextToken
    }
    do throws(Errno) {
      try poller.add(descriptor, token: token, interest: interest)
    } catch {
      state.withLock { $0.handlers[token] = nil }
      throw error
    }
    return Source(descriptor: descriptor, token: token)
  }

  /// Changes the events to wait for.
  package func change(_ source: Source, interest: Poller.Readiness) throws(Errno) {
    try poller.change(source.descriptor, token: source.token, interest: interest)
  }

  /// Unregisters a source. In the loop's thread: the handler is not called any more.
  package func remove(_ source: Source) {
    state.withLock { $0.handlers[source.token] = nil }
    try? poller.remove(source.descriptor)
  }

  /// Waits once, and calls the handlers of the events.
  ///
  /// - Parameter timeout: milliseconds; nil waits without limit.
  package func runOnce(timeout: Int32? = nil) throws(Errno) {
    var events: [(token: UInt64, readiness: Poller.Readiness)] = []
    try poller.wait(timeout: timeout) { events.append(($0, $1)) }
    for event in events {
      state.withLock { $0.handlers[event.token] }?(event.readiness)
    }
  }
}
