// SPDX-License-Identifier: Apache-2.0
//
// A disk (virtio 1.2, "Block Device"). Worker threads process requests, several at a time and in
// any order, as drivers expect; a vCPU only rings the doorbell.

import Glibc
import GuestMemory
import Host
import Synchronization
import SystemPackage

package final class BlockDevice: VirtioDevice {
  package static let queueSizes: [UInt16] = [256]
  /// Requests processed at a time.
  private static let workerCount = 4

  private enum Feature {
    static let segmentLimit: UInt64 = 1 << 2
    static let readOnly: UInt64 = 1 << 5
    static let blockSize: UInt64 = 1 << 6
    static let flush: UInt64 = 1 << 9
    static let topology: UInt64 = 1 << 10
    static let discard: UInt64 = 1 << 13
    static let writeZeroes: UInt64 = 1 << 14
  }

  package let type = VirtioDeviceType.block
  package let connection: VirtioConnection
  private let image: any BlockImage
  private let serial: [UInt8]
  private let report: @Sendable (String) -> Void
  /// The driver did not negotiate flushes: every write must be durable before it completes.
  private let writesThrough = Atomic<Bool>(false)
  private let workers = Mutex<WorkerPool?>(nil)
  /// nil: a request that finds no room fails.
  private let roomWatch: (any RoomWatch)?
  private let isStopping = Atomic<Bool>(false)
  /// Microseconds between checks, and checks until a request that found no room is retried.
  private static let look: UInt32 = 100_000
  private static let patience = 30

  /// - Parameters:
  ///   - serial: the disk's serial number; the guest sees its first 20 bytes.
  ///   - roomWatch: notified when the host's disk is full; requests then wait instead of failing.
  ///   - report: called with a line when data is lost.
  package init(
    _ connection: VirtioConnection, _ image: any BlockImage, serial: String,
    roomWatch: (any RoomWatch)? = nil, report: @escaping @Sendable (String) -> Void = { _ in }
  ) {
    self.roomWatch = roomWatch
    self.connection = connection
    self.report = report
    self.image = image
    self.serial = Array(serial.utf8.prefix(BlockRequest.serialSize))
  }

  /// Starts the threads.
  ///
  /// - Parameter name: the threads' name.
  package func start(name: String) throws(Errno) {
    let pool = WorkerPool(name: name, count: Self.workerCount) { [self] in serveNext() }
    try pool.start()
    workers.withLock { $0 = pool }
  }

  /// Ends the threads, each after its current request, and the use of the image.
  package func stop() {
    let pool = workers.withLock { workers in
      defer { workers = nil }
      return workers
    }
    guard let pool else { return }
    isStopping.store(true, ordering: .releasing)
    pool.stop()
    do throws(Errno) {
      try image.finish()
    } catch {
      report("what was written last is lost: \(error)")
    }
  }

  package var features: UInt64 {
    let always = Feature.segmentLimit | Feature.blockSize | Feature.flush | Feature.topology
    return always | (image.isReadOnly ? Feature.readOnly : Feature.discard | Feature.writeZeroes)
  }

  package func activate(features: UInt64) {
    writesThrough.store(features & Feature.flush == 0, ordering: .releasing)
    notify(queue: 0)
  }

  package func notify(queue: Int) { workers.withLock { $0 }?.wake() }

  // MARK: Requests

  private func serveNext() -> Bool {
    let queue = connection.queues[0]
    guard let request = queue.pop() else { return false }
    if queue.hasMore() { notify(queue: 0) }
    guard let command = BlockRequest(request) else {
      queue.fail(request, .badRequest("a disk's request is too short"))
      return true
    }
    let (status, written) = answer(command, request)
    let place = request.writable.count &- 1
    request.writable.write([status].bytes, at: place)
    queue.complete(request, written: UInt32(clamping: written &+ 1))
    return true
  }

  /// The status, and how much of the writable buffers is written from the start on.
  private typealias Answer = (status: UInt8, written: Int)

  /// Processes a request, and retries it while the host's disk is full.
  private func answer(_ command: BlockRequest, _ request: VirtioRequest) -> Answer {
    var hasWaited = false
    while true {
      do throws(Errno) {
        let answer = try attempt(command)
        if hasWaited { roomWatch?.endWaiting(isDone: true) }
        return answer
      } catch {
        if let roomWatch, error.isLackOfRoom {
          if !hasWaited { roomWatch.beginWaiting(error) }
          hasWaited = true
          if waitForRoom(roomWatch, request) { continue }
        }
        if hasWaited { roomWatch?.endWaiting(isDone: false) }
        return (BlockRequest.Status.error, 0)
      }
    }
  }

  /// Waits some seconds, or for a hint; false if the request has been cancelled.
  private func waitForRoom(_ watch: any RoomWatch, _ request: VirtioRequest) -> Bool {
    let hints = watch.hints
    for _ in 0..<Self.patience {
      if isStopping.load(ordering: .acquiring) || !connection.queues[0].isCurrent(request) {
        return false
      }
      if watch.hints != hints { return true }
      usleep(Self.look)
    }
    return true
  }

  private func attempt(_ request: BlockRequest) throws(Errno) -> Answer {
    switch request.kind {
    case BlockRequest.Kind.read:
      try image.read(at: try range(request.sector, request.input.count), into: request.input)
      return (BlockRequest.Status.ok, request.input.count)
    case BlockRequest.Kind.write:
      try write(request)
    case BlockRequest.Kind.flush:
      try image.flush()
    case BlockRequest.Kind.identify:
      request.input.slice(from: 0, count: BlockRequest.serialSize).clear()
      let serial = serial
      request.input.write(serial.bytes)
      return (BlockRequest.Status.ok, min(request.input.count, BlockRequest.serialSize))
    case BlockRequest.Kind.discard, BlockRequest.Kind.writeZeroes:
      return (try clear(request), 0)
    default:
      return (BlockRequest.Status.unsupported, 0)
    }
    return (BlockRequest.Status.ok, 0)
  }

  private func write(_ request: BlockRequest) throws(Errno) {
    if image.isReadOnly { throw .readOnlyFileSystem }
    try image.write(
      at: try range(request.sector, request.output.count), from: request.output)
    if writesThrough.load(ordering: .acquiring) { try image.flush() }
  }

  /// Discards or zeroes ranges, at most as many as the configuration allows.
  private func clear(_ request: BlockRequest) throws(Errno) -> UInt8 {
    if image.isReadOnly { throw .readOnlyFileSystem }
    guard let ranges = BlockRequest.ClearedRange.all(of: request.output) else {
      return BlockRequest.Status.error
    }
    for cleared in ranges {
      let count = UInt64(cleared.sectors) &* BlockSector.size
      let offset = try range(cleared.sector, Int(truncatingIfNeeded: count))
      if request.kind == BlockRequest.Kind.writeZeroes {
        guard cleared.flags & ~BlockRequest.ClearedRange.unmap == 0 else {
          return BlockRequest.Status.unsupported
        }
        let mayDiscard = cleared.flags & BlockRequest.ClearedRange.unmap != 0
        try image.writeZeroes(at: offset, count: count, mayDiscard: mayDiscard)
      } else {
        guard cleared.flags == 0 else { return BlockRequest.Status.unsupported }
        try image.discard(at: offset, count: count)
      }
    }
    if writesThrough.load(ordering: .acquiring) { try image.flush() }
    return BlockRequest.Status.ok
  }

  /// The byte offset of a range of whole sectors on the disk.
  private func range(_ sector: UInt64, _ count: Int) throws(Errno) -> UInt64 {
    let offset = sector.multipliedReportingOverflow(by: BlockSector.size)
    let count = UInt64(count)
    guard !offset.overflow, count % BlockSector.size == 0, offset.partialValue <= image.size,
      count <= image.size &- offset.partialValue
    else { throw .invalidArgument }
    return offset.partialValue
  }

  // MARK: Configuration

  /// "Device configuration layout", up to the limits of zeroing.
  package var configuration: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 60)
    let capacity = image.size / BlockSector.size
    bytes.store(capacity, at: 0)
    // The status and the header need descriptors, too.
    bytes.store(UInt32(Self.queueSizes[0] &- 2), at: 12)
    bytes.store(UInt32(BlockSector.size), at: 20)
    let sectorsInBlock = image.blockSize / UInt32(BlockSector.size)
    bytes.store(UInt8(truncatingIfNeeded: sectorsInBlock.trailingZeroBitCount), at: 24)
    bytes.store(UInt16(truncatingIfNeeded: sectorsInBlock), at: 26)
    bytes.store(UInt16(1), at: 34)
    bytes.store(BlockRequest.ClearedRange.sectorLimit, at: 36)
    bytes.store(UInt32(BlockRequest.ClearedRange.limit), at: 40)
    bytes.store(image.discardSize / UInt32(BlockSector.size), at: 44)
    bytes.store(BlockRequest.ClearedRange.sectorLimit, at: 48)
    bytes.store(UInt32(BlockRequest.ClearedRange.limit), at: 52)
    bytes.store(UInt8(1), at: 56)
    return bytes
  }
}
