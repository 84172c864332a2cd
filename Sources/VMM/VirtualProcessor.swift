// SPDX-License-Identifier: Apache-2.0
//
// A vCPU and its thread. The thread goes through these states:
//
//     created ──start──▶ running ──stop, or the guest ends──▶ stopped
//                        │     ▲
//                      pause   waitToEnter returns
//                        ▼     │
//                        paused
//
// Other threads send it requests: they set a bit, then kick the CPU out of the guest; the thread
// checks the bits before each entry.

import CHost
import Host
import KVMClient
import Logging
import Synchronization
import SystemPackage

/// The machine's services for a vCPU's thread.
protocol ProcessorHost: AnyObject, Sendable {
  func access(_ access: PortAccess)
  func access(_ access: MemoryAccess)
  /// Returns when guest code may run.
  func waitToEnter()
  /// A vCPU has exited for the first time.
  func noteFirstExit()
  /// The guest requests a reset of the machine.
  func reboot()
  /// Ends the run. The first outcome counts.
  func end(_ outcome: Outcome)
}

/// A vCPU of a running machine.
final class VirtualProcessor: Sendable {
  enum State: UInt8, AtomicRepresentable {
    case created
    case running
    case paused
    case stopped
  }

  private enum Request {
    static let stop: UInt32 = 1
    static let inspect: UInt32 = 2
    static let pause: UInt32 = 4
  }

  let number: Int
  let cpu: VirtualCPUHandle
  private let state = Atomic<State>(.created)
  private let requests = Atomic<UInt32>(0)
  private let thread = Mutex<ThreadIdentifier?>(nil)
  /// Exits so far. If it does not change for long, the CPU is inspected.
  private let progress = Atomic<UInt64>(0)
  private let halted = Atomic<Bool>(false)
  private let counts = Mutex(ExitCounts())
  private let lastExitText = Mutex("none")
  private let time = Atomic<UInt64>(0)

  init(number: Int, cpu: VirtualCPUHandle) {
    self.number = number
    self.cpu = cpu
  }

  /// Starts the thread.
  func start(_ host: any ProcessorHost) throws(Errno) {
    state.store(.running, ordering: .releasing)
    do throws(Errno) {
      try startThread(host)
    } catch {
      state.store(.stopped, ordering: .releasing)
      throw error
    }
  }

  private func startThread(_ host: any ProcessorHost) throws(Errno) {
    _ = try HostThread(name: "vcpu\(number)") { [self] in
      thread.withLock { $0 = .current }
      host.waitToEnter()
      run(host)
      thread.withLock { $0 = nil }
      state.store(.stopped, ordering: .releasing)
    }
  }

  /// Asks the thread to exit the guest and end.
  func stop() { request(Request.stop) }

  /// Asks the thread to exit the guest and wait until it may enter again.
  func pause() { request(Request.pause) }

  /// Whether the thread is waiting after `pause`.
  var isPaused: Bool { state.load(ordering: .acquiring) == .paused }

  /// Asks the thread to check whether its CPU can still continue; see `isHaltedForEver`.
  func inspect() {
    halted.store(false, ordering: .releasing)
    request(Request.inspect)
  }

  private func request(_ bits: UInt32) {
    requests.bitwiseOr(bits, ordering: .sequentiallyConsistent)
    // The thread clears `thread` under the lock before it ends, and a thread that has not started
    // yet checks its requests first.
    thread.withLock { if let thread = $0 { cpu.kick(thread) } }
  }

  var exitsSoFar: UInt64 { progress.load(ordering: .relaxed) }

  /// The result of the last inspection.
  var isHaltedForEver: Bool { halted.load(ordering: .acquiring) }

  /// Nanoseconds of host CPU time that the thread has used, once it has stopped.
  var processorTime: UInt64 { time.load(ordering: .acquiring) }

  /// Exits by reason. Complete when the thread has stopped.
  var exitCounts: ExitCounts { counts.withLock { $0 } }

  // MARK: The thread

  private func run(_ host: any ProcessorHost) {
    var counts = ExitCounts()
    var lastExit: Exit?
    let traces = log.logLevel <= .trace
    log.debug("CPU \(number) starts")
    defer {
      log.debug("CPU \(number) ends after \(counts.total) exits")
      time.store(HostClock.threadCPU(), ordering: .releasing)
      self.counts.withLock { $0 = counts }
      lastExitText.withLock { $0 = lastExit?.description ?? "none" }
    }
    while true {
      let requests = self.requests.exchange(0, ordering: .sequentiallyConsistent)
      if requests & Request.stop != 0 { return }
      if requests & Request.inspect != 0 { look() }
      if requests & Request.pause != 0 {
        state.store(.paused, ordering: .releasing)
        host.waitToEnter()
        state.store(.running, ordering: .releasing)
        continue
      }
      do throws(Errno) {
        let exit = try cpu.run()
        counts.count(exit)
        if counts.total == 1 { host.noteFirstExit() }
        if case .interrupted = exit { continue }
        if traces { log.trace("CPU \(number): \(exit)") }
        progress.store(counts.total, ordering: .relaxed)
        guard !handle(exit, host, lastExit) else { return }
        lastExit = exit
      } catch {
        if error == .resourceTemporarilyUnavailable { continue }
        host.end(.failed("CPU \(number): \(error)", report(lastExit)))
        return
      }
    }
  }

  /// Handles an exit; true if the CPU must not enter the guest again.
  private func handle(_ exit: Exit, _ host: any ProcessorHost, _ lastExit: Exit?) -> Bool {
    switch exit {
    case .io(let access): host.access(access)
    case .mmio(let access): host.access(access)
    case .shutdown:
      host.end(.crashed(report(lastExit)))
      return true
    case .systemEvent(let type):
      return systemEvent(type, host, lastExit)
    case .halt, .interrupted, .interruptWindowOpen: break
    case .failEntry, .internalError, .hardware, .unknown, .debug:
      host.end(.failed("CPU \(number): \(exit)", report(lastExit)))
      return true
    }
    return false
  }

  private func systemEvent(_ type: UInt32, _ host: any ProcessorHost, _ lastExit: Exit?) -> Bool {
    switch Int32(bitPattern: type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN: host.end(.poweredOff)
    case KVM_SYSTEM_EVENT_RESET:
      host.reboot()
      return false
    default: host.end(.crashed(report(lastExit)))
    }
    return true
  }

  /// A halted CPU with interrupts off can never continue (nothing here raises NMIs), nor can one
  /// that waits for its start-up message if all others cannot.
  private func look() {
    let waits = (try? cpu.multiprocessorState()).map { Int32(bitPattern: $0) }
    switch waits {
    case KVM_MP_STATE_HALTED:
      let flags = (try? cpu.registers().rflags) ?? 0
      halted.store(flags & 1 << 9 == 0, ordering: .releasing)
    case KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED:
      halted.store(true, ordering: .releasing)
    default: halted.store(false, ordering: .releasing)
    }
  }

  /// Whether the thread is not running (any more).
  var hasStopped: Bool { [.created, .stopped].contains(state.load(ordering: .acquiring)) }

  /// The state of the CPU, when its thread has stopped.
  func report() -> CrashReport {
    CrashReport(cpu, number: number, lastExit: lastExitText.withLock { $0 })
  }

  private func report(_ lastExit: Exit?) -> CrashReport {
    CrashReport(cpu, number: number, lastExit: lastExit?.description ?? "none")
  }
}
