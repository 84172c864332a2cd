// SPDX-License-Identifier: Apache-2.0
//
// The oracle's work is done by processes of its own, one for each CPU of the host: guest code runs
// on the host's processor with signal handlers, stack pointer and FS base that no other code of a
// process could live with, and a guest instruction that goes astray must not take the test runner
// along.
//
// A worker is this program again, with its settings and a descriptor among its arguments. What the
// descriptor names is shared memory: the number of what the worker is doing, and its report as
// JSON.

import CHost
import Foundation
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

package enum Workers {
  /// First of a worker's arguments; its settings and its descriptor follow.
  package static let argument = "--worker"
  /// A worker that has not come further in so many looks, some two minutes, is killed. Looks and
  /// not a clock: a host that stands still makes no worker late.
  private static let patience = 24_000

  /// Runs what `settings` say in `settings.workers` processes.
  package static func run(_ settings: OracleSettings) throws -> OracleReport {
    var workers: [Worker] = []
    for number in 0..<settings.workers {
      var share = settings
      share.worker = number
      workers.append(try Worker(share))
    }
    var report = OracleReport()
    while !workers.isEmpty {
      usleep(5000)
      workers.removeAll { worker in
        guard let part = worker.report(patience: patience) else { return false }
        report.add(part)
        return true
      }
    }
    report.mismatches = Array(report.mismatches.prefix(settings.maximumMismatches))
    return report
  }

  /// The worker's side. Returns its exit status.
  package static func work(_ arguments: [String]) throws -> Int32 {
    guard arguments.count == 2, let descriptor = Int32(arguments[1]) else { return 64 }
    let settings = try JSONDecoder().decode(OracleSettings.self, from: Data(arguments[0].utf8))
    let progress = try SharedProgress(descriptor)
    let report = try OracleRun(settings, progress: progress).run()
    try progress.write(JSONEncoder().encode(report))
    return 0
  }
}

/// One running worker, as its parent sees it.
private final class Worker {
  private let settings: OracleSettings
  private let progress: SharedProgress
  private var process = pid_t()
  private var seen: UInt64 = 0
  private var looks = 0

  init(_ settings: OracleSettings) throws {
    self.settings = settings
    let descriptor = memfd_create("martlet-oracle", 0)
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    progress = try SharedProgress(descriptor)
    let json = String(decoding: try JSONEncoder().encode(settings), as: UTF8.self)
    let words = [CommandLine.arguments[0], Workers.argument, json, "\(descriptor)"]
    var pointers: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
    defer { for pointer in pointers { free(pointer) } }
    pointers.append(nil)
    // Whoever started this program may have blocked signals.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    let error = posix_spawn(&process, "/proc/self/exe", nil, &attributes, pointers, environ)
    if error != 0 { throw Errno(rawValue: error) }
  }

  /// The report of a worker that has ended; nil while it runs.
  func report(patience: Int) -> OracleReport? {
    var status: Int32 = 0
    let ended = waitpid(process, &status, WNOHANG)
    if ended == 0 {
      let current = progress.current
      if current != seen {
        seen = current
        looks = 0
      } else {
        looks += 1
        if looks > patience { kill(process, SIGKILL) }
      }
      return nil
    }
    if status == 0, let report = try? JSONDecoder().decode(OracleReport.self, from: progress.read())
    {
      return report
    }
    let how = status & 0x7F == 0 ? "with status \(status >> 8)" : "by signal \(status & 0x7F)"
    var report = OracleReport()
    report.differing = 1
    let name = settings.mode == .blocks ? "CASE" : "BATCH"
    report.mismatches = [
      "a worker ended \(how): \(settings.mode.rawValue), MARTLET_ORACLE_SEED=\(settings.seed) "
        + "MARTLET_ORACLE_\(name)=\(progress.current)"
    ]
    return report
  }
}

/// Memory that a worker and its parent share.
package final class SharedProgress: @unchecked Sendable {
  private let descriptor: Int32
  private let word: UnsafeMutablePointer<Atomic<UInt64>>
  private static let reportOffset = 4096

  fileprivate init(_ descriptor: Int32) throws {
    self.descriptor = descriptor
    guard ftruncate(descriptor, off_t(Self.reportOffset)) == 0,
      let map = mmap(
        nil, Self.reportOffset, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0),
      map != MAP_FAILED
    else { throw Errno(rawValue: errno) }
    word = map.assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  deinit {
    munmap(word, Self.reportOffset)
    close(descriptor)
  }

  /// The number of the batch or case that runs.
  package var current: UInt64 {
    get { word.pointee.load(ordering: .relaxed) }
    set { word.pointee.store(newValue, ordering: .relaxed) }
  }

  fileprivate func write(_ data: Data) throws {
    let written = data.withUnsafeBytes {
      pwrite(descriptor, $0.baseAddress, $0.count, off_t(Self.reportOffset))
    }
    if written != data.count { throw Errno.ioError }
  }

  fileprivate func read() -> Data {
    var data = Data()
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = pread(
        descriptor, &buffer, buffer.count, off_t(Self.reportOffset + data.count))
      if count <= 0 { return data }
      data.append(contentsOf: buffer[..<count])
    }
  }
}
