// SPDX-License-Identifier: Apache-2.0
//
// Guest execution between VM entry and VM exit.
//
//     check requests and slow reasons -> find the block at RIP -> run its micro-ops -> again
//
// A handler's `Step` says how its instruction ended. The loop returns only with a VM exit recorded
// in `CPUState.exit` and `rip` exact. It never blocks and never allocates.

import X86

extension CPU {
  /// Runs the guest until a VM exit is recorded.
  package func runGuest() {
    owner.enterGuestCode()
    let start = s.pointee.native.isMeasured ? HostTSC.read() : 0
    runUntilExit()
    if start != 0 { s.pointee.native.counts.guestTicks &+= HostTSC.read() &- start }
    owner.leaveGuestCode()
  }

  private func runUntilExit() {
    if s.requests != 0 || s.pointee.activity != 0 {
      if !processEvents() { return }
    }
    while true {
      if s.requests != 0 {
        if !processEvents() { return }
      }
      let linear = codeLinear
      let block: BlockPointer
      do throws(GuestException) {
        block = try self.block(at: linear)
      } catch {
        if !take(error) { return }
        continue
      }
      let goesOn: Bool
      if s.pointee.slow != 0 {
        goesOn = isCounting ? runCounted(block) : runSlowly()
      } else if !is64Bit && !fitsCodeSegment(block) {
        goesOn = runOne(block)
      } else {
        goesOn = run(block)
      }
      if !goesOn { return }
    }
  }

  /// Linear address of RIP.
  @inline(__always) var codeLinear: UInt64 {
    is64Bit
      ? s.pointee.rip : (segment(.cs).pointee.base &+ s.pointee.rip) & 0xFFFF_FFFF
  }

  @inline(__always) func fitsCodeSegment(_ block: BlockPointer) -> Bool {
    s.pointee.rip &+ UInt64(block.pointee.length) &- 1 <= UInt64(segment(.cs).pointee.limit)
  }

  /// Runs a block from its start. False if a VM exit is recorded.
  @inline(__always) private func run(_ block: BlockPointer) -> Bool {
    if block.pointee.native != 0 { return runNative(block) }
    block.pointee.heat &-= 1
    if block.pointee.heat == 0 {
      translate(block)
      if block.pointee.native != 0 { return runNative(block) }
    }
    return interpret(block)
  }

  @inline(never) private func translate(_ block: BlockPointer) {
    if block.pointee.watchesBusLock || block.pointee.modeKey & ModeKey.interpreted != 0 { return }
    let start = s.pointee.native.isMeasured ? HostTSC.read() : 0
    owner.translator?.translate(block)
    if start != 0 { s.pointee.native.counts.translatorTicks &+= HostTSC.read() &- start }
  }

  @inline(__always) func interpret(_ block: BlockPointer) -> Bool {
    s.pointee.blockRIP = s.pointee.rip
    let first = block.pointee.ops
    var op = first
    var step: Int32
    repeat {
      s.pointee.running = op
      step = op.pointee.handler(raw, UnsafeMutableRawPointer(op))
      op += 1
    } while step == Step.next
    s.pointee.running = nil
    s.pointee.retired &+= UInt64(op - first)
    if step == Step.branch { return true }
    return finish(step, op - 1)
  }

  /// Runs only the first instruction of a block.
  ///
  /// - Parameter isSlow: events are checked only after the slow end of the instruction.
  func runOne(_ block: BlockPointer, isSlow: Bool = false) -> Bool {
    let op = block.pointee.ops
    if !is64Bit,
      s.pointee.rip &+ UInt64(op.pointee.length) &- 1 > UInt64(segment(.cs).pointee.limit)
    {
      return take(.generalProtection)
    }
    s.pointee.blockRIP = s.pointee.rip
    s.pointee.running = op
    let step = op.pointee.handler(raw, UnsafeMutableRawPointer(op))
    s.pointee.running = nil
    s.pointee.retired &+= 1
    if step == Step.next {
      s.pointee.rip = nextRIP(op)
      return true
    }
    if step == Step.reload, isSlow {
      s.pointee.slow |= SlowReason.reloads
      return true
    }
    return step == Step.branch ? true : finish(step, op)
  }

  /// Runs one instruction with all checks that `slow` requires.
  func runSlowly() -> Bool {
    s.pointee.slow &= ~SlowReason.marks
    let before = s.pointee.slow
    if before & SlowReason.breakpoints != 0 {
      if !beforeSlowInstruction() { return false }
      if s.pointee.slow & SlowReason.delivered != 0 { return true }
    }
    let retired = s.pointee.retired
    let block: BlockPointer
    do throws(GuestException) {
      block = try self.block(at: codeLinear)
    } catch {
      return take(error)
    }
    s.pointee.virtualAPIC.isOpen = true
    s.pointee.virtualAPIC.accessed = .max
    s.pointee.virtualAPIC.hasWritten = false
    let goesOn = runOne(block, isSlow: true)
    s.pointee.virtualAPIC.isOpen = false
    s.pointee.slow &= ~SlowReason.apicAccess
    if !goesOn { return false }
    if s.pointee.retired == retired { return true }
    return afterSlowInstruction(before: before)
  }

  /// Handles the end of a block without a branch.
  @inline(never) func finish(_ step: Int32, _ op: MicroOpPointer) -> Bool {
    switch step {
    case Step.reload:
      return mayHaveEvents ? processEvents() : true
    case Step.trapExit: return false
    case Step.fault:
      s.pointee.retired &-= 1
      s.pointee.rip = currentRIP(op)
      return takePending(op)
    default:
      // A stale block, or the end marker: not an instruction.
      s.pointee.retired &-= 1
      if !is64Bit { s.pointee.rip &= 0xFFFF_FFFF }
      return true
    }
  }

  private func takePending(_ op: MicroOpPointer) -> Bool {
    var exception = GuestException(rawValue: s.pointee.pendingException)
    if exception.rawValue & GuestException.nonCanonicalBit != 0,
      op.pointee.segment == SegmentRegister.ss.rawValue
    {
      exception = .stackFault
    }
    return take(exception)
  }

  /// Delivers an exception at `rip`. False on a VM exit.
  private func take(_ exception: GuestException) -> Bool {
    if exception.isVMExit { return false }
    s.pointee.pendingException = exception.rawValue & ~GuestException.nonCanonicalBit
    return handleFault()
  }
}

extension PhysicalCPU {
  /// How the emulation of one instruction ended.
  package enum EmulationResult: Equatable {
    /// RIP is past it (or still on it, for a repeated string instruction with more to do).
    case completed
    /// The context stopped it; the stopped step had no effect.
    case stopped
    /// It raised an exception, or another VM exit (`isVMExit`, recorded).
    case faulted(GuestException)
    /// It accessed host memory that has vanished (`takeHostFault`).
    case vanished
  }

  /// Executes the instruction at RIP; the context answers accesses that EPT does not map. A
  /// repeated string instruction makes one iteration.
  package func emulate(_ context: any EmulationContext) -> EmulationResult {
    cpu.s.pointee.exit.cause = .none
    do throws(GuestException) {
      return try withContext(context) { () throws(GuestException) in emulateGuarded() }
    } catch {
      return .faulted(error)
    }
  }

  /// Runs `body`; the context answers accesses that EPT does not map.
  package func withContext<R>(
    _ context: any EmulationContext, _ body: () throws(GuestException) -> R
  ) throws(GuestException) -> R {
    emulationContext = context
    cpu.s.pointee.emulation = cpu.raw
    // Cached writable pages are used, so other CPUs must wait until this one learns of code pages.
    enterGuestCode()
    defer {
      leaveGuestCode()
      cpu.s.pointee.emulation = nil
      emulationContext = nil
    }
    return try body()
  }

  /// A recorded cause distinguishes an exit from the context's stop.
  var stoppedOrExit: EmulationResult {
    cpu.s.pointee.exit.cause == .none ? .stopped : .faulted(.vmExit)
  }
}

extension CPU {
  func emulateOne() -> PhysicalCPU.EmulationResult {
    let block: BlockPointer
    do throws(GuestException) {
      block = try self.block(at: codeLinear)
    } catch {
      return error.isVMExit ? owner.stoppedOrExit : .faulted(error)
    }
    let op = block.pointee.ops
    let isBranch = block.pointee.endsInBranch && block.pointee.count == 1
    let rip = s.pointee.rip
    s.pointee.blockRIP = rip
    s.pointee.running = op
    let step = op.pointee.handler(raw, UnsafeMutableRawPointer(op))
    s.pointee.running = nil
    switch step {
    case Step.fault:
      s.pointee.rip = currentRIP(op)
      let exception = GuestException(rawValue: s.pointee.pendingException)
      return exception.isVMExit ? owner.stoppedOrExit : .faulted(exception)
    case Step.next:
      s.pointee.rip = nextRIP(op)
    default: break
    }
    s.pointee.retired &+= 1
    // RIP unchanged: a repeated string instruction with more to do.
    if isBranch || s.pointee.rip != rip { owner.noteRetired(isBranch: isBranch) }
    return .completed
  }
}
