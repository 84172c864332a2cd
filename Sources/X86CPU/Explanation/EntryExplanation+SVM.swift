// SPDX-License-Identifier: Apache-2.0
//
// SVM: explains the held VMCB.

import X86

extension PhysicalCPU {
  /// Why the last VMRUN exited with VMEXIT_INVALID; nil if it did not.
  package var vmrunExplanation: EntryExplanation? {
    guard let failure = vmrunFailure, svm.pointee.held != nil else { return nil }
    return explainHeldVMCB(reported: failure)
  }

  /// Every rule that the held VMCB breaks, whatever its clean bits.
  func explainHeldVMCB(reported: VMRunFailure?) -> EntryExplanation? {
    guard let held = svm.pointee.held else { return nil }
    let found = BrokenRules<VMRunFailure>()
    // Nothing is thrown: `found` collects the failures.
    try? VMRunChecks(cpu: cpu, vmcb: VMCB(base: held), found: found).check(.all)
    var broken: [BrokenEntryRule] = []
    for finding in found.findings {
      let rule = brokenRule(finding.rule)
      if broken.last != rule { broken.append(rule) }
    }
    let index = broken.firstIndex { $0.name == reported.map { "\($0)" } } ?? 0
    return EntryExplanation(vendor: .amd, broken: broken, reported: index)
  }

  private func brokenRule(_ rule: VMRunFailure) -> BrokenEntryRule {
    let text = rule.text
    let wrong = text.fields.first.map { text.wrong(vmcbRead($0)) } ?? 0
    let names = text.fields.first.flatMap { BitNames.of($0) } ?? .none
    return BrokenEntryRule(
      name: "\(rule)", words: rule.rawValue, section: rule.section,
      fields: text.fields.map { .init(name: $0.name, value: vmcbRead($0)) },
      bits: wrong == 0 ? "" : names.list(wrong), outcome: "VMEXIT_INVALID")
  }

  /// The 4096 bytes of the held VMCB in memory format, for `martlet doctor vmcb`.
  package var heldVMCBBytes: [UInt8] {
    guard let held = svm.pointee.held else { return [] }
    vmcbWriteBack()
    return Array(UnsafeRawBufferPointer(start: held, count: VMCBField.blockSize))
  }
}
