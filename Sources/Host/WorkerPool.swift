// SPDX-License-Identifier: Apache-2.0
//
// Threads for work that a vCPU must not wait for, such as a disk's reads. Work is not handed over:
// a woken worker looks for it. A worker that takes a piece and finds another one wakes the next
// worker, so that as many run as there is work for.
//
//     let pool = WorkerPool(name: "disk0", count: 4) { takeOneRequest() }
//     try pool.start()
//     pool.wake()

import CHost
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// Threads that sleep until there may be work.
package final class WorkerPool: Sendable {
  /// Takes one piece of work; returns whether there was one.
  package typealias Work = @Sendable () -> Bool

  /// Enough for system calls and the devices' small functions.
  private static let stackSize = 256 << 10

  private let name: String
  private let count: Int
  private let work: Work
  private let bell: Bell
  private let threads = Atomic<Int>(0)

  /// - Parameters:
  ///   - name: the threads' name, by which the sandbox selects their rights.
  ///   - count: of threads.
  ///   - work: called by any of them, several at a time.
  package init(name: String, count: Int, work: @escaping Work) {
    self.name = name
    self.count = count
    self.work = work
    bell = Bell()
  }

  /// Starts the threads; all or none.
  package func start() throws(Errno) {
    for _ in 0..<count {
      threads.add(1, ordering: .sequentiallyConsistent)
      do throws(Errno) {
        _ = try HostThread(name: name, stackSize: Self.stackSize) { [self] in
          run()
          threads.subtract(1, ordering: .sequentiallyConsistent)
        }
      } catch {
        threads.subtract(1, ordering: .sequentiallyConsistent)
        stop()
        throw error
      }
    }
  }

  /// There may be work. From any thread; does not wait.
  package func wake() { bell.ring() }

  /// Ends the threads, each after its current work, and joins them.
  package func stop() {
    bell.close()
    while threads.load(ordering: .sequentiallyConsistent) > 0 { usleep(200) }
  }

  private func run() {
    while bell.wait() {
      while !bell.isClosed, work() {}
    }
  }
}

/// A flag that one of several threads waits for and takes.
/// Sendable: guarded by its mutex.
@safe private final class Bell: @unchecked Sendable {
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  // Under the mutex.
  private var isRung = false
  private var waiting = 0
  private let closed = Atomic<Bool>(false)

  init() {
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(condition, nil)
  }

  deinit {
    unsafe pthread_cond_destroy(condition)
    unsafe pthread_mutex_destroy(mutex)
    unsafe condition.deallocate()
    unsafe mutex.deallocate()
  }

  var isClosed: Bool { closed.load(ordering: .acquiring) }

  func ring() {
    unsafe pthread_mutex_lock(mutex)
    isRung = true
    if waiting > 0 { unsafe pthread_cond_signal(condition) }
    unsafe pthread_mutex_unlock(mutex)
  }

  func close() {
    unsafe pthread_mutex_lock(mutex)
    closed.store(true, ordering: .releasing)
    unsafe pthread_cond_broadcast(condition)
    unsafe pthread_mutex_unlock(mutex)
  }

  /// Takes the flag when it is set; false when the bell is closed.
  func wait() -> Bool {
    unsafe pthread_mutex_lock(mutex)
    waiting &+= 1
    while !isRung, !isClosed { unsafe pthread_cond_wait(condition, mutex) }
    waiting &-= 1
    isRung = false
    unsafe pthread_mutex_unlock(mutex)
    return !isClosed
  }
}
