// SPDX-License-Identifier: Apache-2.0
//
// Reports a failure of the program itself: a fault, a Swift trap, abort(3), or a forbidden system
// call. The report goes to standard error and to martlet-crash-PID.txt.
//
//     CrashReporter.install()      // before there are threads; RawTerminal's handlers call it then
//
// All of it runs in a signal handler: it must not allocate or take locks, and calls only C
// functions that signal-safety(7) lists. A fault during a report ends the report and the program.

import CHost
import Glibc
import Host
import Synchronization
import SystemPackage
import X86

package enum CrashReporter {
  /// How a report's file is opened: a new file, or none.
  package static let reportFlags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC

  /// The open folder for reports; nil: none. Set before there are threads.
  nonisolated(unsafe) package static var reportDirectory: Int32?
  nonisolated(unsafe) private static var symbols: SymbolTable?
  nonisolated(unsafe) private static var model = unsafe UnsafePointer<CChar>(strdup("unknown")!)
  nonisolated(unsafe) private static var program = unsafe UnsafePointer<CChar>(strdup("martlet")!)

  /// The thread that is reporting, or has reported.
  private static let reporting = Atomic<UInt>(0)

  nonisolated(unsafe) private static let exitNames: UnsafeMutablePointer<UnsafePointer<CChar>?> = {
    let names = UnsafeMutablePointer<UnsafePointer<CChar>?>.allocate(capacity: ExitCause.count)
    for (number, cause) in ExitCause.allCases.enumerated() {
      let copy = unsafe strdup(cause.name)
      unsafe (names + number).initialize(to: copy.map { unsafe UnsafePointer($0) })
    }
    return unsafe names
  }()

  private static let signals: [(number: Int32, name: StaticString)] = [
    (SIGILL, "SIGILL"), (SIGTRAP, "SIGTRAP"), (SIGABRT, "SIGABRT"), (SIGBUS, "SIGBUS"),
    (SIGFPE, "SIGFPE"), (SIGSEGV, "SIGSEGV"), (SIGSYS, "SIGSYS"),
  ]

  /// Prepares the data for reports.
  ///
  /// - Parameter program: its name and version.
  private static func prepare(program text: String) {
    ReportWriter.prepare()
    _ = unsafe exitNames
    _ = unsafe CrashRecords.table
    _ = signals.count
    _ = reporting.load(ordering: .relaxed)
    if let copy = unsafe strdup(text) { unsafe program = unsafe UnsafePointer(copy) }
    if let copy = unsafe strdup(processorModel()) { unsafe model = unsafe UnsafePointer(copy) }
    unsafe symbols = unsafe SymbolTable(anchor: UnsafeRawPointer(reportSymbol))
  }

  /// For another program's process: takes neither a descriptor nor a stack. The signal handlers
  /// call `report`.
  package static func prepareForClient(program: String) {
    prepare(program: program)
    unsafe reportDirectory = AT_FDCWD
  }

  /// The current folder, or the one for temporary files.
  private static func openDirectory() -> Int32? {
    let temporary = unsafe getenv("TMPDIR").map { unsafe String(cString: $0) } ?? "/tmp"
    for path in [".", temporary] where unsafe access(path, W_OK) == 0 {
      let directory = unsafe open(path, O_DIRECTORY | O_RDONLY | O_CLOEXEC)
      if directory >= 0 { return directory }
    }
    return nil
  }

  /// Reports the fatal signals that `RawTerminal` handles.
  package static func install(program: String) {
    prepare(program: program)
    unsafe reportDirectory = openDirectory()
    prepareThread()
    unsafe RawTerminal.reporter = { number, information, context in
      unsafe CrashReporter.report(number, information, context)
    }
  }

  /// An address in this program or library.
  private static var reportSymbol: UnsafeRawPointer {
    unsafe unsafeBitCast(
      { number in _ = number } as @convention(c) (Int32) -> Void, to: unsafe UnsafeRawPointer.self)
  }

  private static func processorModel() -> String {
    let text = (try? contentsOfFile("/proc/cpuinfo")).map { String(decoding: $0, as: UTF8.self) }
    let line = text?.split(separator: "\n").first { $0.hasPrefix("model name") }
    return line.flatMap { $0.split(separator: ":", maxSplits: 1).last }
      .map { String($0.drop { $0 == " " }) } ?? "unknown"
  }

  private static let alternateSize = 64 << 10

  /// Gives the calling thread a stack for handlers, so that stack overflows are reported, too.
  package static func prepareThread() {
    guard let memory = try? Mapping(anonymous: alternateSize, guards: true) else { return }
    var stack = unsafe stack_t()
    unsafe stack.ss_sp = unsafe memory.address
    unsafe stack.ss_size = alternateSize
    unsafe sigaltstack(&stack, nil)
    memory.keep()
  }

  /// Writes a signal's report. Called in the signal's handler.
  package static func report(
    _ number: Int32, _ information: UnsafeMutablePointer<siginfo_t>?,
    _ context: UnsafeMutableRawPointer?
  ) {
    guard signals.contains(where: { $0.number == number }) else { return }
    let own = UInt(pthread_self())
    let other = reporting.compareExchange(
      expected: 0, desired: own, ordering: .sequentiallyConsistent)
    if !other.exchanged {
      // A failing report ends here. If another thread is reporting, it ends the process.
      if other.original != own { sleep(2) }
      return
    }
    let file = openReport()
    var report = unsafe Report(
      writer: ReportWriter(error: STDERR_FILENO, file: file), number: number,
      information: information, context: context)
    report.write(hasFile: file >= 0)
    if file >= 0 { close(file) }
  }

  /// -1 if none can be created.
  private static func openReport() -> Int32 {
    guard let reportDirectory = unsafe reportDirectory else { return -1 }
    return unsafe withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 64) { name in
      unsafe writeName(name)
      return Int32(
        truncatingIfNeeded: chost_syscall(
          Int(SYS_openat), Int(reportDirectory), Int(bitPattern: name.baseAddress),
          Int(reportFlags), 0o600, 0, 0))
    }
  }

  /// martlet-crash-PID.txt
  private static func writeName(_ name: UnsafeMutableBufferPointer<UInt8>) {
    let prefix: StaticString = "martlet-crash-"
    let suffix: StaticString = ".txt"
    var used = prefix.utf8CodeUnitCount
    for index in 0..<used { unsafe name[index] = unsafe prefix.utf8Start[index] }
    var divisor: Int32 = 1_000_000_000
    let process = getpid()
    while divisor > 0 {
      if process >= divisor {
        unsafe name[used] = 48 + UInt8(truncatingIfNeeded: process / divisor % 10)
        used += 1
      }
      divisor /= 10
    }
    for index in 0...suffix.utf8CodeUnitCount {
      unsafe name[used + index] =
        unsafe index < suffix.utf8CodeUnitCount ? suffix.utf8Start[index] : 0
    }
  }

  // MARK: For a report

  static func signalName(_ number: Int32) -> StaticString {
    for signal in signals where signal.number == number { return signal.name }
    return "signal"
  }

  static func exitName(_ reason: UInt32) -> UnsafePointer<CChar>? {
    let number = Int(reason & 0xFFFF)
    return unsafe number < ExitCause.count ? exitNames[number] : nil
  }

  static func symbol(_ address: UInt) -> (name: UnsafePointer<CChar>, offset: UInt)? {
    unsafe symbols?.find(address)
  }

  static var programText: UnsafePointer<CChar> { unsafe program }
  static var modelText: UnsafePointer<CChar> { unsafe model }
}
