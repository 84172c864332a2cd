// SPDX-License-Identifier: Apache-2.0
//
// Hostile guests in processes of their own, so that one which ends its monitor is found and named.
// A process has a batch: one hypervisor, interpreter or translator, and machine after machine on
// it.
//
//     martlet-survive [--blocks N | --minutes N] [--seed N]
//     martlet-survive batch SEED [ROUNDS]        one batch again, in this process

import CHost
import Glibc
import Host
import KVMLoopback
import Support
import Synchronization
import SystemPackage
import TestRandom
import X86

struct Survival {
  /// Rounds of a batch, and of a machine.
  private static let rounds = 400
  private static let machineRounds = 40
  /// A batch that has not come further in so many looks, some 60 seconds, hangs.
  private static let patience = 12_000

  // MARK: The parent

  /// Returns the exit status: 1 where a guest ended or held up its monitor.
  static func run(_ arguments: [String]) throws -> Int32 {
    func option(_ name: String) -> UInt64? {
      arguments.firstIndex(of: name).flatMap { arguments.dropFirst($0 + 1).first }
        .flatMap { UInt64($0) }
    }
    let seed = option("--seed") ?? UInt64.random(in: 1...0xFFFF_FFFF)
    let wanted = option("--blocks") ?? (option("--minutes") == nil ? 1_000_000 : .max)
    let end = HostClock.monotonic() &+ (option("--minutes") ?? 10_000) &* 60_000_000_000
    print("survive: seed \(seed)")
    var (blocks, batch, failures) = (0 as UInt64, 0 as UInt64, 0)
    let start = HostClock.monotonic()
    while blocks < wanted, HostClock.monotonic() < end, failures < 8 {
      let number = seed &* 1_000_000 &+ batch
      let progress = try Progress()
      if let how = try runBatch(number, progress) {
        failures += 1
        let rounds = progress.rounds
        print("survive: \(how) in round \(rounds): martlet-survive batch \(number) \(rounds + 1)")
      }
      blocks &+= progress.blocks
      batch += 1
      fflush(nil)
    }
    let seconds = max(1, (HostClock.monotonic() &- start) / 1_000_000_000)
    print(
      "survive: \(blocks) blocks in \(batch) batches, \(seconds) s, \(blocks / seconds) a second, "
        + "seed \(seed): \(failures) failures")
    return failures == 0 ? 0 : 1
  }

  /// How a batch failed; nil where it survived.
  private static func runBatch(_ number: UInt64, _ progress: Progress) throws -> String? {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, progress.descriptor, 3)
    let words = [CommandLine.arguments[0], "batch", "\(number)", "\(rounds)", "3"]
    var pointers: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
    defer { for pointer in pointers { free(pointer) } }
    pointers.append(nil)
    var process = pid_t()
    let error = posix_spawn(&process, "/proc/self/exe", &actions, nil, pointers, environ)
    if error != 0 { throw Errno(rawValue: error) }
    var status: Int32 = 0
    // Looks are counted, not seconds: a host that stands still makes nobody late.
    var (seen, looks) = (UInt64.max, 0)
    while waitpid(process, &status, WNOHANG) == 0 {
      usleep(5000)
      looks = progress.rounds == seen ? looks + 1 : 0
      seen = progress.rounds
      // First so that it tells what its threads do.
      if looks == patience { kill(process, SIGABRT) }
      if looks == patience + patience / 2 { kill(process, SIGKILL) }
    }
    let hangs = looks >= patience
    if hangs { return "a guest cannot be stopped" }
    if status == 0 { return nil }
    return status & 0x7F == 0 ? "status \(status >> 8)" : "signal \(status & 0x7F)"
  }

  // MARK: The child

  /// Runs the first rounds of a batch here.
  static func batch(_ number: UInt64, rounds: Int, descriptor: Int32?) throws -> Int32 {
    let progress = try Progress(descriptor)
    var random = SplitMix(seed: number)
    let translates = !random.oneIn(4)
    let transport = try LoopbackTransport(
      physicalCPUs: 1 + random.below(2), translates: translates, threshold: 1,
      hotEntries: Int32(1 + random.below(4)), codeBytes: 1 << (15 + random.below(6)))
    // It outlives the threads that look at it.
    let memory = try Mapping(anonymous: HostileMemory.size, hugePages: true)
    let watchdog = try HostileWatchdog()
    var done = 0
    while done < rounds {
      let guest = try HostileGuest(transport, seed: random.next(), memory: memory.address)
      watchdog.watch(guest)
      for _ in 0..<min(machineRounds, rounds - done) {
        let blocks = guest.round(seed: random.next())
        progress.add(blocks: blocks)
        done += 1
      }
      watchdog.watch(nil)
    }
    if descriptor == nil {
      for row in transport.statistics() { print("\(row.name): \(row.value)") }
    }
    return 0
  }
}

/// Stops guests that run for too long.
final class HostileWatchdog: Sendable {
  private let guest = Mutex<HostileGuest?>(nil)

  init() throws(Errno) {
    _ = try HostThread(name: "watchdog") { [self] in
      while true {
        usleep(300)
        guest.withLock { $0?.stopLate(now: HostClock.monotonic()) }
      }
    }
  }

  func watch(_ new: HostileGuest?) { guest.withLock { $0 = new } }
}

/// What a batch tells its parent by memory that both share: how far it has come.
final class Progress {
  let descriptor: Int32
  private let words: UnsafeMutablePointer<Atomic<UInt64>>

  /// - Parameter inherited: the parent's; nil for a new one.
  init(_ inherited: Int32? = nil) throws {
    descriptor = inherited ?? memfd_create("martlet-survive", UInt32(MFD_CLOEXEC))
    guard descriptor >= 0, inherited != nil || ftruncate(descriptor, 4096) == 0,
      let map = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0),
      map != MAP_FAILED
    else { throw Errno(rawValue: errno) }
    words = map.assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  deinit {
    munmap(words, 4096)
    close(descriptor)
  }

  var rounds: UInt64 { words[0].load(ordering: .relaxed) }
  var blocks: UInt64 { words[1].load(ordering: .relaxed) }

  func add(blocks: Int) {
    words[1].add(UInt64(blocks), ordering: .relaxed)
    words[0].add(1, ordering: .relaxed)
  }
}
