// SPDX-License-Identifier: Apache-2.0
//
// The event loop and the pool of workers: everything that was asked for is done once, what was
// removed is not called, and no thread is left behind.

import Glibc
import Host
import HostTestSupport
import Synchronization
import SystemPackage
import Testing

@Suite struct EventLoopTests {
  @Test func handlersAreCalledUntilTheyAreRemoved() throws {
    let loop = try EventLoop()
    let pipe = try Pipe()
    let count = Mutex(0)
    let source = try loop.add(pipe.reader.rawValue) { readiness in
      if readiness.contains(.readable) { count.withLock { $0 += 1 } }
    }
    try loop.runOnce(timeout: 0)
    writeText(pipe.writer.rawValue, "x")
    try loop.runOnce(timeout: 1000)
    try loop.runOnce(timeout: 1000)
    #expect(count.withLock { $0 } == 2)
    loop.remove(source)
    try loop.runOnce(timeout: 0)
    #expect(count.withLock { $0 } == 2)
  }

  /// One handler removes another whose event has come at the same time.
  @Test func aSourceThatHasGoneIsNotCalled() throws {
    let loop = try EventLoop()
    let pipes = [try SharedPipe(), try SharedPipe()]
    let sources = Mutex<[EventLoop.Source]>([])
    let calls = Mutex(0)
    for pipe in pipes {
      writeText(pipe.pipe.writer.rawValue, "x")
      let source = try loop.add(pipe.pipe.reader.rawValue) { _ in
        calls.withLock { $0 += 1 }
        for source in sources.withLock({ $0 }) { loop.remove(source) }
      }
      sources.withLock { $0.append(source) }
    }
    try loop.runOnce(timeout: 1000)
    withExtendedLifetime(pipes) { #expect(calls.withLock { $0 } == 1) }
  }

  @Test func plainFilesAreRefused() throws {
    let path = try Command.temporaryFile([1])
    defer { unlink(path) }
    let file = try OwnedFileDescriptor(opening: path, flags: O_RDONLY)
    let loop = try EventLoop()
    #expect(throws: Errno.notPermitted) { _ = try loop.add(file.rawValue) { _ in } }
  }

  private final class SharedPipe: Sendable {
    let pipe: HostTestSupport.Pipe
    init() throws(Errno) { pipe = try HostTestSupport.Pipe() }
  }
}

@Suite struct WorkerPoolTests {
  @Test func everythingIsDoneBySeveralThreads() throws {
    let work = Mutex(0)
    let threads = Mutex(Set<UInt>())
    let pool = WorkerPool(name: "test", count: 3) {
      let isThere = work.withLock { work in
        if work > 0 { work -= 1 }
        return work > 0
      }
      _ = threads.withLock { $0.insert(ThreadIdentifier.current.rawValue) }
      if isThere { usleep(1000) }
      return isThere
    }
    try pool.start()
    work.withLock { $0 = 60 }
    for _ in 0..<3 {
      pool.wake()
      usleep(2000)
    }
    for _ in 0..<2000 where work.withLock({ $0 }) > 0 { usleep(1000) }
    pool.stop()
    #expect(work.withLock { $0 } == 0 && threads.withLock { $0.count } == 3)
  }

  @Test func noThreadIsLeftBehind() throws {
    let calls = Mutex(0)
    let pool = WorkerPool(name: "test", count: 2) {
      calls.withLock { $0 += 1 }
      return true
    }
    try pool.start()
    pool.wake()
    usleep(2000)
    pool.stop()
    let after = calls.withLock { $0 }
    pool.wake()
    usleep(2000)
    #expect(calls.withLock { $0 } == after && after > 0)
  }
}
