// SPDX-License-Identifier: Apache-2.0
//
// Runs the package's programs as a user would, with limits of time, and hands out status,
// output and errors for the tests to look at.

import CHost
import Glibc
import Host
import SystemPackage

/// The built `martlet` or another program of the package, run as a user would.
package enum Command {
  package struct Result: Sendable {
    package var status: Int32
    package var output: String
    package var errors: String
    /// Lines on standard error.
    package var errorLines: [String] { errors.split(separator: "\n").map(String.init) }
  }

  /// The directory of the built program: that of the test bundle, whose path is among the
  /// arguments however the tests were started.
  package static let products: String = {
    let bundle = CommandLine.arguments.first { $0.contains(".xctest") } ?? ""
    return bundle.split(separator: "/", omittingEmptySubsequences: false)
      .prefix { !$0.hasSuffix(".xctest") }.joined(separator: "/")
  }()

  /// The package's directory.
  package static let package: String = {
    let parts = #filePath.split(separator: "/", omittingEmptySubsequences: false)
    return parts.dropLast(3).joined(separator: "/")
  }()

  /// A run finds no translations of others, unless it says where they are.
  private static func isolated(_ arguments: [String]) -> [String] {
    let option = "--translation-cache"
    if arguments.first != "run" || arguments.contains(where: { $0.hasPrefix(option) }) {
      return arguments
    }
    return arguments + [option, "off"]
  }

  /// Starts the program with descriptors for its input, output and errors.
  package static func start(
    _ arguments: [String], program: String = "martlet", path given: String? = nil,
    folder: String? = nil, input: Int32, output: Int32, errors: Int32
  ) throws(Errno) -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    for (target, source) in [input, output, errors].enumerated() {
      posix_spawn_file_actions_adddup2(&actions, source, Int32(target))
    }
    if let folder { chost_spawn_in(&actions, folder) }
    // Threads that run tests may block signals; a program starts with none blocked.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    let path = given ?? products + "/" + program
    var words = ([path] + isolated(arguments)).map { strdup($0) }
    defer { for word in words { free(word) } }
    words.append(nil)
    var process = pid_t()
    try threadCall { posix_spawn(&process, path, &actions, &attributes, words, environ) }
    return process
  }

  /// Waits for a program's end: its exit status, or 128 and the number of the signal. A program
  /// that has not ended after `limit` seconds is killed: that many looks, as a host may stand
  /// still.
  package static func wait(_ process: pid_t, limit: UInt64 = 60) throws(Errno) -> Int32 {
    var status: Int32 = 0
    var looks: UInt64 = 0
    while try systemCall({ () -> Int32 in waitpid(process, &status, WNOHANG) }) == 0 {
      looks += 1
      if looks > limit * 500 { kill(process, SIGKILL) }
      usleep(2000)
    }
    return status & 0x7F == 0 ? (status >> 8) & 0xFF : 128 + (status & 0x7F)
  }

  /// Runs a program of the package, or any other by its path, to its end.
  package static func run(
    _ arguments: [String], program: String = "martlet", path: String? = nil, input: String = "",
    limit: UInt64 = 60
  ) throws(Errno) -> Result {
    let files = try [0, 1, 2].map { (_: Int) throws(Errno) in
      try systemCall { () -> Int32 in memfd_create("test", UInt32(MFD_CLOEXEC)) }
    }
    defer { for file in files { close(file) } }
    let pipe = try Pipe()
    writeText(pipe.writer.rawValue, input)
    let process = try start(
      arguments, program: program, path: path, input: pipe.reader.rawValue, output: files[1],
      errors: files[2])
    let status = try wait(process, limit: limit)
    return Result(status: status, output: contents(files[1]), errors: contents(files[2]))
  }

  private static func contents(_ file: Int32) -> String {
    lseek(file, 0, SEEK_SET)
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    let count = bytes.withMutableBytes { (try? Host.read(file, into: &$0)) ?? 0 }
    return String(decoding: bytes[..<count], as: UTF8.self)
  }

  /// Writes a file for the program to read and gives its path.
  package static func temporaryFile(_ bytes: [UInt8]) throws(Errno) -> String {
    var template = Array("/tmp/martlet-test-XXXXXX".utf8CString)
    let file = try systemCall { () -> Int32 in mkstemp(&template) }
    defer { close(file) }
    try writeAll(file, bytes.bytes)
    return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}

/// A pipe with both its ends.
package struct Pipe: ~Copyable {
  package let reader: OwnedFileDescriptor
  package let writer: OwnedFileDescriptor

  package init() throws(Errno) {
    var ends: [Int32] = [0, 0]
    _ = try systemCall { () -> Int32 in pipe(&ends) }
    for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    reader = OwnedFileDescriptor(owning: ends[0])
    writer = OwnedFileDescriptor(owning: ends[1])
  }
}
