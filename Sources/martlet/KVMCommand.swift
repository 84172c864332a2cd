// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import Host
import VMM

/// Runs a program whose `/dev/kvm` is the software KVM. The program takes this process's place, so
/// signals reach it and its exit status is the command's.
struct KVMCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "kvm",
    abstract: "Runs a program whose /dev/kvm is the software KVM: QEMU, kvmtool, and others.",
    discussion: """
      martlet kvm -- qemu-system-x86_64 -accel kvm -M q35 ...

      The program must be dynamically linked. The library libmartlet-kvm.so is looked for beside \
      this program, in ../lib and ../lib/martlet from there, or where MARTLET_KVM_LIBRARY says. The \
      options here set MARTLET_PCPUS, MARTLET_TRANSLATOR, MARTLET_SPECULATION_GUARD, \
      MARTLET_CLIENT_WRITES and MARTLET_STATS for it. The exit status is the program's; 127 when it cannot be started.
      """)

  @Option(help: "Physical CPUs of the software KVM (default: the host's).")
  var pcpus: String?

  @Option(help: "Translate hot guest code to host code: on or off.")
  var translator = "on"

  @Option(
    help: ArgumentHelp(
      "Make what the host executes by a wrong guess harmless in translated code: on or off.",
      discussion: "Off, a guest can learn what is in the program's memory."))
  var speculationGuard = "on"

  @Option(
    help: ArgumentHelp(
      "How to learn what the program writes to memory with code.",
      discussion: "protected (by userfaultfd), compared (with copies), or ignored."))
  var clientWrites = "protected"

  @Flag(help: "Print each vCPU's exits by reason on standard error at the end.")
  var stats = false

  @Argument(parsing: .postTerminator, help: "The program and its arguments.")
  var command: [String]

  func run() throws {
    guard let program = command.first else { throw ValidationError("no program named") }
    guard let library = Self.library() else {
      Martlet.say("libmartlet-kvm.so is not beside this program; set MARTLET_KVM_LIBRARY")
      throw ExitCode(Self.cannotStart)
    }
    if let refusal = ProgramFile(program)?.refusal {
      Martlet.say("\(program): \(refusal)")
      throw ExitCode(Self.cannotStart)
    }
    try setSettings()
    let preloaded = getenv("LD_PRELOAD").map { ":" + String(cString: $0) } ?? ""
    setenv("LD_PRELOAD", library + preloaded, 1)
    var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) }
    arguments.append(nil)
    execvp(program, arguments)
    Martlet.say("\(program): \(String(cString: strerror(errno)))")
    throw ExitCode(Self.cannotStart)
  }

  private static let cannotStart: Int32 = 127

  private func setSettings() throws {
    if let pcpus {
      guard let count = Int(pcpus), (1...64).contains(count) else {
        throw ValidationError("--pcpus takes 1 to 64")
      }
      setenv("MARTLET_PCPUS", pcpus, 1)
    }
    guard ["on", "off"].contains(translator) else {
      throw ValidationError("--translator takes on or off")
    }
    if translator == "off" { setenv("MARTLET_TRANSLATOR", translator, 1) }
    guard ["on", "off"].contains(speculationGuard) else {
      throw ValidationError("--speculation-guard takes on or off")
    }
    if speculationGuard == "off" { setenv("MARTLET_SPECULATION_GUARD", speculationGuard, 1) }
    guard ["protected", "compared", "ignored"].contains(clientWrites) else {
      throw ValidationError("--client-writes takes protected, compared or ignored")
    }
    if clientWrites != "protected" { setenv("MARTLET_CLIENT_WRITES", clientWrites, 1) }
    if stats { setenv("MARTLET_STATS", "1", 1) }
  }

  /// Where the library is.
  private static func library() -> String? {
    let name = "libmartlet-kvm.so"
    if let path = getenv("MARTLET_KVM_LIBRARY") { return String(cString: path) }
    guard let program = realpath("/proc/self/exe", nil) else { return nil }
    defer { free(program) }
    let directory = String(cString: program).split(separator: "/").dropLast()
    let places = ["", "../lib/", "../lib/martlet/"]
    return places.map { "/" + directory.joined(separator: "/") + "/" + $0 + name }
      .first { access($0, R_OK) == 0 }
  }
}
