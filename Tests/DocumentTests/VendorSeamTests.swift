// SPDX-License-Identifier: Apache-2.0
//
// Instructions, events, translator and hypervisor know no vendor's controls and exits: what has
// VT-x's names is in the folders of VT-x, and in X86, which has words alone.

import Testing

@Suite struct VendorSeamTests {
  private static let folders = ["Sources/X86/", "Sources/X86CPU/VMX/", "Sources/KVM/VMX/"]

  /// Names of VT-x's by how they begin, and whole ones.
  private static let prefixes = ["VMX", "VMCS"]
  private static let names: Set<Substring> = [
    "PinControls", "PrimaryControls", "SecondaryControls", "ExitControls", "EntryControls",
    "ExitReason", "ExitFields", "exitFields", "EntryChecks", "EntryFailure", "InterruptionInfo",
    "InstructionInformation", "IOQualification", "ControlRegisterQualification",
    "DebugRegisterQualification", "TaskSwitchQualification", "EPTViolationQualification",
    "NotifyQualification", "vmxControls",
  ]
  private static let verbs = ["vmread(", "vmwrite("]

  /// Files that may name something of VT-x's, and why.
  private static let exceptions: [String: (names: Set<Substring>, reason: String)] = [
    "Sources/X86CPU/PhysicalCPU.swift": (["VMXUnit"], "a physical CPU owns the unit"),
    "Sources/X86CPU/Blocks/Lowering.swift": (
      ["VMXInstructions"], "all instructions are registered there"
    ),
    "Sources/X86CPU/Model/MSRModel+Access.swift": (
      ["VMXCapabilities"], "the capability MSRs are MSRs of the processor's"
    ),
    "Sources/KVM/Backend/Backends.swift": (["VMX"], "the list of backends"),
  ]

  private static func isVendors(_ name: Substring) -> Bool {
    names.contains(name) || prefixes.contains { name.hasPrefix($0) }
  }

  /// The vendor's names in a file's code.
  private func found(in file: String) throws -> Set<Substring> {
    var found: Set<Substring> = []
    for line in try Repository.lines(file) {
      let code = line.prefix(upTo: Repository.commentStart(line))
      found.formUnion(code.split { !Repository.isIdentifier($0) }.filter(Self.isVendors))
      found.formUnion(Self.verbs.filter { code.contains($0) }.map { $0[...] })
    }
    return found
  }

  @Test func vendorsNamesStayInTheirFolders() throws {
    var seen = 0
    for file in Repository.files where file.hasPrefix("Sources/") && file.hasSuffix(".swift") {
      if Self.folders.contains(where: { file.hasPrefix($0) }) { continue }
      if file.hasPrefix("Sources/X86Decoder/") { continue }
      let allowed = Self.exceptions[file]?.names ?? []
      let names = try found(in: file)
      let strangers = names.subtracting(allowed).sorted()
      #expect(strangers.isEmpty, "\(file) names \(strangers), which are VT-x's")
      seen += 1
    }
    #expect(seen > 200)
  }

  @Test func exceptionsAreNeeded() throws {
    for (file, exception) in Self.exceptions {
      let unused = exception.names.subtracting(try found(in: file)).sorted()
      #expect(unused.isEmpty, "\(file) no longer names \(unused) (\(exception.reason))")
    }
  }
}
