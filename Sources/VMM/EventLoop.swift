// SPDX-License-Identifier: Apache-2.0
//
// Everything that is not guest code runs here, on one thread: what the user types, what the guest
// prints, signals, the clock's interrupts, and the watch for a guest that has halted for ever.

import Devices
import Glibc
import Host
import SystemPackage

/// Waits for events until the run is to end.
struct EventLoop: ~Copyable {
  private enum Token: UInt64 {
    case control
    case console
    case clock
    case clockChanged
    case signal
    case input
  }

  static let signals = [SIGINT, SIGTERM, SIGHUP, SIGQUIT]
  /// The serial port takes no more input before the guest has read some.
  private static let inputBacklog = 4096
  private static let inputChunk = 1024
  /// Milliseconds between looks at input that cannot be waited for.
  private static let inputInterval: Int32 = 10

  private let machine: VirtualMachine
  private let poller: Poller
  private let signalFile: SignalFile
  private let clockTimer: TimerFile
  private let input: Int32

  private var keys = EscapeKeys()
  private var inputIsOpen = true
  /// The poller waits for input: it is no plain file, and the guest keeps up.
  private var inputIsPolled = false
  private var inputCanBePolled = true
  private var watch: HaltWatch

  init(_ machine: VirtualMachine, input: Int32) throws(Errno) {
    let board = machine.board
    let poller = try Poller()
    let signalFile = try SignalFile(Self.signals)
    let clockTimer = try TimerFile()
    try poller.add(board.control.descriptor, token: Token.control.rawValue)
    try poller.add(board.console.wakeDescriptor, token: Token.console.rawValue)
    try poller.add(clockTimer.descriptor.rawValue, token: Token.clock.rawValue)
    try poller.add(
      board.clockChanged.file.descriptor.rawValue, token: Token.clockChanged.rawValue)
    try poller.add(signalFile.descriptor.rawValue, token: Token.signal.rawValue)
    signal(SIGPIPE, SIG_IGN)
    self.machine = machine
    self.poller = poller
    self.signalFile = signalFile
    self.clockTimer = clockTimer
    self.input = input
    watch = HaltWatch(machine.processors)
  }

  /// Runs until an outcome is there.
  consuming func run(isTerminal: Bool) throws(Errno) -> Outcome {
    while true {
      if let outcome = machine.board.control.result { return outcome }
      try updateInput()
      let waiting = inputIsOpen && !inputIsPolled
      var tokens: [UInt64] = []
      try poller.wait(timeout: waiting ? Self.inputInterval : watch.interval) { token, _ in
        tokens.append(token)
      }
      for token in tokens { try handle(Token(rawValue: token), isTerminal) }
      if waiting, !inputCanBePolled { readInput(isTerminal) }
      if watch.check() { return .halted(CrashReport.pending) }
    }
  }

  private mutating func handle(_ token: Token?, _ isTerminal: Bool) throws(Errno) {
    switch token {
    case .console: machine.board.console.flush()
    case .clock:
      clockTimer.consume()
      try runClock()
    case .clockChanged:
      machine.board.clockChanged.file.consume()
      try runClock()
    case .signal:
      if let number = signalFile.next() { machine.board.control.end(.signal(number)) }
    case .input: readInput(isTerminal)
    case .control, nil: break
    }
  }

  /// The clock's interrupts that are due, and the timer for the next.
  private func runClock() throws(Errno) {
    guard let next = machine.board.clock.runEvents() else { return try clockTimer.arm(at: nil) }
    let now = HostClock.realtime()
    let wait = next > now ? next - now : 0
    try clockTimer.arm(at: HostClock.monotonic() + wait)
  }

  /// Polls the input while the guest keeps up with it.
  private mutating func updateInput() throws(Errno) {
    guard inputCanBePolled else { return }
    let wanted = inputIsOpen && machine.board.serial.pendingInput < Self.inputBacklog
    guard wanted != inputIsPolled else { return }
    do throws(Errno) {
      if wanted {
        try poller.add(input, token: Token.input.rawValue)
      } else {
        try poller.remove(input)
      }
      inputIsPolled = wanted
    } catch {
      switch error {
      case .notPermitted: inputCanBePolled = false  // a plain file is always ready
      case .badFileDescriptor: inputIsOpen = false
      default: throw error
      }
    }
  }

  private mutating func readInput(_ isTerminal: Bool) {
    guard inputIsOpen, machine.board.serial.pendingInput < Self.inputBacklog else { return }
    var chunk = [UInt8](repeating: 0, count: Self.inputChunk)
    let count = chunk.withUnsafeMutableBytes { (try? Host.read(input, into: $0)) ?? 0 }
    guard count > 0 else {
      inputIsOpen = false
      if inputIsPolled { try? poller.remove(input) }
      inputIsPolled = false
      return
    }
    guard isTerminal else { return machine.board.serial.receive(chunk[..<count]) }
    var typed: [UInt8] = []
    for event in keys.take(chunk[..<count]) {
      switch event {
      case .input(let byte): typed.append(byte)
      case .quit: machine.board.control.end(.quit)
      case .help: writeText(STDERR_FILENO, "\r\nmartlet: \(EscapeKeys.help)\r\n")
      }
    }
    machine.board.serial.receive(typed)
  }
}

/// Finds out when nothing can ever happen in the guest again. When no CPU came out of the guest for
/// a while, each is asked to look at itself; as long as one can go on, the next look is later.
struct HaltWatch {
  private static let shortest: Int32 = 500
  private static let longest: Int32 = 16_000

  private let processors: [VirtualProcessor]
  /// Milliseconds between looks.
  private(set) var interval = Self.shortest
  private var exits: UInt64 = .max
  private var next = HostClock.monotonic()
  private var inspected = false

  init(_ processors: [VirtualProcessor]) { self.processors = processors }

  /// Looks when it is time; true when all CPUs have halted for ever.
  mutating func check() -> Bool {
    let now = HostClock.monotonic()
    guard now >= next else { return false }
    next = now + UInt64(interval) * 1_000_000
    let exits = processors.reduce(UInt64(0)) { $0 &+ $1.exitsSoFar }
    defer { self.exits = exits }
    guard exits == self.exits else {
      (inspected, interval) = (false, Self.shortest)
      return false
    }
    if inspected {
      if processors.allSatisfy(\.isHaltedForEver) { return true }
      interval = min(interval * 2, Self.longest)
    }
    inspected = true
    for processor in processors { processor.inspect() }
    return false
  }
}
