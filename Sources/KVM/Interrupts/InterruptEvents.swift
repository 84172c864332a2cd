// SPDX-License-Identifier: Apache-2.0
//
// irqfds: a thread waits for the client's eventfds and drives their GSIs (Linux, "KVM_IRQFD").
//
//     plain     an event is an edge: the line goes up and down
//     resample  the line stays up until the guest ends the interrupt; then it falls and the client
//               gets an event, and signals again if its device still requests

import Host
import InterruptChips
import Synchronization
import SystemPackage
import X86CPU

/// Sendable: what changes is in mutexes and atomics.
final class InterruptEvents: @unchecked Sendable {
  private struct Source: Sendable {
    var gsi: UInt32
    var event: ClientEvent
    var resample: ClientEvent?
  }

  private struct State: Sendable {
    var sources: [UInt64: Source] = [:]
    var nextToken: UInt64 = 1
    var isRunning = false
  }

  private let controller: InterruptController
  private let state = Mutex(State())
  private let poller: Poller
  /// The signalling process may be another one that has written to the guest's memory.
  private let comparesCode: Bool
  private let wake: EventFile
  private let mustLook = Atomic<Bool>(false)
  private let isStopping = Atomic<Bool>(false)
  private let ended = Parker()
  private static let wakeToken: UInt64 = 0

  init(_ controller: InterruptController, comparesCode: Bool) throws(Errno) {
    self.controller = controller
    self.comparesCode = comparesCode
    poller = try Poller()
    wake = try EventFile()
    try poller.add(wake.descriptor.rawValue, token: Self.wakeToken)
  }

  /// - Throws: EBUSY if the eventfd already drives a GSI.
  func assign(gsi: UInt32, event: ClientEvent, resample: ClientEvent?) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      // The descriptor's number may be reused for another eventfd after the client closed it.
      let held = state.sources.values.lazy.filter { !$0.event.isReleased }
      if held.contains(where: { $0.event.isSame(as: event) }) {
        throw .resourceBusy
      }
      if !state.isRunning {
        try start()
        state.isRunning = true
      }
      let token = state.nextToken
      state.nextToken += 1
      state.sources[token] = Source(gsi: gsi, event: event, resample: resample)
      if let resample { controller.addResampler(gsi, resample) }
      // Earlier events are reported now: epoll is level-triggered.
      try poller.add(event.descriptor, token: token)
    }
  }

  /// Removes the irqfd of the client's descriptor, if any.
  func deassign(gsi: UInt32, client: Int32) {
    state.withLock { state in
      for (token, source) in state.sources
      where source.gsi == gsi && source.event.isSame(as: client) {
        if !source.event.isReleased { try? poller.remove(source.event.descriptor) }
        if let resample = source.resample { controller.removeResampler(gsi, resample) }
        state.sources[token] = nil
      }
    }
  }

  /// The client closed descriptors of eventfds. The irqfd thread finds out which, because the
  /// caller may hold any lock.
  func clientClosed() {
    mustLook.store(true, ordering: .sequentiallyConsistent)
    wake.signal()
  }

  /// Drops eventfds of which the client has no descriptor. If another process has it open, it still
  /// drives its GSI, as in Linux.
  private func dropAbandoned() {
    state.withLock { state in
      guard let open = ClientEvent.clients else { return }
      let abandoned = state.sources.filter {
        !$0.value.event.isReleased && !$0.value.event.isAmong(open)
      }
      if abandoned.isEmpty { return }
      for (token, source) in abandoned {
        // Nobody consumes its events any more.
        try? poller.change(
          source.event.descriptor, token: token, interest: [.readable, .edge])
        source.event.release()
      }
      guard let alive = poller.tokens else { return }
      for (token, source) in state.sources where source.event.isReleased && !alive.contains(token) {
        if let resample = source.resample { controller.removeResampler(source.gsi, resample) }
        state.sources[token] = nil
      }
    }
  }

  /// Ends the thread and joins it.
  func stop() {
    guard state.withLock({ $0.isRunning }) else { return }
    isStopping.store(true, ordering: .sequentiallyConsistent)
    wake.signal()
    ended.park()
  }

  private func start() throws(Errno) {
    let thread = try HostThread(name: "kvm-irqfd", stackSize: 256 << 10) { [self] in
      while !self.isStopping.load(ordering: .sequentiallyConsistent) {
        try? self.poller.wait { token, _ in self.fire(token) }
      }
      self.ended.unpark()
    }
    _ = consume thread
  }

  private func fire(_ token: UInt64) {
    if token == Self.wakeToken {
      wake.consume()
      if mustLook.exchange(false, ordering: .sequentiallyConsistent) { dropAbandoned() }
      return
    }
    // Under the lock, so that a removed one is not read any more.
    let source = state.withLock { state in
      let source = state.sources[token]
      source?.event.consume()
      return source
    }
    guard let source else { return }
    if comparesCode { PhysicalCPU.contentsMayHaveChanged() }
    if source.resample != nil {
      controller.setLine(source.gsi, true, source: InterruptController.Source.resample)
    } else {
      controller.setLine(source.gsi, true)
      controller.setLine(source.gsi, false)
    }
  }
}
