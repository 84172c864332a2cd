// SPDX-License-Identifier: Apache-2.0
//
// `martlet doctor vmcs` and `martlet doctor vmcb` as a user meets them.

import Glibc
import HostTestSupport
import Testing

@Suite struct DoctorFileTests {
  @Test func aVMCSIsExplained() throws {
    let text = "guest RFLAGS = 0x0  # bit 1 is missing\n"
    let file = try Command.temporaryFile(Array(text.utf8))
    defer { unlink(file) }
    let result = try Command.run(["doctor", "vmcs", file])
    #expect(result.status == 1 && result.errors == "", "\(result.errors)")
    #expect(result.output.contains("  guest RFLAGS  0x6820  0x0000000000000000\n"))
    #expect(result.output.contains("> guest RFLAGS = 0x0, bit 1 (fixed 1): reserved bits"))
    #expect(result.output.contains("not in the file, and taken as 0: pin-based VM-execution"))
    let same = try Command.run(["doctor", "vmcs", file, file])
    #expect(same.status == 0 && same.output == "" && same.errors == "")
  }

  @Test func aVMCBIsExplained() throws {
    let file = try Command.temporaryFile([UInt8](repeating: 0, count: 4096))
    defer { unlink(file) }
    let result = try Command.run(["doctor", "vmcb", file])
    #expect(result.status == 1 && result.errors == "", "\(result.errors)")
    #expect(result.output.contains("> EFER = 0x0, bit 12 (SVME): EFER.SVME must be 1"))
  }

  @Test func badFiles() throws {
    let text = try Command.temporaryFile(Array("guest CR9 = 1".utf8))
    let binary = try Command.temporaryFile([0xFF, 0, 1])
    defer {
      unlink(text)
      unlink(binary)
    }
    let rows: [(arguments: [String], text: String, status: Int32)] = [
      (["vmcs", text], "\(text): line 1: 'guest CR9' is no field of a VMCS", 2),
      (["vmcs", binary], "\(binary): no text; a VMCS is one line for each field", 2),
      (["vmcs", "/nonexistent"], "/nonexistent: No such file or directory", 2),
      (["vmcs", "/dev/zero"], "/dev/zero: File too large", 2),
      (["vmcb", text], "\(text): a VMCB has 4096 bytes, this file has 13", 2),
      (["vmcb", "/"], "/: Is a directory", 2),
      (["vmcb", text, text, text], "give one file or two", 64),
    ]
    for row in rows {
      let result = try Command.run(["doctor"] + row.arguments)
      #expect(result.status == row.status && result.output == "", "\(row.arguments)")
      #expect(result.errorLines.count == 1 && result.errors.contains(row.text), "\(result.errors)")
    }
  }
}
