// SPDX-License-Identifier: Apache-2.0
//
// Stops a software processor that does not come to an end: a random block may be a loop without
// one, or a translation may make it so. Its guest leaves as by an external interrupt. And disturbs
// them: now and then a guest has to leave in the middle of a block's code and go on, or look at its
// events.

import Foundation
import Synchronization

final class Watchdog: Sendable {
  private let processors: [SoftwareExecutor.Line]
  /// Runs begun and ended: odd while one goes on.
  private let runs = Atomic<UInt64>(0)
  private let running = Atomic<Int>(0)
  private let periods = Atomic<Int>(.max)
  private static let period = 0.05

  /// - Parameter processors: those that `watch` names by index.
  init(_ processors: [SoftwareExecutor.Line]) {
    self.processors = processors
    let watch: @Sendable () -> Bool = { [weak self] in self?.look() ?? false }
    Thread.detachNewThread {
      while watch() { Thread.sleep(forTimeInterval: Self.period) }
    }
    let disturb: @Sendable (Int) -> Bool = { [weak self] in self?.disturb($0) ?? false }
    Thread.detachNewThread {
      var turn = 0
      while disturb(turn) {
        usleep(50)
        turn &+= 1
      }
    }
  }

  private func disturb(_ turn: Int) -> Bool {
    for processor in processors { processor.disturb(leaving: turn & 1 == 0) }
    return true
  }

  private struct Seen {
    var run: UInt64 = 0
    var times = 0
  }
  private let seen = Mutex(Seen())

  private func look() -> Bool {
    let run = runs.load(ordering: .sequentiallyConsistent)
    let isLate = seen.withLock { seen in
      seen.times = run == seen.run && run & 1 != 0 ? seen.times + 1 : 0
      seen.run = run
      return seen.times >= periods.load(ordering: .relaxed)
    }
    if isLate { processors[running.load(ordering: .relaxed)].stop() }
    return true
  }

  /// Has a processor run for at most `seconds`, more or less.
  func watch(_ processor: Int, seconds: Double, _ body: () -> Void) {
    running.store(processor, ordering: .relaxed)
    periods.store(max(2, Int(seconds / Self.period)), ordering: .relaxed)
    runs.add(1, ordering: .sequentiallyConsistent)
    body()
    runs.add(1, ordering: .sequentiallyConsistent)
  }
}
