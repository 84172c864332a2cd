// SPDX-License-Identifier: Apache-2.0
//
// Instructions, events, translator and hypervisor know no vendor's controls and exits: what has
// VT-x's names is in the folders of VT-x, what has SVM's in those of SVM, and X86 has words alone.
// Explanations of control structures are about both vendors' fields.

import Testing

@Suite struct VendorSeamTests {
  private static let folders = [
    "Sources/X86/", "Sources/X86CPU/VMX/", "Sources/KVM/VMX/", "Sources/X86CPU/SVM/",
    "Sources/KVM/SVM/", "Sources/KVM/Nested/SVM/", "Sources/KVM/Nested/VMX/",
    "Sources/X86CPU/Explanation/", "Sources/EntryDoctor/",
  ]

  /// Names of the vendors' by how they begin, and whole ones.
  private static let prefixes = ["VMX", "VMCS", "SVM", "VMCB", "VMRun"]
  private static let names: Set<Substring> = [
    "PinControls", "PrimaryControls", "SecondaryControls", "ExitControls", "EntryControls",
    "ExitReason", "ExitFields", "exitFields", "EntryChecks", "EntryFailure", "InterruptionInfo",
    "InstructionInformation", "IOQualification", "ControlRegisterQualification",
    "DebugRegisterQualification", "TaskSwitchQualification", "EPTViolationQualification",
    "NotifyQualification", "vmxControls", "NestedFaultInfo", "InterruptShadow", "TLBControl",
  ]
  private static let verbs = ["vmread(", "vmwrite(", "vmcbRead(", "vmcbWrite("]

  /// Files that may name something of a vendor's, and why.
  private static let exceptions: [String: (names: Set<Substring>, reason: String)] = [
    "Sources/X86CPU/PhysicalCPU.swift": (
      ["VMXUnit", "SVMUnit"], "a physical CPU owns the units"
    ),
    "Sources/X86CPU/Blocks/Lowering.swift": (
      ["VMXInstructions", "SVMInstructions"], "all instructions are registered there"
    ),
    "Sources/X86CPU/Model/MSRModel+Access.swift": (
      ["VMXCapabilities"], "the capability MSRs are MSRs of the processor's"
    ),
    "Sources/X86CPU/Model/CPUIDModel.swift": (["SVMCapabilities"], "CPUID tells what SVM has"),
    "Sources/martlet/Martlet.swift": (["SVM"], "the help of --vendor"),
    "Sources/martlet/KVMCommand.swift": (["SVM"], "the help of --vendor"),
    "Sources/martlet/DoctorCommand.swift": (
      ["VMCS", "VMCB", "VMCSCommand", "VMCBCommand", "VMCSFile"], "the commands' names"
    ),
    "Sources/KVM/Backend/Backends.swift": (["VMX", "SVM"], "the list of backends"),
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
      #expect(strangers.isEmpty, "\(file) names \(strangers), which are a vendor's")
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
