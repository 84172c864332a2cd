// SPDX-License-Identifier: Apache-2.0
//
// martlet kvm starts no program that would use the host's own KVM without a word. The programs
// are made for the test.

import Glibc
import HostTestSupport
import Testing

@Suite struct ProgramFileTests {
  /// An ELF file of one page that exits with 42.
  private func program(machine: UInt16 = 62, type: UInt16 = 2) -> [UInt8] {
    var file = [UInt8](repeating: 0, count: 0x90)
    func store<T: FixedWidthInteger>(_ value: T, _ offset: Int) {
      withUnsafeBytes(of: value) { file.replaceSubrange(offset..<offset + $0.count, with: $0) }
    }
    file.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1])
    store(type, 16)
    store(machine, 18)
    store(UInt32(1), 20)
    // Entry, program headers; the sizes of headers, one program header.
    for (value, place) in [(0x40_0078, 24), (64, 32)] as [(UInt64, Int)] { store(value, place) }
    for (value, place) in [(64, 52), (56, 54), (1, 56)] as [(UInt16, Int)] { store(value, place) }
    // PT_LOAD, readable and executable; addresses, sizes, alignment.
    for (value, place) in [(1, 64), (5, 68)] as [(UInt32, Int)] { store(value, place) }
    for place in [80, 88] { store(UInt64(0x40_0000), place) }
    for place in [96, 104] { store(UInt64(0x90), place) }
    store(UInt64(0x1000), 112)
    // mov eax, 231; mov edi, 42; syscall
    file.replaceSubrange(0x78..<0x84, with: [0xB8, 231, 0, 0, 0, 0xBF, 42, 0, 0, 0, 0x0F, 0x05])
    return file
  }

  private func refused(_ bytes: [UInt8], _ text: String, mode: mode_t = 0o755) throws {
    let path = try Command.temporaryFile(bytes)
    defer { unlink(path) }
    #expect(chmod(path, mode) == 0)
    let result = try Command.run(["kvm", "--", path])
    #expect(result.status == 127 && result.output == "", "\(result)")
    #expect(result.errorLines.count == 1 && result.errors.contains(text), "\(result)")
  }

  @Test func staticPrograms() throws {
    try refused(program(), "statically linked")
    try refused(program(type: 3), "statically linked")
  }

  @Test func otherMachines() throws {
    try refused(program(machine: 183), "not a 64-bit x86 program")
    var narrow = program()
    narrow[4] = 1
    try refused(narrow, "not a 64-bit x86 program")
  }

  @Test func scripts() throws {
    let path = try Command.temporaryFile(program())
    defer { unlink(path) }
    #expect(chmod(path, 0o755) == 0)
    try refused(Array("#! \(path) -x\nanything\n".utf8), "statically linked")
    let script = try Command.temporaryFile(Array("#!/bin/sh\nexit 43\n".utf8))
    defer { unlink(script) }
    #expect(chmod(script, 0o755) == 0)
    let result = try Command.run(["kvm", "--", script])
    #expect(result.status == 43 && result.errors == "", "\(result)")
  }

  /// Found by PATH as any other program.
  @Test func programsByName() throws {
    let result = try Command.run(["kvm", "--", "sh", "-c", "exit 44"])
    #expect(result.status == 44 && result.errors == "", "\(result)")
  }
}
