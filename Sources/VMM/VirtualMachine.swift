// SPDX-License-Identifier: Apache-2.0
//
// A built machine and its run: vCPU threads run the guest, the calling thread runs the event loop.
//
//     let machine = try VirtualMachine.make(configuration, engine: engine)
//     let outcome = try machine.run(input: STDIN_FILENO)

import CHost
import Devices
import Glibc
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import Synchronization
import SystemPackage

/// A machine that runs once, but whose guest may restart any number of times.
@safe package final class VirtualMachine: Sendable {
  /// Mapped as long as the machine lives.
  private let memory: GuestMemory
  private let machine: MachineHandle
  let board: Board
  let processors: [VirtualProcessor]
  private let engine: Engine
  private let initialState: InitialState
  private let started = HostClock.monotonic()
  /// Whether vCPUs may run guest code.
  private let mayEnter = Atomic<Bool>(false)
  private let firstExit = unsafe Mutex<(@Sendable (UnsafeMutableRawBufferPointer) -> Void)?>(nil)

  init(
    memory: GuestMemory, machine: MachineHandle, board: Board, processors: [VirtualCPUHandle],
    engine: Engine, initialState: InitialState
  ) {
    self.initialState = initialState
    self.memory = memory
    self.machine = machine
    self.board = board
    self.processors = processors.enumerated().map { VirtualProcessor(number: $0, cpu: $1) }
    self.engine = engine
  }

  /// Builds a machine whose serial port writes to a descriptor.
  package static func make(
    _ configuration: Configuration, engine: Engine, output: Int32 = STDOUT_FILENO
  ) throws(RunError) -> VirtualMachine {
    try MachineBuilder.build(configuration, engine, output: output)
  }

  /// Runs the machine to its end. Afterwards the terminal is restored, all vCPU threads have
  /// stopped and all of the guest's output is written.
  ///
  /// - Parameter input: the input of the guest's serial port: a terminal (in raw mode during
  ///   the run), a pipe or a file.
  package func run(
    input: Int32 = STDIN_FILENO, hooks: RunHooks = RunHooks()
  ) throws(RunError) -> Outcome {
    unsafe firstExit.withLock { unsafe $0 = unsafe hooks.firstExit }
    var outcome: Outcome
    do throws(Errno) {
      // Signals first: the threads inherit the signal mask.
      let isTerminal = RawTerminal.isTerminal(input)
      let loop = try MainLoop(self, input: input, isTerminal: isTerminal)
      let terminal = isTerminal ? try RawTerminal(descriptor: input) : nil
      try start()
      try hooks.confine?()
      hooks.confined?()
      mayEnter.store(true, ordering: .releasing)
      outcome = try loop.run()
      try stop()
      board.console.flush()
      _ = consume terminal
    } catch {
      try? stop()
      throw RunError("cannot run the machine: \(error)", status: ExitStatus.engineFailed)
    }
    engine.transport.finishReports()
    if case .halted = outcome, let first = processors.first { outcome = .halted(first.report()) }
    return outcome
  }

  /// Blocks the signals that the event loop handles; for threads that start before the loop blocks
  /// them.
  package static func blockSignals() {
    var mask = sigset_t()
    unsafe sigemptyset(&mask)
    for number in MainLoop.signals { unsafe sigaddset(&mask, number) }
    unsafe pthread_sigmask(SIG_BLOCK, &mask, nil)
  }

  private func start() throws(Errno) {
    try board.start()
    for processor in processors { try processor.start(self) }
  }

  /// Stops all CPUs, then the devices, and joins their threads.
  private func stop() throws(Errno) {
    for processor in processors { processor.stop() }
    mayEnter.store(true, ordering: .releasing)
    try wait { processors.allSatisfy(\.hasStopped) }
    board.stop()
  }

  private static let stopLimit: UInt64 = 10_000_000_000

  /// Restarts the guest: stops all CPUs and resets them, the chips, the devices and memory.
  ///
  /// - Returns: the end of the run, if the guest cannot restart.
  func restart() throws(Errno) -> Outcome? {
    mayEnter.store(false, ordering: .releasing)
    for processor in processors { processor.pause() }
    try wait { processors.allSatisfy { $0.isPaused || $0.hasStopped } }
    // A stopped CPU has an outcome, which ends the run.
    if let outcome = board.control.result { return outcome }
    board.reset()
    try wait { board.isIdle }
    memory.clear()
    do throws(RunError) {
      try initialState.restore(machine, processors.map(\.cpu), memory)
    } catch {
      return .failed("the guest cannot be restarted: \(error)", nil)
    }
    mayEnter.store(true, ordering: .releasing)
    try wait { !processors.contains(where: \.isPaused) }
    return nil
  }

  /// Stops the CPUs or lets them go on, without waiting for them.
  func setHeld(_ isHeld: Bool) {
    mayEnter.store(!isHeld, ordering: .releasing)
    if isHeld { for processor in processors { processor.pause() } }
  }

  private func wait(_ isDone: () -> Bool) throws(Errno) {
    let limit = HostClock.monotonic() + Self.stopLimit
    while !isDone() {
      guard HostClock.monotonic() < limit else { throw .timedOut }
      usleep(100)
    }
  }

  /// The text for `--stats`.
  package var statistics: String {
    var exits = ExitCounts()
    for processor in processors { exits.add(processor.exitCounts) }
    let elapsed = HostClock.monotonic() - started
    var usage = rusage()
    unsafe getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
    var lines = [
      "time: \(Self.rounded(Double(elapsed) / 1e9)) s wall, "
        + "\(Self.rounded(seconds(usage.ru_utime))) s user, "
        + "\(Self.rounded(seconds(usage.ru_stime))) s system",
      "memory: \(usage.ru_maxrss >> 10) MiB resident at most, "
        + "\(memory.residentBytes >> 20) MiB the guest's",
      "exits to user space: \(exits.total)",
    ]
    lines.insert(contentsOf: board.balloonLines, at: 2)
    lines += exits.rows.map { "  \($0.name): \($0.value)" }
    let counts = engine.transport.statistics()
    lines += counts.map { "\($0.name): \($0.value)" }
    let used = processors.reduce(UInt64(0)) { $0 &+ $1.processorTime }
    if used > 0, let retired = counts.first(where: { $0.name == KVMStatistic.instructions }) {
      let millions = Double(retired.value) / 1e6
      lines.append("MIPS: \(Self.rounded(millions / (Double(used) / 1e9))) of vCPU thread time")
    }
    return lines.joined(separator: "\n")
  }

  private static func rounded(_ value: Double) -> Double { (value * 1000).rounded() / 1000 }
}

extension VirtualMachine: ProcessorHost {
  func access(_ access: PortAccess) {
    for index in 0..<access.count {
      let data = unsafe access.data + index * access.width
      if access.isWrite {
        unsafe board.ports.write(
          UInt64(access.port), width: access.width, value: Self.load(data, access.width))
      } else {
        let value = board.ports.read(UInt64(access.port), width: access.width)
        unsafe Self.store(value, data, access.width)
      }
    }
  }

  func access(_ access: MemoryAccess) {
    if access.isWrite {
      unsafe board.memoryMapped.write(
        access.address, width: access.width, value: Self.load(access.data, access.width))
    } else {
      let value = board.memoryMapped.read(access.address, width: access.width)
      unsafe Self.store(value, access.data, access.width)
    }
  }

  func waitToEnter() {
    // A disk without room may take long.
    var pause: UInt32 = 50
    while !mayEnter.load(ordering: .acquiring) {
      usleep(pause)
      pause = min(pause &* 2, 20_000)
    }
  }

  func noteFirstExit() {
    guard let hook = unsafe firstExit.withLock({ unsafe $0 }), let region = memory.regions.first
    else { return }
    unsafe hook(UnsafeMutableRawBufferPointer(start: region.hostAddress, count: Int(region.size)))
  }

  func reboot() { board.control.reboot() }

  func end(_ outcome: Outcome) { board.control.end(outcome) }

  private static func load(_ data: UnsafeMutableRawPointer, _ width: Int) -> UInt64 {
    var value: UInt64 = 0
    unsafe withUnsafeMutableBytes(of: &value) {
      unsafe $0.copyMemory(from: UnsafeRawBufferPointer(start: data, count: min(width, 8)))
    }
    return value
  }

  private static func store(_ value: UInt64, _ data: UnsafeMutableRawPointer, _ width: Int) {
    unsafe withUnsafeBytes(of: value) {
      unsafe data.copyMemory(
        from: $0.baseAddress ?? UnsafeRawPointer(data), byteCount: min(width, 8))
    }
  }
}
