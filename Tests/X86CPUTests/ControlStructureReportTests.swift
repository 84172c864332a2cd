// SPDX-License-Identifier: Apache-2.0
//
// `martlet doctor vmcs` and `vmcb`: files of both forms, what they say, and what is refused.

import EntryDoctor
import Support
import Testing
import X86
import X86CPU

@Suite(.serialized) struct ControlStructureReportTests {
  let checker: SavedControlStructures
  init() throws { checker = try SavedControlStructures(numbers: (62, 63)) }

  /// Rules about memory that a VMCS names: a saved one does not have it.
  private static let aboutMemory: Set<EntryFailure> = [
    .msrLoading, .tprThresholdAboveTPR, .vmcsLinkShadow, .vmcsLinkIsCurrent,
  ]

  /// The processor that made the text and the one that reads it agree, rule by rule.
  @Test func aSavedVMCSBreaksWhatTheVMCSBroke() throws {
    for broken in VMXEntryCheckTests.all where !Self.aboutMemory.contains(broken.rule) {
      let m = try VMXMachine()
      broken.guest.prepare(m)
      broken.apply(m.processor)
      _ = try? m.processor.vmlaunch()
      let explanation = try #require(m.processor.vmxEntryExplanation)
      let report = try ControlStructureReport(
        vmcs: m.processor.currentVMCSText, checkedBy: checker)
      #expect(!report.isAccepted)
      #expect(report.verdict == explanation.lines, "\(broken.rule)")
    }
    let valid = try VMXMachine()
    let report = try ControlStructureReport(
      vmcs: valid.processor.currentVMCSText, checkedBy: checker)
    #expect(report.isAccepted && report.verdict == ["It breaks no rule of VM entry."])
    #expect(
      report.lines.contains {
        $0.hasPrefix("  guest CS access rights") && $0.contains("0x4816  0x0000A09B")
          && $0.hasSuffix("type 11 (code, readable, accessed), DPL 0, S, P, L, G")
      })
  }

  @Test func aSavedVMCBBreaksWhatTheVMCBBroke() throws {
    for broken in VMRunCheckTests.broken {
      let m = try SVMMachine()
      broken.apply(m.vmcb)
      #expect(try m.run() == .invalid)
      let explanation = try #require(m.processor.vmrunExplanation)
      let report = try ControlStructureReport(
        vmcb: m.processor.heldVMCBBytes, checkedBy: checker)
      #expect(report.verdict == explanation.lines, "\(broken.rule)")
    }
  }

  /// Addresses in a file are of another machine: nothing there is read.
  @Test func memoryIsNotRead() throws {
    let m = try VMXMachine()
    VMXEntryCheckTests.makePAE(m.processor)
    let controls = m.processor.vmread(.secondaryControls)
    let bits = SecondaryControls.enableEPT | SecondaryControls.unrestrictedGuest
    m.processor.vmwrite(.secondaryControls, controls & ~UInt64(bits))
    m.processor.vmwrite(.guestCR3, 0x7FFF_0000_0000)
    m.processor.vmwrite(.vmcsLinkPointer, 0x7FFF_0000_0000)
    let report = try ControlStructureReport(
      vmcs: m.processor.currentVMCSText, checkedBy: checker)
    #expect(!report.verdict.contains { $0.contains("link pointer") || $0.contains("PDPTE") })
  }

  @Test func linuxesDumpIsRead() throws {
    let text = """
      [  673.850218] kvm_intel: VMCS 00000000f971be22, last attempted VM-entry on CPU 3
      [  673.853454] kvm_intel: *** Guest State ***
      [  673.855332] kvm_intel: CR0: actual=0x0000000080010033, shadow=0x31, gh_mask=fffffffffffefff7
      [  673.862338] kvm_intel: CR3 = 0x0000000000f76000
      [  673.868590] kvm_intel: RSP = 0xfffffe006000be50  RIP = 0xffffff8000042837
      [  673.870921] kvm_intel: RFLAGS=0x00000002         DR7 = 0x0000000000000400
      [  673.873163] kvm_intel: Sysenter RSP=0000000000000000 CS:RIP=0010:0000000000000123
      [  673.875876] kvm_intel: CS:   sel=0x0008, attr=0x0a09b, limit=0xffffffff, base=0x0000000000000000
      [  673.880000] kvm_intel: GDTR:                           limit=0x0000007f, base=0xfffffe0000001000
      [  673.900000] kvm_intel: *** Host State ***
      [  673.900000] kvm_intel: CS=0010 SS=0018 DS=0000 ES=0000 FS=0000 GS=0000 TR=0040
      [  673.900000] kvm_intel: *** Control State ***
      [  673.900000] kvm_intel: PinBased=0x000000ff EntryControls=0000d3ff ExitControls=002befff
      [  673.900000] kvm_intel: VMEntry: intr_info=800000ec errcode=00000000 ilen=00000000
      [  673.900000] kvm_intel: VMExit: intr_info=00000000 errcode=00000000 ilen=00000003
      [  673.900000] kvm_intel:         reason=80000021 qualification=0000000000000002
      """
    let fields = try VMCSFile(parsing: text).fields
    let expected: [VMCSField: UInt64] = [
      .guestCR0: 0x8001_0033, .cr0ReadShadow: 0x31, .cr0Mask: 0xFFFF_FFFF_FFFE_FFF7,
      .guestCR3: 0xF7_6000, .guestRSP: 0xFFFF_FE00_6000_BE50, .guestRIP: 0xFFFF_FF80_0004_2837,
      .guestRFLAGS: 2, .guestDR7: 0x400, .guestSysenterESP: 0, .guestSysenterCS: 0x10,
      .guestSysenterEIP: 0x123, .guestCSSelector: 8, .guestCSAccessRights: 0xA09B,
      .guestCSLimit: 0xFFFF_FFFF, .guestCSBase: 0, .guestGDTRLimit: 0x7F,
      .guestGDTRBase: 0xFFFF_FE00_0000_1000, .hostCSSelector: 0x10, .hostSSSelector: 0x18,
      .hostDSSelector: 0, .hostESSelector: 0, .hostFSSelector: 0, .hostGSSelector: 0,
      .hostTRSelector: 0x40, .pinBasedControls: 0xFF, .entryControls: 0xD3FF,
      .exitControls: 0x2B_EFFF, .entryInterruptionInfo: 0x8000_00EC, .entryExceptionErrorCode: 0,
      .entryInstructionLength: 0, .exitInterruptionInfo: 0, .exitInterruptionErrorCode: 0,
      .exitInstructionLength: 3, .exitReason: 0x8000_0021, .exitQualification: 2,
    ]
    #expect(fields == expected)
    // The rule that it broke: its processor said that it was one of the guest's.
    let report = try ControlStructureReport(vmcs: text, checkedBy: checker)
    #expect(
      report.verdict.contains {
        $0.hasPrefix("> guest RFLAGS = 0x2, VM-entry interruption-information field = 0x800000EC")
      })
  }

  static let refused: [(text: String, problem: String)] = [
    ("", "no field of a VMCS; write lines like 'guest CR0 = 0x31'"),
    ("# nothing", "no field of a VMCS; write lines like 'guest CR0 = 0x31'"),
    ("guest CR0", "line 1: no '='; write NAME = VALUE"),
    ("\nguest CR9 = 1", "line 2: 'guest CR9' is no field of a VMCS"),
    ("0x6801 = 1", "line 1: '0x6801' is no field of a VMCS"),
    ("0xFFFFFFFFFF = 1", "line 1: '0xFFFFFFFFFF' is no field of a VMCS"),
    ("guest CR0 = 0x1FFFFFFFFFFFFFFFF", "line 1: '0x1FFFFFFFFFFFFFFFF' is no number of 64 bits"),
    ("guest CR0 = ", "line 1: '' is no number of 64 bits"),
    ("guest CR0 = -1", "line 1: '-1' is no number of 64 bits"),
    ("VPID = 0x10000", "line 1: VPID has fewer bits"),
    ("VPID = 1\n0x0 = 2", "line 2: VPID is there twice"),
  ]

  @Test(arguments: refused) func badText(text: String, problem: String) {
    #expect(throws: ControlStructureFileError(problem)) { try VMCSFile(parsing: text) }
  }

  @Test(arguments: [0, 1, 4095, 4097]) func badVMCB(_ count: Int) {
    let bytes = [UInt8](repeating: 0xFF, count: count)
    #expect(throws: ControlStructureFileError("a VMCB has 4096 bytes, this file has \(count)")) {
      _ = try ControlStructureReport(vmcb: bytes, checkedBy: checker)
    }
  }

  /// Whatever a file holds, there is a report.
  @Test func anyContents() throws {
    var random = SystemRandomNumberGenerator()
    for _ in 0..<200 {
      let bytes = (0..<4096).map { _ in UInt8.random(in: 0...255, using: &random) }
      #expect(try !ControlStructureReport(vmcb: bytes, checkedBy: checker).lines.isEmpty)
      let text = VMCSField.table.map { name, field in
        let value = UInt64.random(in: 0...UInt64.max, using: &random)
        let mask: UInt64 =
          switch field.width {
          case .bits16: 0xFFFF
          case .bits32: 0xFFFF_FFFF
          default: .max
          }
        return "\(name) = \(value & mask)\n"
      }
      #expect(
        try !ControlStructureReport(vmcs: text.joined(), checkedBy: checker).lines.isEmpty)
    }
  }

  @Test func differences() throws {
    let first = try ControlStructureReport(
      vmcs: "guest CR0 = 0x31\nVPID = 1\nguest RIP = 5", checkedBy: checker)
    let second = try ControlStructureReport(
      vmcs: "guest CR0 = 0x80000033\nguest RSP = 1\nguest RIP = 5", checkedBy: checker)
    #expect(
      first.difference(second) == [
        "guest CR0: 0x0000000000000031 -> 0x0000000080000033  + bit 1 (MP), bit 31 (PG)",
        "VPID: only in the first, 0x0001", "guest RSP: only in the second, 0x0000000000000001",
      ])
    #expect(first.difference(first).isEmpty)
  }
}
