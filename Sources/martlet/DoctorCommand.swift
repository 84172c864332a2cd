// SPDX-License-Identifier: Apache-2.0
//
// `martlet doctor`: the machine's support for guests; with `vmcs` and `vmcb`, what is wrong with a
// saved control structure.

import ArgumentParser
import Defence
import EntryDoctor
import Host
import SystemPackage
import VMM
import X86CPU

struct DoctorCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor",
    abstract:
      "Reports what this machine offers, which engine a run would use, and how to fix what is "
      + "missing; or explains a saved VMCS or VMCB.",
    subcommands: [VMCSCommand.self, VMCBCommand.self])

  func run() {
    for line in Doctor(Martlet.engines).report() + Sandbox.offers { print(line) }
  }

  struct VMCSCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "vmcs",
      abstract: "Explains a saved VMCS: fields, bits, and the rules of VM entry that it breaks.",
      discussion: """
        A file has one line for each field, 'guest CR0 = 0x80050033' or '0x6800 = 0x80050033'; # \
        begins a comment. 'martlet kvm --save-failed-entry FILE' writes one; so does Linux into its \
        log (dmesg) if the module kvm_intel has dump_invalid_vmcs=1, and that text is read as it \
        is. Rules are those of Martlet's processor. Rules about fields that the file lacks, and \
        about memory that the VMCS names, are not checked. With two files, prints how they differ. \
        The exit status is 0 if no rule is broken (or the files agree), 1 if one is (or they \
        differ), and 2 for a file that cannot be used.
        """)

    @Argument(help: "The file, or two of them.", completion: .file())
    var file: [String]

    func run() throws {
      try DoctorCommand.explain(file, VMCSFile.limit) {
        (bytes, checker) throws(ControlStructureFileError) in
        guard let text = String(validating: bytes, as: UTF8.self), !text.contains("\0") else {
          throw ControlStructureFileError("no text; a VMCS is one line for each field")
        }
        return try ControlStructureReport(vmcs: text, checkedBy: checker)
      }
    }
  }

  struct VMCBCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "vmcb",
      abstract: "Explains a saved VMCB: fields, bits, and the rules of VMRUN that it breaks.",
      discussion: """
        A file has the 4096 bytes of a VMCB as they are in memory. 'martlet kvm --vendor amd \
        --save-failed-entry FILE' writes one. Rules are those of Martlet's processor. With two \
        files, prints how they differ. The exit status is 0 if no rule is broken (or the files \
        agree), 1 if one is (or they differ), and 2 for a file that cannot be used.
        """)

    @Argument(help: "The file, or two of them.", completion: .file())
    var file: [String]

    func run() throws {
      try DoctorCommand.explain(file, 1 << 20) {
        (bytes, checker) throws(ControlStructureFileError) in
        try ControlStructureReport(vmcb: bytes, checkedBy: checker)
      }
    }
  }

  fileprivate typealias Reader = (
    [UInt8], SavedControlStructures
  ) throws(ControlStructureFileError) -> ControlStructureReport

  /// Prints the report of one file, or the difference of two.
  fileprivate static func explain(_ files: [String], _ limit: Int, _ read: Reader) throws {
    guard (1...2).contains(files.count) else { throw ValidationError("give one file or two") }
    let checker: SavedControlStructures
    do throws(Errno) { checker = try SavedControlStructures() } catch {
      Martlet.say("doctor: \(error)")
      throw ExitCode(ExitStatus.engineFailed)
    }
    var reports: [ControlStructureReport] = []
    for path in files { reports.append(try report(path, limit, checker, read)) }
    let lines = reports.count == 1 ? reports[0].lines : reports[0].difference(reports[1])
    for line in lines { print(line) }
    let isFine = reports.count == 1 ? reports[0].isAccepted : lines.isEmpty
    if !isFine { throw ExitCode(1) }
  }

  private static func report(
    _ path: String, _ limit: Int, _ checker: SavedControlStructures, _ read: Reader
  ) throws -> ControlStructureReport {
    let problem: String
    do {
      return try read(try contentsOfFile(path, limit: limit), checker)
    } catch let error as ControlStructureFileError {
      problem = error.description
    } catch {
      problem = "\(error)"
    }
    Martlet.say("\(path): \(problem)")
    throw ExitCode(ExitStatus.badInput)
  }
}
