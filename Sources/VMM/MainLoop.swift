// SPDX-License-Identifier: Apache-2.0
//
// The loop of a machine's main thread: typed input, the guest's output, signals, the clock's
// interrupts, registered devices, and the watch for a guest that has halted for good.

import CHost
import Devices
import Glibc
import Host
import Synchronization
import SystemPackage

/// Serves a machine until the run ends.
struct MainLoop: ~Copyable {
  static let signals = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCONT]

  private let machine: VirtualMachine
  private let input: ConsoleInput
  private var watch: HaltWatch
  private var isHeld = false

  /// - Parameter isTerminal: whether the input has escape keys.
  init(_ machine: VirtualMachine, input: Int32, isTerminal: Bool) throws(Errno) {
    signal(SIGPIPE, SIG_IGN)
    // A file that reaches the limit of its size is an error of the write.
    signal(SIGXFSZ, SIG_IGN)
    let board = machine.board
    try Self.register(board, terminal: isTerminal ? input : nil)
    self.machine = machine
    self.input = ConsoleInput(input, isTerminal: isTerminal, board)
    watch = HaltWatch(machine.processors)
  }

  private static func register(_ board: Board, terminal: Int32?) throws(Errno) {
    // The thread that ends the run wakes the loop, which reads the outcome.
    _ = try board.loop.add(board.control.descriptor) { _ in }
    _ = try board.loop.add(board.console.wakeDescriptor) { _ in board.console.flush() }
    let signals = try SharedSignals(Self.signals)
    let shutdown = try Shutdown(board)
    _ = try board.loop.add(signals.file.descriptor.rawValue) { _ in
      guard let number = signals.file.next() else { return }
      switch number {
      case SIGWINCH: resize(board, terminal)
      case SIGCONT: board.hold.hint()
      default: shutdown.take(number)
      }
    }
    _ = try board.loop.add(board.hold.descriptor) { _ in board.hold.consume() }
    resize(board, terminal)
    _ = try board.loop.add(shutdown.timer.descriptor.rawValue) { _ in shutdown.expire() }
    let alarm = try ClockAlarm(board)
    _ = try board.loop.add(alarm.timer.descriptor.rawValue) { _ in alarm.run() }
    _ = try board.loop.add(board.clockChanged.file.descriptor.rawValue) { _ in alarm.run() }
  }

  /// Reports the terminal's size to the guest.
  private static func resize(_ board: Board, _ terminal: Int32?) {
    var size = winsize()
    guard let terminal, unsafe ioctl(terminal, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else {
      return
    }
    board.resizeTerminal(.init(columns: size.ws_col, rows: size.ws_row))
  }

  /// Runs until there is an outcome.
  consuming func run() throws(Errno) -> Outcome {
    while true {
      if let outcome = machine.board.control.result { return outcome }
      if machine.board.control.takeRestart(), let outcome = try machine.restart() {
        return outcome
      }
      let shouldHold = machine.board.hold.isHeld
      if shouldHold != isHeld { machine.setHeld(shouldHold) }
      isHeld = shouldHold
      let patience = try input.update()
      try machine.board.loop.runOnce(timeout: patience ?? watch.interval)
      if patience != nil { input.look() }
      if watch.check() { return .halted(CrashReport.pending) }
    }
  }
}

/// Signals as events, shared by the loop and its handler.
private final class SharedSignals: Sendable {
  let file: SignalFile
  init(_ numbers: [Int32]) throws(Errno) { file = try SignalFile(numbers) }
}

/// A signal's effect on the run. SIGTERM presses the power button if the guest has enabled it, and
/// ends the run when the guest's time is over, or when it comes again; all others end it at once.
private final class Shutdown: Sendable {
  let timer: TimerFile
  private let board: Board
  private let isUnderWay = Atomic<Bool>(false)

  init(_ board: Board) throws(Errno) {
    timer = try TimerFile()
    self.board = board
  }

  func take(_ number: Int32) {
    // A guest that is paused cannot power off.
    guard number == SIGTERM, board.shutdownTime > 0, !board.hold.isHeld,
      !isUnderWay.exchange(true, ordering: .relaxed), board.power.pressPowerButton()
    else { return board.control.end(.signal(number)) }
    do throws(Errno) {
      let limit = UInt64(board.shutdownTime) &* 1_000_000_000
      try timer.arm(at: HostClock.monotonic() &+ limit)
    } catch {
      board.control.end(.signal(number))
    }
  }

  /// The guest has not powered off.
  func expire() {
    timer.consume()
    board.control.end(.signal(SIGTERM))
  }
}

/// The timer of the clock's interrupts.
private final class ClockAlarm: Sendable {
  let timer: TimerFile
  private let board: Board

  init(_ board: Board) throws(Errno) {
    timer = try TimerFile()
    self.board = board
  }

  /// Raises due interrupts, and sets the timer for the next.
  func run() {
    timer.consume()
    board.clockChanged.file.consume()
    var deadline: UInt64?
    if let next = board.clock.runEvents() {
      let now = HostClock.realtime()
      deadline = HostClock.monotonic() &+ (next > now ? next &- now : 0)
    }
    do throws(Errno) {
      try timer.arm(at: deadline)
    } catch {
      board.control.end(.failed("the clock's timer: \(error)", nil))
    }
  }
}
