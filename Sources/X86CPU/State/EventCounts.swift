// SPDX-License-Identifier: Apache-2.0
//
// What a physical CPU has done in its guest: instructions and branches retired, and time, by ring.
// A hypervisor makes performance counters of them. The processor itself has none.
//
// Time costs nothing while it is counted, as only its ends are looked at. Instructions and
// branches, and time by ring, are counted by the interpreter alone (`SlowReason.counting`): blocks
// are then run one by one, with their sum taken after each. Before a limit is reached, instructions
// are run one by one, so that the guest leaves (as if kicked) right behind the instruction that
// reaches it.
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

/// Counts at which the guest is to leave.
package struct RingLimits: Sendable {
  package var supervisor: UInt64 = .max
  package var user: UInt64 = .max
  /// Of both together.
  package var both: UInt64 = .max

  package init() {}

  /// How many more in a ring reach a limit.
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
  /// Steps that `CPUState.retired` has counted of string instructions that had more to do.
  var unfinished: UInt64 = 0
  var limits = EventLimits()

  package init() {}

  /// How many instructions may be run in a ring before a look at the limits: a branch is one.
  @inline(__always) func room(isUser: Bool) -> UInt64 {
    min(
      limits.instructions.room(instructions, isUser: isUser),
      limits.branches.room(branches, isUser: isUser))
  }

  @inline(__always) mutating func note(_ retired: UInt64, branches taken: UInt64, isUser: Bool) {
    instructions.add(retired, isUser: isUser)
    branches.add(taken, isUser: isUser)
  }

  /// Takes the time since the last call as that of the ring so far.
  mutating func change(isUser new: Bool) {
    let now = HostTSC.read()
    ticks.add(now &- lastChange, isUser: isUser)
    isUser = new
    lastChange = now
  }
}

extension PhysicalCPU {
  /// Starts to count from 0, or goes on with other limits and from 0 (what was counted is in
  /// `takeCounts` before).
  ///
  /// - Parameter instructions: instructions and branches are counted, and time by ring; else time
  ///   alone, of both rings together.
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

  /// What was counted since the last call; the limits then no longer stand.
  package func takeCounts() -> EventCounts {
    counts.pointee.change(isUser: cpu.cpl != 0)
    let taken = counts.pointee
    counts.pointee = EventCounts()
    counts.pointee.isUser = taken.isUser
    counts.pointee.lastChange = taken.lastChange
    return taken
  }

  /// Counts an instruction that the hypervisor has done in the guest's place.
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

  /// Runs a block, or one instruction of it, and counts what it did. False where a VM exit is
  /// recorded.
  func runCounted(_ block: BlockPointer) -> Bool {
    let counts = owner.counts
    let isUser = cpl != 0
    if counts.pointee.isUser != isUser { counts.pointee.change(isUser: isUser) }
    let room = counts.pointee.room(isUser: isUser)
    if room == 0 {
      owner.kick()
      return true
    }
    // Dropped while it runs, the block may not be looked at any more.
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
    // Nothing but a block's last instruction is a branch.
    counts.pointee.note(
      done, branches: endsInBranch && done == length ? 1 : 0, isUser: isUser)
    return goesOn
  }

  /// A string instruction leaves with more to do: `retired` counts the step, but it has not
  /// retired.
  func noteUnfinished() { owner.counts.pointee.unfinished &+= 1 }
}
