// SPDX-License-Identifier: Apache-2.0
//
// A memory balloon (virtio 1.2, "Traditional Memory Balloon Device"): the guest gives the requested
// number of pages to the host and takes them back, reports free pages, and provides memory
// statistics. It can only give away its own memory. Pages given away read as 0 on the next access.
// The event loop's thread does the work.

import GuestMemory
import Host
import Synchronization
import SystemPackage

package final class BalloonDevice: VirtioDevice {
  /// Inflation, deflation, statistics, free-page reports. Like Linux, the device numbers the queues
  /// of negotiated features without gaps: without statistics, reports come in queue 2.
  package static let queueSizes: [UInt16] = [64, 64, 16, 64]

  package struct Options: Sendable, Hashable {
    /// Bytes to request from the guest.
    package var size: UInt64 = 0
    /// The guest takes pages back before it ends a program for lack of memory.
    package var deflatesWhenShort = true
    /// The guest reports pages that are free.
    package var reportsFreePages = true
    package init() {}
  }

  /// Figures of the guest's memory.
  package struct Figures: Sendable, Hashable {
    /// Bytes in the balloon, according to the guest.
    package var inflated: UInt64 = 0
    /// Total bytes returned to the host by the balloon, and by reports.
    package var discarded: UInt64 = 0
    package var reported: UInt64 = 0
    /// The guest's own figures by tag.
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
  /// Requests of a queue per turn of the event loop.
  private static let turn = 8

  private struct State {
    var figures = Figures()
    var reportQueue: Int?
    var hasStatistics = false
    /// The buffer that the guest refills when the device returns it.
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

  /// The requested number of pages, and the number in the balloon.
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

  /// Empties the balloon, because a new driver starts with an empty one.
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

  /// Asks the guest for new figures, which arrive later.
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
    // Deflation needs no work: the host provides pages when they are accessed.
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

  /// Serves some requests of a queue; true if none is left.
  ///
  /// - Parameter body: returns false if it failed the request.
  private func serve(_ number: Int, _ body: (VirtioRequest) -> Bool) -> Bool {
    let queue = connection.queues[number]
    for _ in 0..<Self.turn {
      guard let request = queue.pop() else { return true }
      guard body(request) else { return true }
      queue.complete(request, written: 0)
    }
    return false
  }

  /// Discards the pages of a list, run by run.
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

  /// Discards a range; nothing if it is not all in memory.
  private func discard(_ address: UInt64, _ length: UInt64) -> Int {
    var buffers = GuestBuffers(memory)
    guard let length = UInt32(exactly: length), buffers.append(address, count: length) else {
      return 0
    }
    return buffers.discard()
  }

  /// Keeps the guest's newest figures and their buffer, under the lock so that a reset finds every
  /// buffer taken from the queue.
  private func readStatistics() {
    let queue = connection.queues[QueueNumber.statistics]
    state.withLock { state in
      for _ in 0..<Self.turn {
        guard let request = queue.pop() else { return }
        state.figures.statistics = Self.statistics(request.readable)
        // A driver has one such buffer; return any other.
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
