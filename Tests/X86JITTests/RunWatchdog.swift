// SPDX-License-Identifier: Apache-2.0
//
// Ends random programs that have no end: one that stores into its own code may become any other.

import Foundation
import Support
import Synchronization
import X86
import X86CPU

/// Interrupts processors that have run for seconds, so that those who run them look at how far they
/// are.
private final class RunWatchdog: Sendable {
  static let shared = RunWatchdog()

  private struct Run: Sendable {
    let processor: PhysicalCPU
    var seconds = 0
  }

  private let runs = Mutex<[ObjectIdentifier: Run]>([:])

  private init() {
    // A thread of its own: tests block those that tasks run on.
    Thread.detachNewThread { [self] in
      while true {
        sleep(1)
        runs.withLock { runs in
          for key in runs.keys {
            runs[key]?.seconds += 1
            if let run = runs[key], run.seconds > 1 { run.processor.kick() }
          }
        }
      }
    }
  }

  func during<R>(_ processor: PhysicalCPU, _ body: () -> R) -> R {
    let key = ObjectIdentifier(processor)
    runs.withLock { $0[key] = Run(processor: processor) }
    defer { runs.withLock { $0[key] = nil } }
    return body()
  }
}

extension TestMachine {
  /// More instructions than any of the random programs has that ends by itself.
  private static let mostInstructions: UInt64 = 2_000_000

  /// Runs until a VM exit that the program made. False where it seems to have no end; how long the
  /// host takes does not matter.
  func runToItsEnd(from rip: Int) -> Bool {
    cpu.s.pointee.rip = UInt64(rip)
    cpu.s.pointee.retired = 0
    repeat {
      let reason = RunWatchdog.shared.during(processor) { run() }
      // An interrupt may also be left from the run before.
      if reason != .externalInterrupt { return true }
    } while cpu.s.pointee.retired < Self.mostInstructions
    return false
  }
}
