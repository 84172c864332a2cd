// SPDX-License-Identifier: Apache-2.0
//
// The built program as a user meets it. Guests of a few instructions run on whatever engine it
// takes; bad input is refused with one line and the terminal left as it was.

import CHost
import Glibc
import Host
import HostTestSupport
import KernelFiles
import SystemPackage
import Testing

@Suite struct BadInputTests {
  /// Runs and expects one line on standard error.
  func refused(_ arguments: [String], _ text: String, status: Int32 = 2) throws {
    let result = try Command.run(["run"] + arguments)
    #expect(result.status == status && result.output == "")
    #expect(result.errorLines.count == 1, "\(result.errors)")
    #expect(result.errors.contains(text), "\(result.errors)")
  }

  @Test func kernels() throws {
    try refused(
      ["--kernel", "/nonexistent"], "--kernel /nonexistent: no such file; check the path")
    try refused(["--kernel", "/"], "--kernel /: is a directory; give a file")
    let text = try Command.temporaryFile(Array("not a kernel at all".utf8))
    try refused(["--kernel", text], "\(text): not a Linux kernel; give a bzImage")
    let empty = try Command.temporaryFile([])
    try refused(["--kernel", empty], "\(empty): not a Linux kernel")
    let whole = TinyKernel.exiting(0).bytes
    let cut = try Command.temporaryFile(whole.dropLast(100))
    try refused(
      ["--kernel", cut], "\(cut): truncated, has \(whole.count - 100) of \(whole.count) bytes")
    let hole = try Command.temporaryFile([])
    #expect(truncate(hole, 1 << 40) == 0)
    try refused(["--kernel", hole], "--kernel \(hole): larger than 4096M; check the path")
    for path in [text, empty, cut, hole] { unlink(path) }
  }

  @Test func initialRAMDisks() throws {
    let kernel = try Command.temporaryFile(TinyKernel.exiting(0).bytes)
    let initrd = try Command.temporaryFile([UInt8](repeating: 1, count: 40 << 20))
    try refused(
      ["--kernel", kernel, "--initrd", "/nonexistent"], "--initrd /nonexistent: no such file")
    try refused(
      ["--kernel", kernel, "--initrd", initrd, "--memory", "32M"],
      "\(initrd): an initrd of 40960K does not fit beside the kernel into 32M; give --memory 58M")
    for path in [kernel, initrd] { unlink(path) }
  }

  @Test(arguments: [
    (["--memory", "1K"], "too small; give at least 4M"),
    (["--memory", "512ß"], "--memory 512ß: not a size"),
    (["--memory", "900T"], "over the limit"), (["--memory", "lots"], "not a size"),
    (["--cpus", "0"], "--cpus 0: give a number from 1 to 254"),
    (["--cpus", "4000"], "--cpus 4000: give a number from 1 to 254"),
    (["--log", "loud"], "--log loud: unknown level; give one of trace, debug"),
    (["--translator", "maybe"], "--translator maybe: give on or off"),
    (["--translator-threshold", "0"], "--translator-threshold 0: give a number from 1 to"),
    (["--translator-hot-entries", "4294967296"], "4294967296: give a number from 1 to 2147483647"),
    (
      ["--translator-code-size", "63K"], "--translator-code-size 63K: give a size from 64K to 512M"
    ),
    (["--translator-code-size", "513M"], "513M: give a size from 64K to 512M"),
    (["--translator-code-size", "K"], "--translator-code-size K: give a size from 64K to 512M"),
    (["--engine", "steam"], "--engine steam: unknown engine; give auto, soft or kvm"),
    (["--vendor", "via"], "--vendor via: unknown vendor; give intel or amd"),
    (
      ["--engine", "kvm", "--vendor", "amd"],
      "--vendor is for the software engine; leave it out with --engine kvm"
    ),
  ])
  func options(arguments: [String], text: String) throws { try refused(arguments, text) }

  /// The map of pages with code alone takes 4 GiB of address space.
  @Test func limitedAddressSpace() throws {
    let line = "ulimit -v 3000000; exec \"$0\" run --engine soft"
    let result = try Command.run(["-c", line, Command.products + "/martlet"], path: "/bin/sh")
    #expect(result.status == 2 && result.output == "")
    #expect(result.errorLines.count == 1, "\(result.errors)")
    #expect(result.errors.contains("raise the limit of address space (ulimit -v)"))
  }

  @Test func aKernelThatNeedsMoreMemory() throws {
    let kernel = try Command.temporaryFile(TinyKernel.exiting(0).bytes)
    try refused(
      ["--kernel", kernel, "--memory", "8M"], "does not fit into 8M of memory; give --memory 17M")
    unlink(kernel)
  }
}

@Suite(.serialized) struct GuestTests {
  func run(_ kernel: TinyKernel, _ arguments: [String] = [], input: String = "") throws
    -> Command.Result
  {
    let path = try Command.temporaryFile(kernel.bytes)
    defer { unlink(path) }
    return try Command.run(["run", "--kernel", path, "--memory", "32M"] + arguments, input: input)
  }

  @Test func powerOffIsSuccess() throws {
    let result = try run(.printing("hello, host\n"))
    #expect(result.status == 0 && result.output == "hello, host\n")
    #expect(result.errorLines.count == 1 && result.errors.contains("engine "))
  }

  @Test(arguments: [0, 16, 127] as [UInt8]) func debugExitGivesTheStatus(value: UInt8) throws {
    #expect(try run(.exiting(value)).status == Int32(value) * 2 + 1)
  }

  @Test(arguments: [
    ["--translator", "off"], ["--translator-threshold", "1"], ["--vendor", "amd"],
    ["--vendor", "intel"], ["--vendor", "amd", "--translator", "off"],
    ["--translator-threshold", "1", "--translator-hot-entries", "1"],
    ["--translator-threshold", "1", "--translator-code-size", "64K"],
  ])
  func guestsRunHoweverTheyAreTranslated(arguments: [String]) throws {
    let arguments = ["--engine", "soft"] + arguments
    let printed = try run(.printing("hello, host\n"), arguments)
    #expect(printed.status == 0 && printed.output == "hello, host\n")
    let echoed = try run(.echoing, arguments, input: "echo this\n")
    #expect(echoed.status == 0 && echoed.output == "echo this\n")
    #expect(try run(.exiting(16), arguments).status == 33)
    #expect(try run(.resetting, ["--on-reboot", "exit"] + arguments).status == 8)
    #expect(try run(.restarting(3), arguments).status == 33)
    #expect(try run(.crashing, arguments).status == 4)
    #expect(try run(.halting, ["--cpus", "2"] + arguments).status == 6)
  }

  @Test func inputFromAPipeReachesTheGuest() throws {
    let result = try run(.echoing, input: "echo this\n")
    #expect(result.status == 0 && result.output == "echo this\n")
  }

  @Test func aRestartEndsTheRunIfAsked() throws {
    let result = try run(.resetting, ["--on-reboot", "exit"])
    #expect(result.status == 8 && result.errors.contains("asked for a restart"))
    let unknown = try run(.resetting, ["--on-reboot", "wait"])
    #expect(
      unknown.status == 2 && unknown.errors.contains("--on-reboot wait: give restart or exit"))
  }

  /// A guest that counts its starts in the clock's memory, and finds its own memory as it was
  /// loaded.
  @Test(arguments: [[], ["--cpus", "3"], ["--translator", "off"]])
  func aGuestRestartsManyTimes(arguments: [String]) throws {
    let result = try run(.restarting(100), arguments)
    #expect(result.status == 33, "\(result.errors)")
    #expect(result.output == String(repeating: "r", count: 100))
  }

  @Test func aTripleFaultIsReported() throws {
    let result = try run(.crashing)
    #expect(result.status == 4 && result.output == "x")
    #expect(
      result.errors.contains("triple fault") && result.errors.contains("RIP 0000000001000207"))
    #expect(result.errors.contains("last exit: port write 0x3f8"))
  }

  @Test func aGuestHaltedForEverIsReported() throws {
    let result = try run(.halting, ["--cpus", "2"])
    #expect(result.status == 6 && result.output == "h")
    #expect(result.errors.contains("halted with interrupts off") && result.errors.contains("RIP"))
  }

  @Test func statisticsArePrinted() throws {
    let result = try run(.printing("statistics"), ["--stats"])
    #expect(result.status == 0 && result.errors.contains("port I/O: 11"))
    #expect(result.errors.contains("wall") && result.errors.contains("exits to user space"))
  }

  @Test func diagnosticsAreWrittenWhereAskedFor() throws {
    let result = try run(.printing("log"), ["--log", "trace"])
    #expect(result.status == 0 && result.output == "log")
    for text in ["debug: CPU 0 starts", "trace: CPU 0: port write 0x3f8"] {
      #expect(result.errors.contains("martlet: " + text), "\(text)")
    }
  }

  @Test(arguments: [SIGTERM, SIGINT]) func aSignalEndsTheRunCleanly(signal: Int32) throws {
    let path = try Command.temporaryFile(TinyKernel.spinning.bytes)
    defer { unlink(path) }
    let input = try Pipe()
    let output = try Pipe()
    let process = try Command.start(
      ["run", "--kernel", path, "--memory", "32M"], input: input.reader.rawValue,
      output: output.writer.rawValue, errors: output.writer.rawValue)
    try waitFor("s", output.reader.rawValue)
    kill(process, signal)
    #expect(try Command.wait(process) == 128 + signal)
  }

  /// SIGTERM presses the power button; a guest that ignores it has its time, or until the next
  /// SIGTERM.
  @Test func sigtermPressesThePowerButton() throws {
    func end(ignores: Bool, _ options: [String], signals: Int = 1) throws -> Int32 {
      let path = try Command.temporaryFile(TinyKernel.waitingForButton(ignores: ignores).bytes)
      defer { unlink(path) }
      let input = try Pipe()
      let output = try Pipe()
      let process = try Command.start(
        ["run", "--engine", "soft", "--kernel", path, "--memory", "32M"] + options,
        input: input.reader.rawValue, output: output.writer.rawValue,
        errors: output.writer.rawValue)
      try waitFor("b", output.reader.rawValue)
      for _ in 0..<signals {
        kill(process, SIGTERM)
        usleep(200_000)
      }
      return try Command.wait(process)
    }
    #expect(try end(ignores: false, []) == 0)
    #expect(try end(ignores: true, ["--shutdown-time", "1"]) == 128 + SIGTERM)
    #expect(try end(ignores: true, [], signals: 2) == 128 + SIGTERM)
    #expect(try end(ignores: false, ["--shutdown-time", "0"]) == 128 + SIGTERM)
  }

  /// Reads until a line with only this text has come.
  func waitFor(_ text: String, _ file: Int32) throws {
    var seen: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 256)
    while !String(decoding: seen, as: UTF8.self).hasSuffix(text) {
      let count = try chunk.withMutableBytes { try Host.read(file, into: &$0) }
      try #require(count > 0, "\(String(decoding: seen, as: UTF8.self))")
      seen += chunk[..<count]
    }
  }

  /// Quits by keys, or ends by a signal that the program handles, or by one that kills it.
  @Test(arguments: [0, SIGTERM, SIGABRT, SIGSEGV])
  func theTerminalIsRawAndRestored(signal: Int32) throws {
    let path = try Command.temporaryFile(TinyKernel.spinning.bytes)
    defer { unlink(path) }
    let pair = try PseudoTerminal()
    let before = pair.mode()
    try withFolder { folder in
      let process = try Command.start(
        ["run", "--kernel", path, "--memory", "32M"], folder: folder,
        input: pair.terminal.rawValue, output: pair.terminal.rawValue,
        errors: pair.terminal.rawValue)
      try waitFor("s", pair.user.rawValue)
      #expect(pair.mode().c_lflag & UInt32(ICANON | ECHO | ISIG) == 0)
      if signal == 0 {
        writeText(pair.user.rawValue, "\u{1}h")
        try waitFor("Ctrl-A to the guest\r\n", pair.user.rawValue)
        writeText(pair.user.rawValue, "\u{1}x")
        #expect(try Command.wait(process) == 0)
      } else {
        kill(process, signal)
        #expect(try Command.wait(process) == 128 + signal)
      }
    }
    #expect(pair.mode().c_lflag == before.c_lflag && pair.mode().c_oflag == before.c_oflag)
  }
}

@Suite struct DoctorTests {
  @Test func theReportNamesWhatARunWouldTake() throws {
    let result = try Command.run(["doctor"])
    #expect(result.status == 0)
    for word in ["processor: ", "features: ", "memory: ", "kvm: ", "run: ", "limit of "] {
      #expect(result.output.contains(word), "\(word)")
    }
  }
}
