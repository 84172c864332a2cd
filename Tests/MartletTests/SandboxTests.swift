// SPDX-License-Identifier: Apache-2.0
//
// The program confines itself, and reports its own failures. It is made to do what it never does
// (`--misbehave`) in the thread of the event loop and in that of a vCPU.

import CHost
import Defence
import Glibc
import Host
import HostTestSupport
import KernelFiles
import SystemPackage
import Testing

/// Runs `martlet run` in a folder of its own.
private func misbehave(
  _ what: String, _ more: [String] = [], kernel: TinyKernel = .printing("done"),
  folder: String
) throws -> Command.Result {
  let path = try Command.temporaryFile(kernel.bytes)
  defer { unlink(path) }
  // A shell changes the folder: the program's report goes there.
  let program = Command.products + "/martlet"
  let line = "cd \(folder) && exec \(program) \"$@\""
  return try Command.run(
    ["-c", line, "sh", "run", "--engine", "soft", "--kernel", path, "--memory", "32M"] + more
      + (what.isEmpty ? [] : ["--misbehave", what]), path: "/bin/sh")
}

/// A folder of its own, so that crash reports stay in it.
func withFolder<R>(_ body: (String) throws -> R) throws -> R {
  var template = Array("/tmp/martlet-crash-XXXXXX".utf8CString)
  let folder = try #require(mkdtemp(&template).map { String(cString: $0) })
  defer {
    for name in reports(folder) { unlink(folder + "/" + name) }
    rmdir(folder)
  }
  return try body(folder)
}

private func reports(_ folder: String) -> [String] {
  guard let directory = opendir(folder) else { return [] }
  defer { closedir(directory) }
  var names: [String] = []
  while let entry = readdir(directory) {
    let name = withUnsafePointer(to: &entry.pointee.d_name) {
      String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self))
    }
    if name.hasPrefix("martlet-crash-") { names.append(name) }
  }
  return names
}

@Suite struct SandboxTests {
  private static let hasFilter = SystemCallFilter.isAvailable
  private static let hasLandlock = FileAccess.version > 0

  /// Those that end the process, with the system call that the report names.
  @Test(
    .enabled(if: hasFilter),
    arguments: [
      ("exec", "execve"), ("fork", "clone"), ("socket", "socket"), ("ptrace", "ptrace"),
      ("kill", "kill"), ("map", "mprotect"), ("inject", "ioctl"), ("unlink", "unlink"),
    ], ["", "vcpu:"])
  func callsThatAreNotAllowedEndTheProcess(_ call: (what: String, name: String), thread: String)
    throws
  {
    try withFolder { folder in
      let result = try misbehave(thread + call.what, folder: folder)
      #expect(result.status == 128 + SIGSYS)
      #expect(
        result.errors.contains("does not allow the system call \(call.name) ("), "\(result.errors)")
      #expect(!result.errors.contains("allowed\n") && result.output != "done")
      #expect(reports(folder).count == (Self.hasLandlock ? 1 : 0))
    }
  }

  @Test(
    .enabled(if: hasFilter || hasLandlock),
    arguments: ["open", "create", "vcpu:open", "vcpu:create"])
  func filesCannotBeOpened(what: String) throws {
    try withFolder { folder in
      let result = try misbehave(what, folder: folder)
      #expect(result.status == 0 && result.output == "done", "\(result.errors)")
      let error = Self.hasFilter ? EPERM : EACCES
      #expect(result.errors.contains(": error \(error)"), "\(result.errors)")
    }
  }

  @Test func offSwitchesItOff() throws {
    try withFolder { folder in
      for what in ["open", "vcpu:open", "socket"] {
        let result = try misbehave(what, ["--sandbox", "off"], folder: folder)
        #expect(result.status == 0 && result.output == "done")
        #expect(result.errors.contains(": allowed"), "\(result.errors)")
      }
      let unknown = try misbehave("", ["--sandbox", "maybe"], folder: folder)
      #expect(unknown.status == 2 && unknown.errors.contains("give on, required or off"))
      let required = try misbehave("", ["--sandbox", "required"], folder: folder)
      #expect(required.status == (Self.hasFilter && Self.hasLandlock ? 0 : 2))
    }
  }

  /// Every thread of a running machine, the timer's too, is under a filter and can gain no
  /// privileges.
  @Test(.enabled(if: hasFilter)) func noThreadIsOutside() throws {
    let path = try Command.temporaryFile(TinyKernel.spinning.bytes)
    defer { unlink(path) }
    let input = try Pipe()
    let output = try Pipe()
    let process = try Command.start(
      ["run", "--engine", "soft", "--kernel", path, "--memory", "32M", "--cpus", "2"],
      input: input.reader.rawValue, output: output.writer.rawValue, errors: STDERR_FILENO)
    defer {
      kill(process, SIGTERM)
      _ = try? Command.wait(process)
    }
    var byte: UInt8 = 0
    #expect(Glibc.read(output.reader.rawValue, &byte, 1) == 1)  // the guest runs
    let tasks = try #require(opendir("/proc/\(process)/task"))
    defer { closedir(tasks) }
    var count = 0
    while let entry = readdir(tasks) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self))
      }
      guard Int(name) != nil else { continue }
      let status = String(
        decoding: try contentsOfFile("/proc/\(process)/task/\(name)/status"), as: UTF8.self)
      #expect(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "\(status)")
      // The main thread has SIGTERM by a signalfd, so that no other may take it.
      let blocked = status.split(separator: "\n").first { $0.hasPrefix("SigBlk:") }
      let mask = blocked.flatMap { UInt64($0.dropFirst(8), radix: 16) } ?? 0
      #expect(mask & 1 << UInt64(SIGTERM - 1) != 0, "\(status)")
      count += 1
    }
    #expect(count >= 4)  // event loop, timers, two vCPUs
    let limits = String(decoding: try contentsOfFile("/proc/\(process)/limits"), as: UTF8.self)
    let core = limits.split(separator: "\n").first { $0.hasPrefix("Max core file size") }
    #expect(core?.split(separator: " ").suffix(3) == ["0", "0", "bytes"])
    let space = limits.split(separator: "\n").first { $0.hasPrefix("Max address space") }
    #expect(space?.contains("unlimited") == false)
  }
}

@Suite struct CrashReportTests {
  private static let parts = [
    "martlet crash report", "version: martlet", "processor: ", "signal: ", "registers:",
    "backtrace", "Please attach it to a bug report", "RIP ",
  ]

  private func check(
    _ what: String, signal: Int32, name: String, parts: [String], kernel: TinyKernel,
    arguments: [String] = []
  ) throws {
    try withFolder { folder in
      let result = try misbehave(what, arguments, kernel: kernel, folder: folder)
      #expect(result.status == 128 + signal, "\(result.errors)")
      for part in Self.parts + parts + ["signal: " + name] {
        #expect(result.errors.contains(part), "\(part) is not in \(result.errors)")
      }
      #expect(!result.errors.contains("?"))
      guard FileAccess.version > 0 || arguments.contains("off") else { return }
      let files = reports(folder)
      #expect(files.count == 1)
      let file = try #require(files.first)
      let text = String(decoding: try contentsOfFile(folder + "/" + file), as: UTF8.self)
      #expect(text.count > 500 && result.errors.contains(text))
      #expect(text.contains(file.dropLast(4)))
    }
  }

  @Test func faultsOfTheMainThread() throws {
    try check(
      "fault", signal: SIGSEGV, name: "SIGSEGV, code 1, address 0x1234",
      parts: ["thread: martlet", "guest: this thread was in none", "7martlet12MisbehaviourO"],
      kernel: .printing("x"))
  }

  @Test func abortInTheMainThreadWithoutTheSandbox() throws {
    try check(
      "abort", signal: SIGABRT, name: "SIGABRT", parts: ["thread: martlet"], kernel: .printing("x"),
      arguments: ["--sandbox", "off"])
  }

  /// The text's first OUT has just exited: RIP is behind it, or on it for an engine that moves it
  /// later.
  @Test func trapsInAProcessorsThread() throws {
    try check(
      "vcpu:trap", signal: SIGILL, name: "SIGILL",
      parts: [
        "thread: vcpu0", "guest: physical CPU 0, outside of guest code", "guest RIP: 0x10002",
        "ioInstruction at 0x10002", "last exits", "VirtualProcessor",
      ], kernel: .printing("x"))
  }

  @Test func translatedCodeNamesItsBlock() throws {
    try check(
      "vcpu:translated", signal: SIGSEGV, name: "SIGSEGV",
      parts: [
        "thread: vcpu0", "guest: physical CPU 0, in guest code", "the fault is in translated code",
        "of the block at linear address: 0x10002", "bytes of that block: 48 8b 03 48 ff c1",
      ], kernel: .reading, arguments: ["--translator-threshold", "1"])
  }

  /// Also where a vCPU's thread, which may do little, ends the process.
  @Test(arguments: [("vcpu:fault", SIGSEGV), ("vcpu:abort", SIGABRT), ("fault", SIGSEGV)])
  func theTerminalIsRestored(what: String, signal: Int32) throws {
    let path = try Command.temporaryFile(TinyKernel.printing("x").bytes)
    defer { unlink(path) }
    let pair = try PseudoTerminal()
    let before = pair.mode()
    try withFolder { folder in
      let line = "cd \(folder) && exec \(Command.products)/martlet \"$@\""
      let process = try Command.start(
        [
          "-c", line, "sh", "run", "--engine", "soft", "--kernel", path, "--memory", "32M",
          "--misbehave", what,
        ], path: "/bin/sh", input: pair.terminal.rawValue, output: pair.terminal.rawValue,
        errors: pair.terminal.rawValue)
      #expect(try Command.wait(process) == 128 + signal)
      #expect(pair.mode().c_lflag == before.c_lflag && pair.mode().c_oflag == before.c_oflag)
    }
  }

  @Test func nothingIsReportedWhereAUserEndsTheRun() throws {
    let result = try Command.run(["run", "--engine", "soft"])
    #expect(result.status == 0 && !result.errors.contains("crash report"))
  }
}
