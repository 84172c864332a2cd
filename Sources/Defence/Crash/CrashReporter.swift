// SPDX-License-Identifier: Apache-2.0
//
// One report when the program itself fails: a fault, a trap of Swift's, abort(3), or a system call
// that the sandbox does not allow. It goes to standard error and to martlet-crash-PID.txt.
//
//     CrashReporter.install()      // before there are threads; RawTerminal's handlers call it then
//
// All of it runs in a signal's handler: nothing allocates, takes a lock or calls more of the C
// library than the calls that signal-safety(7) names. A fault that a report meets ends it, and the
// program.

import CHost
import Glibc
import Host
import Synchronization
import SystemPackage
import X86

package enum CrashReporter {
  /// How a report's file is opened: a new file, or none.
  package static let reportFlags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC

  /// The folder for reports, open; nil: none. Set before there are threads.
  nonisolated(unsafe) package static var reportDirectory: Int32?
  nonisolated(unsafe) private static var symbols: SymbolTable?
  nonisolated(unsafe) private static var model = UnsafePointer<CChar>(strdup("unknown")!)
  nonisolated(unsafe) private static var program = UnsafePointer<CChar>(strdup("martlet")!)

  /// The thread that reports, or did.
  private static let reporting = Atomic<UInt>(0)

  nonisolated(unsafe) private static let exitNames: UnsafeMutablePointer<UnsafePointer<CChar>?> = {
    let names = UnsafeMutablePointer<UnsafePointer<CChar>?>.allocate(capacity: ExitCause.count)
    for (number, cause) in ExitCause.allCases.enumerated() {
      let copy = strdup(cause.name)
      (names + number).initialize(to: copy.map { UnsafePointer($0) })
    }
    return names
  }()

  private static let signals: [(number: Int32, name: StaticString)] = [
    (SIGILL, "SIGILL"), (SIGTRAP, "SIGTRAP"), (SIGABRT, "SIGABRT"), (SIGBUS, "SIGBUS"),
    (SIGFPE, "SIGFPE"), (SIGSEGV, "SIGSEGV"), (SIGSYS, "SIGSYS"),
  ]

  /// Reads what a report needs.
  ///
  /// - Parameter program: its name and version.
  private static func prepare(program text: String) {
    ReportWriter.prepare()
    _ = exitNames
    _ = CrashRecords.table
    _ = signals.count
    _ = reporting.load(ordering: .relaxed)
    if let copy = strdup(text) { program = UnsafePointer(copy) }
    if let copy = strdup(processorModel()) { model = UnsafePointer(copy) }
    symbols = SymbolTable(anchor: UnsafeRawPointer(reportSymbol))
  }

  /// In a program of somebody else's: neither a descriptor nor a stack is taken. Whoever handles
  /// signals calls `report`.
  package static func prepareForClient(program: String) {
    prepare(program: program)
    reportDirectory = AT_FDCWD
  }

  /// The folder that the user is in, or where temporary files go.
  private static func openDirectory() -> Int32? {
    let temporary = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
    for path in [".", temporary] where access(path, W_OK) == 0 {
      let directory = open(path, O_DIRECTORY | O_RDONLY | O_CLOEXEC)
      if directory >= 0 { return directory }
    }
    return nil
  }

  /// Has fatal signals reported that `RawTerminal` handles.
  package static func install(program: String) {
    prepare(program: program)
    reportDirectory = openDirectory()
    prepareThread()
    RawTerminal.reporter = { number, information, context in
      CrashReporter.report(number, information, context)
    }
  }

  /// The address of something in this program or library.
  private static var reportSymbol: UnsafeRawPointer {
    unsafeBitCast(
      { number in _ = number } as @convention(c) (Int32) -> Void, to: UnsafeRawPointer.self)
  }

  private static func processorModel() -> String {
    let text = (try? contentsOfFile("/proc/cpuinfo")).map { String(decoding: $0, as: UTF8.self) }
    let line = text?.split(separator: "\n").first { $0.hasPrefix("model name") }
    return line.flatMap { $0.split(separator: ":", maxSplits: 1).last }
      .map { String($0.drop { $0 == " " }) } ?? "unknown"
  }

  private static let alternateSize = 64 << 10

  /// Gives the calling thread a stack for handlers, so that one that overflows its own is reported
  /// too.
  package static func prepareThread() {
    guard let memory = try? Mapping(anonymous: alternateSize, guards: true) else { return }
    var stack = stack_t()
    stack.ss_sp = memory.address
    stack.ss_size = alternateSize
    sigaltstack(&stack, nil)
    memory.keep()
  }

  /// Writes the report of a signal; in its handler.
  package static func report(
    _ number: Int32, _ information: UnsafeMutablePointer<siginfo_t>?,
    _ context: UnsafeMutableRawPointer?
  ) {
    guard signals.contains(where: { $0.number == number }) else { return }
    let own = UInt(pthread_self())
    let other = reporting.compareExchange(
      expected: 0, desired: own, ordering: .sequentiallyConsistent)
    if !other.exchanged {
      // A report that fails itself ends here. Another thread's ends the process.
      if other.original != own { sleep(2) }
      return
    }
    let file = openReport()
    var report = Report(
      writer: ReportWriter(error: STDERR_FILENO, file: file), number: number,
      information: information, context: context)
    report.write(hasFile: file >= 0)
    if file >= 0 { close(file) }
  }

  /// -1 where there can be none.
  private static func openReport() -> Int32 {
    guard let reportDirectory else { return -1 }
    return withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 64) { name in
      writeName(name)
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
    for index in 0..<used { name[index] = prefix.utf8Start[index] }
    var divisor: Int32 = 1_000_000_000
    let process = getpid()
    while divisor > 0 {
      if process >= divisor {
        name[used] = 48 + UInt8(truncatingIfNeeded: process / divisor % 10)
        used += 1
      }
      divisor /= 10
    }
    for index in 0...suffix.utf8CodeUnitCount {
      name[used + index] = index < suffix.utf8CodeUnitCount ? suffix.utf8Start[index] : 0
    }
  }

  // MARK: For a report

  static func signalName(_ number: Int32) -> StaticString {
    for signal in signals where signal.number == number { return signal.name }
    return "signal"
  }

  static func exitName(_ reason: UInt32) -> UnsafePointer<CChar>? {
    let number = Int(reason & 0xFFFF)
    return number < ExitCause.count ? exitNames[number] : nil
  }

  static func symbol(_ address: UInt) -> (name: UnsafePointer<CChar>, offset: UInt)? {
    symbols?.find(address)
  }

  static var programText: UnsafePointer<CChar> { program }
  static var modelText: UnsafePointer<CChar> { model }
}
