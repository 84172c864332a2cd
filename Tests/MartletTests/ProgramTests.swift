// SPDX-License-Identifier: Apache-2.0
//
// The program's manners: version, help, completions, and errors of one line with its name.

import Glibc
import HostTestSupport
import Testing

@Suite struct ProgramTests {
  /// CHANGELOG.md names the version first.
  @Test func theVersionIsTheChangelogs() throws {
    let changes = try text(of: Command.package + "/CHANGELOG.md")
    let heading = try #require(changes.split(separator: "\n").first { $0.hasPrefix("## ") })
    let version = heading.dropFirst(3).prefix { $0 != " " }.lowercased()
    for arguments in [["--version"], ["run", "--version"]] {
      let result = try Command.run(arguments)
      #expect(result.status == 0 && result.errors == "")
      #expect(result.output == "martlet \(version)\n")
    }
  }

  @Test(arguments: [[], ["--help"], ["help", "run"], ["run", "--help"], ["kvm", "--help"]])
  func helpGoesToStandardOutput(arguments: [String]) throws {
    let result = try Command.run(arguments)
    #expect(result.status == 0 && result.errors == "")
    #expect(result.output.contains("USAGE: martlet"))
  }

  @Test(arguments: [
    (["fly"], "'fly'; see 'martlet --help'"),
    (["--xyzzy"], "'--xyzzy'; see 'martlet --help'"),
    (["run", "--xyzzy"], "'--xyzzy'; see 'martlet run --help'"),
    (["run", "--memory"], "'--memory <size>'; see 'martlet run --help'"),
    (["kvm"], "<command> ...'; see 'martlet kvm --help'"),
    (["kvm", "--pcpus", "65", "--", "true"], "--pcpus: give 1 to 64; see 'martlet kvm --help'"),
    (["kvm", "--translator", "x", "--", "true"], "give on or off; see 'martlet kvm --help'"),
  ])
  func wrongUseIsOneLine(arguments: [String], text: String) throws {
    let result = try Command.run(arguments)
    #expect(result.status == 64 && result.output == "")
    #expect(result.errorLines.count == 1, "\(result.errors)")
    #expect(
      result.errors.hasPrefix("martlet: ") && result.errors.contains(text), "\(result.errors)")
  }

  @Test(
    arguments: [
      (["run", "--kernel", "/nonexistent"], 2), (["run", "--misbehave", "nothing"], 2),
      (["kvm", "--", "/nonexistent"], 127), (["run", "--log", "loud"], 2),
    ] as [([String], Int32)])
  func errorsBeginWithTheName(arguments: [String], status: Int32) throws {
    let result = try Command.run(arguments)
    #expect(result.status == status && !result.errorLines.isEmpty)
    for line in result.errorLines { #expect(line.hasPrefix("martlet: ")) }
  }

  @Test(arguments: [
    ("bash", "complete -o filenames"), ("zsh", "#compdef martlet"),
    ("fish", "complete -c 'martlet'"),
  ])
  func completionsKnowOptionsAndValues(shell: String, mark: String) throws {
    let result = try Command.run(["--generate-completion-script", shell])
    #expect(result.status == 0 && result.errors == "")
    #expect(result.output.contains(mark), "\(result.output.prefix(300))")
    for word in ["kernel", "sandbox", "required", "doctor", "client-writes", "compared"] {
      #expect(result.output.contains(word), "\(word)")
    }
    #expect(!result.output.contains("misbehave"))
  }

  private func text(of path: String) throws -> String {
    let file = try #require(fopen(path, "r"))
    defer { fclose(file) }
    var bytes: [UInt8] = []
    while case let byte = fgetc(file), byte != EOF { bytes.append(UInt8(truncatingIfNeeded: byte)) }
    return String(decoding: bytes, as: UTF8.self)
  }
}
