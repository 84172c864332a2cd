// SPDX-License-Identifier: Apache-2.0
//
// `martlet kvm -- COMMAND`: an unmodified client of `/dev/kvm` on the software KVM.

import ArgumentParser
import Glibc
import Host
import VMM

/// Replaces this process by the program (execvp), with the preload library that implements its
/// `/dev/kvm`: signals reach the program, and its exit status is the command's.
struct KVMCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "kvm",
    abstract: "Runs a program whose /dev/kvm is the software KVM: QEMU, kvmtool and others.",
    discussion: """
      Example: martlet kvm -- qemu-system-x86_64 -accel kvm -M q35 ...

      The program must be dynamically linked and must not be set-user-ID. It loads \
      libmartlet-kvm.so from the directory of martlet, from ../lib or ../lib/martlet beside it, or \
      from the path in MARTLET_KVM_LIBRARY. The options set MARTLET_PCPUS, MARTLET_VENDOR, \
      MARTLET_TRANSLATOR, MARTLET_SPECULATION_GUARD, MARTLET_CLIENT_WRITES, MARTLET_FAILED_ENTRY and \
      MARTLET_STATS in its environment. If the processor refuses to enter a guest, a warning on \
      standard error says which rules its state breaks, once for each way. The exit status is the program's, or 127 if it cannot be started.
      """)

  @Option(
    help: ArgumentHelp(
      "Physical CPUs of the software KVM, 1 to 64. (default: the host's)", valueName: "n"))
  var pcpus: String?

  @Option(
    help: ArgumentHelp(
      "Whose processor the software KVM has: intel with VT-x, amd with SVM. "
        + "(default: the host's)",
      valueName: "intel|amd"), completion: .list(["intel", "amd"]))
  var vendor: String?

  @Option(
    help: ArgumentHelp("Translate hot guest code to host code.", valueName: "on|off"),
    completion: .onOff)
  var translator = "on"

  @Option(
    help: ArgumentHelp(
      "Protect the program's memory from speculative reads in translated code. With off, a guest "
        + "can learn what is in it.",
      valueName: "on|off"), completion: .onOff)
  var speculationGuard = "on"

  @Option(
    help: ArgumentHelp(
      "How to detect the program's writes to guest code: protected uses userfaultfd, compared "
        + "compares code with a copy, ignored does not detect them.",
      valueName: "protected|compared|ignored"),
    completion: .list(["protected", "compared", "ignored"]))
  var clientWrites = "protected"

  @Option(
    help: ArgumentHelp(
      "Where to save the first control structure with which a VM entry fails, for martlet doctor "
        + "vmcs (intel) or vmcb (amd). (default: nowhere)",
      valueName: "file"), completion: .file())
  var saveFailedEntry: String?

  @Flag(help: "Print each vCPU's exits by reason at the end, on standard error.")
  var stats = false

  @Argument(parsing: .postTerminator, help: "The program and its arguments.")
  var command: [String]

  func run() throws {
    guard let program = command.first else { throw ValidationError("no program given") }
    guard let library = Self.library() else {
      Martlet.say("libmartlet-kvm.so not found; set MARTLET_KVM_LIBRARY to its path")
      throw ExitCode(Self.cannotStart)
    }
    if let refusal = ProgramFile(program)?.refusal {
      Martlet.say("\(program): \(refusal)")
      throw ExitCode(Self.cannotStart)
    }
    try setSettings()
    let preloaded = unsafe getenv("LD_PRELOAD").map { unsafe ":" + String(cString: $0) } ?? ""
    unsafe setenv("LD_PRELOAD", library + preloaded, 1)
    var arguments: [UnsafeMutablePointer<CChar>?] = unsafe command.map { unsafe strdup($0) }
    unsafe arguments.append(nil)
    unsafe execvp(program, arguments)
    Martlet.say(unsafe "\(program): \(String(cString: strerror(errno)))")
    throw ExitCode(Self.cannotStart)
  }

  private static let cannotStart: Int32 = 127

  private func setSettings() throws {
    if let pcpus {
      guard let count = Int(pcpus), (1...64).contains(count) else {
        throw ValidationError("--pcpus: give 1 to 64")
      }
      unsafe setenv("MARTLET_PCPUS", pcpus, 1)
    }
    if let vendor {
      guard ["intel", "amd"].contains(vendor) else {
        throw ValidationError("--vendor: give intel or amd")
      }
      unsafe setenv("MARTLET_VENDOR", vendor, 1)
    }
    guard ["on", "off"].contains(translator) else {
      throw ValidationError("--translator: give on or off")
    }
    if translator == "off" { unsafe setenv("MARTLET_TRANSLATOR", translator, 1) }
    guard ["on", "off"].contains(speculationGuard) else {
      throw ValidationError("--speculation-guard: give on or off")
    }
    if speculationGuard == "off" { unsafe setenv("MARTLET_SPECULATION_GUARD", speculationGuard, 1) }
    guard ["protected", "compared", "ignored"].contains(clientWrites) else {
      throw ValidationError("--client-writes: give protected, compared or ignored")
    }
    if clientWrites != "protected" { unsafe setenv("MARTLET_CLIENT_WRITES", clientWrites, 1) }
    if let saveFailedEntry { unsafe setenv("MARTLET_FAILED_ENTRY", saveFailedEntry, 1) }
    if stats { unsafe setenv("MARTLET_STATS", "1", 1) }
  }

  /// The path of the library.
  private static func library() -> String? {
    let name = "libmartlet-kvm.so"
    if let path = unsafe getenv("MARTLET_KVM_LIBRARY") { return unsafe String(cString: path) }
    guard let program = unsafe realpath("/proc/self/exe", nil) else { return nil }
    defer { unsafe free(program) }
    let directory = unsafe String(cString: program).split(separator: "/").dropLast()
    let places = ["", "../lib/", "../lib/martlet/"]
    return places.map { "/" + directory.joined(separator: "/") + "/" + $0 + name }
      .first { unsafe access($0, R_OK) == 0 }
  }
}
