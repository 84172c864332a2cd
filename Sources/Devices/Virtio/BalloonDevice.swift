// SPDX-License-Identifier: Apache-2.0
//
// A memory balloon (virtio 1.2, "Traditional Memory Balloon Device"): the guest gives pages to the
// host, as many as it is asked for, and takes them back; it reports pages that are free at the
// moment, and says how it is off for memory. All of it is the guest's own memory, so whatever it
// gives away harms nobody else. Pages that were given away read as 0 when they are touched again.
// The work is done in the event loop's thread.

import GuestMemory
import Host
import Synchronization
import SystemPackage

package final class BalloonDevice: VirtioDevice {
  /// Inflation, deflation, statistics, reports of free pages. Linux numbers the queues of features
  /// that it has taken without gaps; so does this device, and without statistics the reports come
  /// in queue 2.
  package static let queueSizes: [UInt16] = [64, 64, 16, 64]

  package struct Options: Sendable, Hashable {
    /// Bytes that the guest is asked for.
    package var size: UInt64 = 0
    /// The guest takes pages back before it ends a program for lack of memory.
    package var deflatesWhenShort = true
    /// The guest reports pages that are free.
    package var reportsFreePages = true
    package init() {}
  }

  /// What is known of the guest's memory.
  package struct Figures: Sendable, Hashable {
    /// Bytes in the balloon, as the guest says.
    package var inflated: UInt64 = 0
    /// Bytes given back to the host by way of the balloon and by reports, in all.
    package var discarded: UInt64 = 0
    package var reported: UInt64 = 0
    /// The guest's own figures by their tags; none before it has given any.
    package var statistics: [UInt16: UInt64] = [:]
  }

  private enum Feature {
    static let statistics: UInt64 = 1 << 1
    static let deflateWhenShort: UInt64 = 1 << 2
    static let reporting: UInt64 = 1 << 5
  }

  private enum QueueNumber {
    static let inflate = 0
    static let deflate = 1
    static let statistics = 2
  }

  private enum Field {
    static let actual = 4
  }

  private static let pageShift: UInt64 = 12
  private static let pageSize: UInt32 = 1 << 12
  /// Bytes of a request's list of pages.
  private static let listLimit = 1 << 16
  /// A tag and a value.
  private static let statisticSize = 10
  private static let statisticsLimit = 64
  /// Requests of a queue until others in the event loop have their turn.
  private static let turn = 8

  private struct State {
    var figures = Figures()
    var reportQueue: Int?
    var hasStatistics = false
    /// The buffer that the guest fills anew when it gets it back.
    var statistics: VirtioRequest?
  }

  package let type = VirtioDeviceType.balloon
  package let connection: VirtioConnection
  private let memory: GuestMemory
  private let options: Options
  private let bell: Doorbell
  private let state = Mutex(State())

  package init(
    _ connection: VirtioConnection, _ memory: GuestMemory, _ options: Options, loop: EventLoop
  ) throws(Errno) {
    self.connection = connection
    self.memory = memory
    self.options = options
    bell = try Doorbell()
    try bell.answer(in: loop) { [weak self] in self?.serve() }
  }

  package var features: UInt64 {
    Feature.statistics | (options.deflatesWhenShort ? Feature.deflateWhenShort : 0)
      | (options.reportsFreePages ? Feature.reporting : 0)
  }

  /// The pages that the guest is to give, and those that it has given.
  package var configuration: [UInt8] {
    let inflated = state.withLock { $0.figures.inflated }
    var bytes: [UInt8] = []
    bytes.append(little: UInt32(clamping: options.size >> Self.pageShift))
    bytes.append(little: UInt32(clamping: inflated >> Self.pageShift))
    return bytes
  }

  package func writeConfiguration(_ offset: Int, width: Int, value: UInt64) {
    guard offset == Field.actual, width == 4 else { return }
    state.withLock { $0.figures.inflated = (value & 0xFFFF_FFFF) << Self.pageShift }
  }

  package func activate(features: UInt64) {
    state.withLock { state in
      state.hasStatistics = features & Feature.statistics != 0
      let last = state.hasStatistics ? QueueNumber.statistics &+ 1 : QueueNumber.statistics
      state.reportQueue = features & Feature.reporting != 0 ? last : nil
    }
    bell.ring()
  }

  package func notify(queue: Int) { bell.ring() }

  /// The balloon is empty again: a new driver begins with none of its pages given away.
  package func reset() {
    let kept = state.withLock { state in
      defer {
        (state.statistics, state.reportQueue, state.hasStatistics) = (nil, nil, false)
        (state.figures.inflated, state.figures.statistics) = (0, [:])
      }
      return state.statistics
    }
    if let kept { connection.queues[QueueNumber.statistics].complete(kept, written: 0) }
  }

  package var figures: Figures { state.withLock { $0.figures } }

  /// Asks the guest for new figures. It answers when it has time.
  package func askForStatistics() {
    let kept = state.withLock { state in
      defer { state.statistics = nil }
      return state.statistics
    }
    if let kept { connection.queues[QueueNumber.statistics].complete(kept, written: 0) }
  }

  // MARK: In the event loop's thread

  private func serve() {
    let (hasStatistics, reportQueue) = state.withLock { ($0.hasStatistics, $0.reportQueue) }
    var isDone = serve(QueueNumber.inflate) { inflate($0, connection.queues[QueueNumber.inflate]) }
    // Pages that are taken back come as they are touched.
    isDone = serve(QueueNumber.deflate) { _ in true } && isDone
    if hasStatistics { readStatistics() }
    if let reportQueue {
      isDone =
        serve(reportQueue) { request in
          let count = request.writable.discard()
          state.withLock { $0.figures.reported &+= UInt64(truncatingIfNeeded: count) }
          return true
        } && isDone
    }
    if !isDone { bell.ring() }
  }

  /// Serves some requests of a queue; true where none is left.
  ///
  /// - Parameter body: false where it has failed the request.
  private func serve(_ number: Int, _ body: (VirtioRequest) -> Bool) -> Bool {
    let queue = connection.queues[number]
    for _ in 0..<Self.turn {
      guard let request = queue.pop() else { return true }
      guard body(request) else { return true }
      queue.complete(request, written: 0)
    }
    return false
  }

  /// Takes the pages of a list.
  private func inflate(_ request: VirtioRequest, _ queue: VirtioQueue) -> Bool {
    let count = request.readable.count
    guard count <= Self.listLimit, count % 4 == 0,
      let list = request.readable.bytes(count: count)
    else {
      queue.fail(request, .badRequest("a list of pages of \(count) bytes"))
      return false
    }
    var pages = stride(from: 0, to: count, by: 4).compactMap { list.load(UInt32.self, at: $0) }
    pages.sort()
    var done = 0
    var index = 0
    while index < pages.count {
      var next = index &+ 1
      while next < pages.count, pages[next] &- pages[next &- 1] <= 1 { next &+= 1 }
      let length = UInt64(pages[next &- 1] &- pages[index] &+ 1) << Self.pageShift
      done &+= discard(UInt64(pages[index]) << Self.pageShift, length)
      index = next
    }
    state.withLock { $0.figures.discarded &+= UInt64(truncatingIfNeeded: done) }
    return true
  }

  /// Gives a range back. What does not lie in memory is nobody's.
  private func discard(_ address: UInt64, _ length: UInt64) -> Int {
    var buffers = GuestBuffers(memory)
    guard let length = UInt32(exactly: length), buffers.append(address, count: length) else {
      return 0
    }
    return buffers.discard()
  }

  /// Keeps the newest of the guest's figures with its buffer. Under the lock, so that a reset finds
  /// every buffer that was taken.
  private func readStatistics() {
    let queue = connection.queues[QueueNumber.statistics]
    state.withLock { state in
      for _ in 0..<Self.turn {
        guard let request = queue.pop() else { return }
        state.figures.statistics = Self.statistics(request.readable)
        // A driver has one such buffer; what is more is its to have back.
        if let old = state.statistics { queue.complete(old, written: 0) }
        state.statistics = request
      }
    }
  }

  private static func statistics(_ buffers: GuestBuffers) -> [UInt16: UInt64] {
    let count = min(buffers.count, statisticsLimit * statisticSize)
    let bytes = buffers.bytes(count: count) ?? []
    var statistics: [UInt16: UInt64] = [:]
    for offset in stride(from: 0, to: count, by: statisticSize) {
      if let tag = bytes.load(UInt16.self, at: offset),
        let value = bytes.load(UInt64.self, at: offset &+ 2)
      {
        statistics[tag] = value
      }
    }
    return statistics
  }
}
