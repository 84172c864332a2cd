// SPDX-License-Identifier: Apache-2.0
//
// VT-x: explains the current VMCS.

import X86

extension PhysicalCPU {
  /// Why the last VM entry failed; nil if it did not, or not because of the VMCS.
  package var vmxEntryExplanation: EntryExplanation? {
    guard let failure = vmxEntryFailure, vmx.pointee.current != nil else { return nil }
    if failure == .msrLoading {
      let entry = BrokenRules<EntryFailure>.Finding(rule: failure, subject: .rule, stage: .msrs)
      return explanation([entry], reported: failure, readsMemory: true)
    }
    return explainCurrentVMCS(reported: failure, readsMemory: true)
  }

  /// Every rule that the current VMCS breaks, whether its fields changed since the last entry or
  /// not.
  ///
  /// - Parameters:
  ///   - reported: the rule that the processor reported; nil: the first.
  ///   - readsMemory: addresses in the VMCS are valid in this process.
  func explainCurrentVMCS(reported: EntryFailure?, readsMemory: Bool) -> EntryExplanation {
    let found = BrokenRules<EntryFailure>()
    let checks = EntryChecks(cpu: cpu, unit: vmx, found: found, readsMemory: readsMemory)
    // Nothing is thrown: `found` collects the failures.
    try? checks.checkControls(.all)
    found.stage = .host
    try? checks.checkHostState()
    found.stage = .guest
    try? checks.checkGuestState(.all)
    return explanation(found.findings, reported: reported, readsMemory: readsMemory)
  }

  private func explanation(
    _ findings: [BrokenRules<EntryFailure>.Finding], reported: EntryFailure?, readsMemory: Bool
  ) -> EntryExplanation {
    let checks = EntryChecks(cpu: cpu, unit: vmx, readsMemory: readsMemory)
    var broken: [BrokenEntryRule] = []
    for finding in findings {
      let rule = brokenRule(finding, checks)
      if broken.last != rule { broken.append(rule) }
    }
    let index = broken.firstIndex { $0.name == reported.map { "\($0)" } } ?? 0
    return EntryExplanation(vendor: .intel, broken: broken, reported: index)
  }

  private func brokenRule(
    _ finding: BrokenRules<EntryFailure>.Finding, _ checks: EntryChecks
  ) -> BrokenEntryRule {
    let text = finding.rule.text
    let fields = text.fields(finding.subject)
    let wrong = fields.first.map { text.wrong(checks, vmread($0)) } ?? 0
    let names = fields.first.flatMap { BitNames.of($0) } ?? .none
    return BrokenEntryRule(
      name: "\(finding.rule)", words: finding.rule.rawValue, section: text.section,
      fields: fields.map { .init(name: $0.name, value: vmread($0)) },
      bits: wrong == 0 ? "" : names.list(wrong), outcome: finding.stage.rawValue)
  }

  /// The current VMCS as text, one line for each field, for `martlet doctor vmcs`.
  package var currentVMCSText: String {
    VMCSLayout.fields.map { "\($0.name) = 0x\(String(vmread($0), radix: 16, uppercase: true))\n" }
      .joined()
  }
}
