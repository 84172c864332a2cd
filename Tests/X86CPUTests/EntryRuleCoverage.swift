// SPDX-License-Identifier: Apache-2.0
//
// Of each rule of VM entry: the tests that break it, and those that break it alone, which the
// explanation of the failure tells.

import Support
import X86
import X86CPU

/// A rule with what the tests do to it.
struct RuleCoverage {
  var name: String
  var words: String
  var section: String
  var outcome: String
  /// The changes that break it and no other rule.
  var alone: [String] = []
}

extension BrokenRule {
  /// What the test changes of a valid VMCS.
  var changes: String {
    let parts =
      clear.map { "\($0.0.name) &= ~\(hexadecimal($0.1))" }
      + set.map { "\($0.0.name) \\|= \(hexadecimal($0.1))" }
      + writes.map { "\($0.0.name) = \(hexadecimal($0.1))" }
    return parts.joined(separator: ", ") + (guest == .longMode ? "" : " (\(guest.rawValue))")
  }

  /// What the processor says to it.
  func explanation() throws -> EntryExplanation? {
    let m = try VMXMachine()
    guest.prepare(m)
    apply(m.processor)
    _ = try? m.processor.vmlaunch()
    return m.processor.vmxEntryExplanation
  }
}

extension BrokenVMCB {
  var changes: String {
    let parts =
      clear.map { "\($0.0.name) &= ~\(hexadecimal($0.1))" }
      + set.map { "\($0.0.name) \\|= \(hexadecimal($0.1))" }
      + writes.map { "\($0.0.name) = \(hexadecimal($0.1))" }
    return parts.joined(separator: ", ")
  }

  func explanation() throws -> EntryExplanation? {
    let m = try SVMMachine()
    apply(m.vmcb)
    _ = try m.run()
    return m.processor.vmrunExplanation
  }
}

func hexadecimal(_ value: UInt64) -> String { "0x" + String(value, radix: 16, uppercase: true) }

enum EntryRuleCoverage {
  static func vmx() throws -> [RuleCoverage] {
    var rows: [RuleCoverage] = []
    for rule in EntryFailure.allCases {
      var row = RuleCoverage(
        name: "\(rule)", words: rule.rawValue, section: rule.section, outcome: "")
      for broken in VMXEntryCheckTests.all where broken.rule == rule {
        guard let explanation = try broken.explanation() else { continue }
        row.outcome = explanation.broken[explanation.reported].outcome
        if Set(explanation.broken.map(\.name)) == [row.name] { row.alone.append(broken.changes) }
      }
      rows.append(row)
    }
    return rows
  }

  static func svm() throws -> [RuleCoverage] {
    var rows: [RuleCoverage] = []
    for rule in VMRunFailure.allCases {
      var row = RuleCoverage(
        name: "\(rule)", words: rule.rawValue, section: rule.section, outcome: "VMEXIT_INVALID")
      for broken in VMRunCheckTests.broken where broken.rule == rule {
        guard let explanation = try broken.explanation() else { continue }
        if Set(explanation.broken.map(\.name)) == [row.name] { row.alone.append(broken.changes) }
      }
      rows.append(row)
    }
    return rows
  }
}
