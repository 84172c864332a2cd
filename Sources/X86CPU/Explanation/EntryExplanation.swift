// SPDX-License-Identifier: Apache-2.0
//
// Explains why a VM entry failed: every rule that a control structure breaks, in the order of the
// processor's checks, with the field, its value, the bits and the manual's section. The rules are
// those of `EntryChecks` and `VMRunChecks`, which here continue after the first failure.
//
//     VT-x refuses this guest: exit reason 33 (invalid guest state)
//     > guest RFLAGS = 0x0, bit 1 (fixed 1): reserved bits in guest RFLAGS (SDM volume 3, "Checks
//       on Guest RIP, RFLAGS, and SSP")
//
// The mark is at the rule that the processor reports.

import X86

/// A rule that a control structure breaks.
package struct BrokenEntryRule: Equatable, Sendable {
  /// The rule's name in the code: `EntryFailure`, `VMRunFailure`.
  package var name: String
  /// In words.
  package var words: String
  /// Manual and section.
  package var section: String
  /// The fields of the rule, the wrong one first.
  package var fields: [FieldValue]
  /// The wrong bits of the first field; empty: the field as a whole.
  package var bits: String
  /// How the processor reports it.
  package var outcome: String

  package struct FieldValue: Equatable, Sendable {
    package var name: String
    package var value: UInt64
  }

  package var text: String {
    let values = fields.map { "\($0.name) = 0x\(String($0.value, radix: 16, uppercase: true))" }
      .joined(separator: ", ")
    let place = bits.isEmpty ? values : "\(values), \(bits)"
    return "\(place.isEmpty ? "" : place + ": ")\(words) (\(section))"
  }
}

/// A processor's verdict on a control structure.
package struct EntryExplanation: Equatable, Sendable {
  package var vendor: SiliconVendor
  /// In the order of the checks.
  package var broken: [BrokenEntryRule]
  /// The index of the one that the processor reports.
  package var reported: Int

  /// One line for the failure and one for each rule.
  package var lines: [String] {
    guard broken.indices.contains(reported) else { return [] }
    let unit = vendor == .intel ? "VT-x" : "SVM"
    let heading = "\(unit) refuses this guest: \(broken[reported].outcome)"
    return [heading]
      + broken.enumerated().map { ($0.offset == reported ? "> " : "  ") + $0.element.text }
  }

  /// Equal for failures that differ only in values.
  package var kind: String {
    let names = broken.map(\.name).joined(separator: " ")
    return "\(vendor) \(reported) \(names)"
  }
}

/// Collects failed checks. There is one for each explanation; checks are copied, this is not.
final class BrokenRules<Rule> {
  struct Finding {
    var rule: Rule
    var subject: RuleSubject
    var stage: EntryStage
  }

  private(set) var findings: [Finding] = []
  var stage = EntryStage.controls

  func add(_ rule: Rule, _ subject: RuleSubject) {
    findings.append(Finding(rule: rule, subject: subject, stage: stage))
  }
}

/// Which of a rule's fields was wrong.
enum RuleSubject: Equatable {
  /// The rule's own.
  case rule
  case field(VMCSField)
  case register(SegmentRegister)
}

/// When a rule is checked, which determines how the processor reports it.
enum EntryStage: String {
  case controls = "VM-instruction error 7 (invalid control fields)"
  case host = "VM-instruction error 8 (invalid host-state fields)"
  case guest = "exit reason 33 (invalid guest state)"
  case msrs = "exit reason 34 (MSR loading)"
}
