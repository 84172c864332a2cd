// SPDX-License-Identifier: Apache-2.0
//
// A physical CPU's counts for its guest: instructions and branches retired, and time, by ring. A
// hypervisor builds performance counters from them. The processor itself has none.
//
// Counting time costs nothing, because only its ends are read. Only the interpreter counts
// instructions, branches, and time by ring (`SlowReason.counting`): it runs blocks one by one and
// adds up after each. Close to a limit it runs instructions one by one, so that the guest exits (as
// if kicked) right after the instruction that reaches it.
//
//     cpu.startCounting(instructions: true, limits)
//     ...                                        // VM entries and exits
//     let counts = cpu.takeCounts()              // since the last time
//     cpu.stopCounting()

import X86

/// A count of each ring: CPL 0, and those above.
package struct RingCounts: Sendable, Equatable {
  package var supervisor: UInt64 = 0
  package var user: UInt64 = 0

  package init() {}

  package var sum: UInt64 { supervisor &+ user }

  @inline(__always) mutating func add(_ count: UInt64, isUser: Bool) {
    if isUser { user &+= count } else { supervisor &+= count }
  }
}

/// Counts at which the guest must exit.
package struct RingLimits: Sendable {
  package var supervisor: UInt64 = .max
  package var user: UInt64 = .max
  /// For the sum of both.
  package var both: UInt64 = .max

  package init() {}

  /// The number of further instructions in a ring that reaches a limit.
  @inline(__always) func room(_ counts: RingCounts, isUser: Bool) -> UInt64 {
    let (limit, count) = isUser ? (user, counts.user) : (supervisor, counts.supervisor)
    let sum = counts.sum
    return min(limit > count ? limit &- count : 0, both > sum ? both &- sum : 0)
  }
}

package struct EventLimits: Sendable {
  package var instructions = RingLimits()
  package var branches = RingLimits()
  package init() {}
}

package struct EventCounts: Sendable {
  package var instructions = RingCounts()
  package var branches = RingCounts()
  /// Of the host's time-stamp counter.
  package var ticks = RingCounts()
  /// The ring since `lastChange`.
  var isUser = false
  var lastChange: UInt64 = 0
  /// Steps in `CPUState.retired` of string instructions with more to do.
  var unfinished: UInt64 = 0
  var limits = EventLimits()

  package init() {}

  /// How many instructions may run in a ring before a limit check; a branch counts as one.
  @inline(__always) func room(isUser: Bool) -> UInt64 {
    min(
      limits.instructions.room(instructions, isUser: isUser),
      limits.branches.room(branches, isUser: isUser))
  }

  @inline(__always) mutating func note(_ retired: UInt64, branches taken: UInt64, isUser: Bool) {
    instructions.add(retired, isUser: isUser)
    branches.add(taken, isUser: isUser)
  }

  /// Adds the time since the last call to the ring so far.
  mutating func change(isUser new: Bool) {
    let now = HostTSC.read()
    ticks.add(now &- lastChange, isUser: isUser)
    isUser = new
    lastChange = now
  }
}

extension PhysicalCPU {
  /// Starts counting from 0, or restarts with other limits (call `takeCounts` first).
  ///
  /// - Parameter instructions: count instructions and branches, and time by ring; else only
  ///   time, of both rings together.
  package func startCounting(instructions: Bool, _ limits: EventLimits) {
    counts.pointee = EventCounts()
    counts.pointee.limits = limits
    counts.pointee.isUser = cpu.cpl != 0
    counts.pointee.lastChange = HostTSC.read()
    if instructions {
      cpu.s.pointee.slow |= SlowReason.counting
    } else {
      cpu.s.pointee.slow &= ~SlowReason.counting
    }
  }

  package func stopCounting() { cpu.s.pointee.slow &= ~SlowReason.counting }

  /// The counts since the last call; the limits are then invalid.
  package func takeCounts() -> EventCounts {
    counts.pointee.change(isUser: cpu.cpl != 0)
    let taken = counts.pointee
    counts.pointee = EventCounts()
    counts.pointee.isUser = taken.isUser
    counts.pointee.lastChange = taken.lastChange
    return taken
  }

  /// Counts an instruction that the hypervisor has emulated.
  package func noteRetired(isBranch: Bool = false) {
    guard cpu.isCounting else { return }
    counts.pointee.note(1, branches: isBranch ? 1 : 0, isUser: cpu.cpl != 0)
  }

  /// Whether a limit is reached.
  package var isAtLimit: Bool {
    cpu.isCounting
      && (counts.pointee.room(isUser: false) == 0 || counts.pointee.room(isUser: true) == 0)
  }
}

extension CPU {
  @inline(__always) var isCounting: Bool { s.pointee.slow & SlowReason.counting != 0 }

  /// Runs a block, or one instruction of it, and counts. False if a VM exit is recorded.
  func runCounted(_ block: BlockPointer) -> Bool {
    let counts = owner.counts
    let isUser = cpl != 0
    if counts.pointee.isUser != isUser { counts.pointee.change(isUser: isUser) }
    let room = counts.pointee.room(isUser: isUser)
    if room == 0 {
      owner.kick()
      return true
    }
    // The block must not be read after it runs, as it may have been dropped.
    let length = UInt64(block.pointee.count)
    let endsInBranch = block.pointee.endsInBranch
    let retired = s.pointee.retired
    let unfinished = counts.pointee.unfinished
    s.pointee.slow &= ~SlowReason.marks
    let goesOn: Bool
    if s.pointee.slow != SlowReason.counting {
      goesOn = runSlowly()
    } else if room < length || !is64Bit && !fitsCodeSegment(block) {
      goesOn = runOne(block)
    } else {
      goesOn = interpret(block)
    }
    let done =
      s.pointee.retired &- retired &- (counts.pointee.unfinished &- unfinished)
    // Only a block's last instruction can be a branch.
    counts.pointee.note(
      done, branches: endsInBranch && done == length ? 1 : 0, isUser: isUser)
    return goesOn
  }

  /// A string instruction stops with more to do: `retired` counts the step, but it has not retired.
  func noteUnfinished() { owner.counts.pointee.unfinished &+= 1 }
}
