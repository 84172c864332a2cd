// SPDX-License-Identifier: Apache-2.0
//
// Every exit reason of VT-x, every exit code of SVM and every failure of their instructions is
// reached by a test, and every rule of VM entry is broken alone by one. docs/entry-checks.md is
// written from what these tests do: `make golden` (MARTLET_GOLDEN=write) writes it anew.

import Foundation
import Support
import Testing
import X86
import X86CPU

@Suite struct ExitCoverageTests {
  @Test(arguments: VMXGuest.all.indices) func vmxGuestExits(_ n: Int) throws {
    let guest = VMXGuest.all[n]
    let m = try VMXMachine()
    m.test.load(guest.code, at: 0x1000)
    guest.prepare(m)
    let exit = try m.processor.vmlaunch()
    #expect(exit == guest.exit, "\(guest.name): \(exit.name)")
    #expect(m.processor.vmread(.exitReason) & 0xFFFF == UInt64(guest.exit.rawValue))
  }

  @Test(arguments: SVMGuest.all.indices) func svmGuestExits(_ n: Int) throws {
    let guest = SVMGuest.all[n]
    let m = try SVMMachine()
    m.test.load(guest.code, at: 0x1000)
    guest.prepare(m)
    let exit = try m.run()
    #expect(exit == guest.exit, "\(guest.name): \(exit.name)")
    #expect(m.vmcb[.exitCode] == guest.exit.rawValue)
  }

  // MARK: Rules

  @Test func everyRuleIsBrokenAlone() throws {
    for rule in try EntryRuleCoverage.vmx() + EntryRuleCoverage.svm() {
      #expect(!rule.alone.isEmpty, "no test breaks \(rule.name) alone")
    }
  }

  @Test func everyRuleHasAText() {
    for rule in EntryFailure.allCases { #expect(rule.hasText, "\(rule)") }
    for rule in VMRunFailure.allCases { #expect(rule.hasText, "\(rule)") }
    for field in VMCSLayout.fields { #expect(!field.name.hasPrefix("field"), "\(field)") }
  }

  /// The rule that is reported is marked, whatever else is broken; all that is broken is there.
  @Test func everyBrokenRuleIsListed() throws {
    let m = try VMXMachine()
    let p = m.processor
    p.vmwrite(.guestRFLAGS, 0)
    p.vmwrite(.guestCR3, 1 << 60)
    p.vmwrite(.guestGSAccessRights, 0xC013)
    #expect(try p.vmlaunch() == .invalidGuestState)
    let explanation = try #require(p.vmxEntryExplanation)
    #expect(
      explanation.broken.map(\.name) == [
        "guestCR3", "guestSegmentNotPresent", "guestRFLAGSReserved",
      ]
    )
    #expect(explanation.reported == 0)
    let lines = explanation.lines
    #expect(lines[0] == "VT-x refuses this guest: exit reason 33 (invalid guest state)")
    #expect(lines[1].hasPrefix("> guest CR3 = 0x1000000000000000, bit 60: "))
    #expect(lines[2].hasPrefix("  guest GS access rights = 0xC013, bit 7 (P): "))
    #expect(
      lines[3] == "  guest RFLAGS = 0x0, bit 1 (fixed 1): reserved bits in guest RFLAGS "
        + "(SDM volume 3, \"Checks on Guest RIP, RFLAGS, and SSP\")")
    // Asking changes nothing.
    p.vmwrite(.guestRFLAGS, 2)
    p.vmwrite(.guestCR3, 0x10000)
    p.vmwrite(.guestGSAccessRights, 0xC093)
    m.test.load([0xF4], at: 0x1000)
    #expect(try p.vmlaunch() == .hlt && p.vmxEntryExplanation == nil)
  }

  @Test func aVMCBIsExplained() throws {
    let m = try SVMMachine()
    m.vmcb[.asid] = 0
    m.vmcb[.cr4] |= 1 << 40
    #expect(try m.run() == .invalid)
    let lines = try #require(m.processor.vmrunExplanation).lines
    #expect(lines[0] == "SVM refuses this guest: VMEXIT_INVALID")
    #expect(lines[1].hasPrefix("> CR4 = 0x100") && lines[1].contains(", bit 40: "))
    #expect(lines[2].hasPrefix("  guest ASID = 0x0: "))
  }

  // MARK: The table

  /// Exits that no guest of the tables above has, with the reason. What is said to be missing is
  /// checked: a feature that comes needs a guest.
  struct Absent: Sendable {
    var name: String
    var reason: String
    var isAbsent: @Sendable () -> Bool
  }

  private static func secondary(_ exit: ExitReason, _ control: UInt32, _ words: String) -> Absent {
    Absent(name: exit.name, reason: "not offered: \(words)") {
      VMXCapabilities.secondary.allowed & control == 0
    }
  }

  private static func never(_ exit: ExitReason, _ reason: String) -> Absent {
    Absent(name: exit.name, reason: reason) { true }
  }

  static let absentVMX: [Absent] = [
    never(.ioSMI, "only with dual-monitor treatment of SMIs"),
    never(.otherSMI, "only with dual-monitor treatment of SMIs"),
    never(.getsec, "GETSEC is undefined: CPUID has no SMX"),
    never(.rsm, "only in system-management mode, in which no guest of VT-x runs"),
    never(.machineCheckDuringEntry, "there are no machine checks"),
    secondary(.encls, 1 << 15, "enable ENCLS exiting"),
    never(.xsaves, "only with a state component of IA32_XSS, of which there is none"),
    never(.xrstors, "only with a state component of IA32_XSS, of which there is none"),
    never(.busLock, "reached by VMXHoggingTests.busLock"),
    never(.notify, "reached by VMXHoggingTests.endlessFaultsAreNotified"),
  ]

  private static func neverSVM(_ exit: SVMExitCode, _ reason: String) -> Absent {
    Absent(name: exit.name, reason: reason) { true }
  }

  static let absentSVM: [Absent] = [
    neverSVM(.smi, "a physical CPU gets no SMIs"),
    neverSVM(.ferrFreeze, "x87 errors are reported as #MF, and CR0.NE 0 has no FERR# pin"),
    neverSVM(.skinit, "SKINIT is undefined: CPUID does not offer it"),
    neverSVM(.rdpru, "RDPRU is undefined: CPUID does not offer it"),
    neverSVM(.exception(2), "NMIs have an exit code of their own"),
    neverSVM(.exception(4), "INTO: reached in 32-bit code like other exceptions"),
    neverSVM(.exception(5), "BOUND: reached in 32-bit code like other exceptions"),
    neverSVM(.exception(9), "not raised by processors with an x87 unit inside"),
    neverSVM(.exception(10), "raised by task switches alone, like other exceptions"),
    neverSVM(.exception(16), "raised like other exceptions by x87 instructions"),
    neverSVM(.exception(17), "raised like other exceptions at CPL 3"),
    neverSVM(.exception(18), "there are no machine checks"),
    neverSVM(.exception(19), "raised like other exceptions by SSE instructions"),
  ]

  /// The exit reasons that have a name.
  static let namedReasons = (0..<UInt16(ExitReason.count)).map { ExitReason(rawValue: $0) }
    .filter { !$0.name.hasPrefix("reason") }
    .filter {
      !["spp", "umwait", "tpause", "loadiwkey", "enqcmdPASID", "enqcmdsPASID"].contains($0.name)
    }

  @Test func everyExitReasonHasAGuest() {
    let reached = Set(VMXGuest.all.map(\.name))
    let absent = Set(Self.absentVMX.map(\.name))
    for reason in Self.namedReasons {
      #expect(
        reached.contains(reason.name) != absent.contains(reason.name),
        "\(reason.name): give it a guest in ExitGuests.swift")
    }
    for one in Self.absentVMX { #expect(one.isAbsent(), "\(one.name): \(one.reason)") }
  }

  /// The exit codes of intercepts, and the two others.
  static let namedCodes: [SVMExitCode] =
    (UInt8(0)..<22).map { .exception($0) }.filter { $0.rawValue != 0x4F && $0.rawValue < 0x54 }
    + (UInt64(0x60)..<0x8F).map { SVMExitCode(rawValue: $0) }
    + [.invpcid, .nestedPageFault, .invalid]

  @Test func everyExitCodeHasAGuest() {
    let reached = Set(SVMGuest.all.map(\.name))
    let absent = Set(Self.absentSVM.map(\.name))
    for code in Self.namedCodes {
      #expect(
        reached.contains(code.name) != absent.contains(code.name),
        "\(code.name): give it a guest in ExitGuests.swift")
    }
  }

  // MARK: docs/entry-checks.md

  static let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .appendingPathComponent("../../docs/entry-checks.md").standardizedFileURL

  @Test func theDocumentIsWhatTheTestsDo() throws {
    let text = try Self.document()
    if ProcessInfo.processInfo.environment["MARTLET_GOLDEN"] == "write" {
      try text.write(to: Self.path, atomically: true, encoding: .utf8)
    }
    let stored = try String(contentsOf: Self.path, encoding: .utf8)
    #expect(stored == text, "docs/entry-checks.md is out of date: run make golden")
  }

  private static func document() throws -> String {
    """
    # Rules of VM entry, exits and failures, and their tests

    Written by `make golden` from the tests, so that it says what they do (`Tests/X86CPUTests/ExitCoverageTests.swift`). A rule
    that no test breaks alone fails them, and so does an exit that no guest reaches.

    ## VM entry of VT-x

    Each test changes a VMCS that the processor accepts, and finds this rule broken and no other.

    \(rules(try EntryRuleCoverage.vmx()))

    ## VMRUN of SVM

    All of them end in VMEXIT_INVALID.

    \(rules(try EntryRuleCoverage.svm()))

    ## Exit reasons of VT-x

    \(exits(VMXGuest.all.map { ($0.name, $0.code) }, absentVMX))

    ## Exit codes of SVM

    \(exits(SVMGuest.all.map { ($0.name, $0.code) }, absentSVM))

    ## Failures of VMX instructions

    \(failures(InstructionFailures.vmx.map { ($0.name, $0.outcome) }))

    ## Failures of SVM instructions

    \(failures(InstructionFailures.svm.map { ($0.name, $0.outcome) }))

    """
  }

  private static func rules(_ rules: [RuleCoverage]) -> String {
    let rows = rules.map { rule in
      let changes = rule.alone.map { "`\($0)`" }.joined(separator: "; ")
      return "| `\(rule.name)` | \(rule.words) | \(rule.section) | \(rule.outcome) | \(changes) |"
    }
    return
      (["| rule | in words | manual | told by | broken alone by |", "|---|---|---|---|---|"]
      + rows).joined(separator: "\n")
  }

  private static func exits(_ guests: [(String, [UInt8])], _ absent: [Absent]) -> String {
    let rows =
      guests.map { name, code in
        let bytes = code.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }
        return "| \(name) | guest: `\(bytes.joined(separator: " "))` |"
      } + absent.map { "| \($0.name) | \($0.reason) |" }
    return (["| exit | reached by |", "|---|---|"] + rows).joined(separator: "\n")
  }

  private static func failures(_ rows: [(String, String)]) -> String {
    (["| instruction | fails with |", "|---|---|"] + rows.map { "| \($0.0) | \($0.1) |" })
      .joined(separator: "\n")
  }
}
