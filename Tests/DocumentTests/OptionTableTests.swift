// SPDX-License-Identifier: Apache-2.0
//
// README.md's table of options says what `--help` says.

import HostTestSupport
import Testing

@Suite struct OptionTableTests {
  struct Row: Equatable, CustomStringConvertible {
    var option: String
    var text: String
    var description: String { "\(option): \(text)" }
  }

  /// The options of a help screen: the label, then the text, which may begin in the next line.
  private func help(_ command: String) throws -> [Row] {
    let output = try Command.run([command, "--help"]).output
    var rows: [Row] = []
    for line in output.split(separator: "\n").drop(while: { $0 != "OPTIONS:" }).dropFirst() {
      if line.hasPrefix("  -") {
        let entry = line.dropFirst(2)
        let end = entry.firstRange(of: "  ")?.lowerBound ?? entry.endIndex
        rows.append(Row(option: String(entry[..<end]), text: ""))
        append(entry[end...], to: &rows)
      } else if !rows.isEmpty {
        append(line, to: &rows)
      }
    }
    return rows.filter { $0.option != "--version" && $0.option != "-h, --help" }
  }

  private func append(_ line: Substring, to rows: inout [Row]) {
    let words = line.split(separator: " ").joined(separator: " ")
    if words.isEmpty { return }
    let last = rows.endIndex - 1
    rows[last].text += rows[last].text.isEmpty ? words : " " + words
  }

  /// The rows of README.md's table: option, meaning, default.
  private func table(_ title: String) throws -> [Row] {
    try Repository.lines("README.md").drop { !$0.hasPrefix("| option of `\(title)`") }
      .dropFirst(2).prefix { $0.hasPrefix("|") }
      .map { line in
        let cells = line.replacing("\\|", with: "\u{1}").split(
          separator: "|", omittingEmptySubsequences: false
        ).dropFirst().map {
          $0.replacing("\u{1}", with: "|").filter { $0 != "`" }.drop { $0 == " " }
            .split(separator: " ").joined(separator: " ")
        }
        let value = cells.count > 2 ? cells[2] : ""
        return Row(
          option: cells[0], text: cells[1] + (value.isEmpty ? "" : " (default: \(value))"))
      }
  }

  @Test(arguments: ["run", "kvm"]) func theReadmeHasTheHelp(command: String) throws {
    let rows = try table(command)
    let help = try help(command)
    #expect(rows.count > 3)
    for (row, line) in zip(rows, help) { #expect(row == line) }
    #expect(rows.map(\.option) == help.map(\.option))
  }
}
