// SPDX-License-Identifier: Apache-2.0
//
// Debian's kernel and C library against `objdump -d`, instruction by instruction.

import Foundation
import Testing
import X86
import X86Decoder

@Suite(.serialized) struct SystemTextTests {
  @Test func libraryText() throws {
    try compare(path: "/lib/x86_64-linux-gnu/libc.so.6", minimum: 200_000)
  }

  @Test func kernelText() throws {
    let image = try KernelImage.vmlinux()
    defer { try? FileManager.default.removeItem(atPath: image) }
    try compare(path: image, minimum: 2_000_000)
  }

  private func compare(path: String, minimum: Int) throws {
    var compared = 0
    var skipped = 0
    var differences: [String] = []
    try Objdump.list(["-d", "-M", "intel64", "-j", ".text", path]) { listed in
      compared += 1
      guard let problem = problem(listed) else { return }
      // Only now look at the text: data between functions, and lines that are no instruction.
      guard !listed.isBad, Spelling.isComparable(listed) else {
        skipped += 1
        return
      }
      differences.append("\(hexText(listed.bytes)): \(problem), objdump \(listed.text)")
    }
    #expect(compared > minimum, "\(path)")
    #expect(skipped < compared / 500, "\(skipped) lines are no instructions to objdump")
    let shown = differences.prefix(30).joined(separator: "\n")
    #expect(differences.isEmpty, "\(differences.count) of \(compared) differ:\n\(shown)")
  }

  private func problem(_ listed: ListedInstruction) -> String? {
    switch decode(listed.bytes, .bits64) {
    case .failure(let error):
      return Spelling.absent.contains(Spelling.mnemonic(listed.text)) ? nil : "\(error)"
    case .success(let mine):
      guard Int(mine.length) == listed.bytes.count else { return "\(mine.length) bytes" }
      // Comparing texts is slow: a part of the frequent instructions, more of the others.
      let mask: UInt64 = mine.encoding.map == .oneByte ? 63 : 3
      guard listed.address & mask == 0 else { return nil }
      let text = listed.text
      if Spelling.agree(mine, at: listed.address, with: text) { return nil }
      if Spelling.absent.contains(Spelling.mnemonic(text)) { return nil }
      return Disassembler.text(mine, at: listed.address)
    }
  }
}

/// The vmlinux inside a bzImage.
enum KernelImage {
  /// `MARTLET_TEST_KERNEL`, or the kernel that `make` fetches.
  static var path: String {
    if let named = ProcessInfo.processInfo.environment["MARTLET_TEST_KERNEL"] { return named }
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
    return root.appendingPathComponent(".guest/vmlinuz-cloud-amd64").path
  }

  /// Decompresses the payload into a temporary file and returns its path.
  static func vmlinux() throws -> String {
    guard let image = FileManager.default.contents(atPath: path) else {
      throw ToolFailure(
        description: "no kernel at \(path): run Scripts/fetch-guest.sh, or set MARTLET_TEST_KERNEL")
    }
    let payload = try payload(of: [UInt8](image))
    let base = NSTemporaryDirectory() + "martlet-vmlinux-\(getpid())"
    try Data(payload).write(to: URL(fileURLWithPath: base + ".packed"))
    defer { try? FileManager.default.removeItem(atPath: base + ".packed") }
    try unpack(payload, from: base + ".packed", to: base)
    return base
  }

  /// "The real-mode kernel header": setup_sects, payload_offset, payload_length.
  private static func payload(of image: [UInt8]) throws -> ArraySlice<UInt8> {
    func word(_ offset: Int) -> Int {
      (0..<4).reduce(0) { $0 | Int(image[offset + $1]) << (8 * $1) }
    }
    guard image.count > 0x250, image[0x202...0x205].elementsEqual("HdrS".utf8)
    else { throw ToolFailure(description: "\(path) is no bzImage") }
    let setup = (Int(image[0x1F1]) + 1) * 512
    let start = setup + word(0x248)
    let end = start + word(0x24C)
    guard start < end, end <= image.count else {
      throw ToolFailure(description: "\(path) is truncated")
    }
    return image[start..<end]
  }

  /// The tool for a compression, by the first bytes; each is in the Debian package of its name
  /// (xz: xz-utils).
  private static let tools: [(magic: [UInt8], program: String, package: String)] = [
    ([0xFD, 0x37, 0x7A, 0x58], "xz", "xz-utils"),
    ([0x1F, 0x8B], "gzip", "gzip"),
    ([0x02, 0x21, 0x4C, 0x18], "lz4", "lz4"),
    ([0x28, 0xB5, 0x2F, 0xFD], "zstd", "zstd"),
  ]

  /// The size of the kernel follows the compressed data, which some tools report as garbage: what
  /// counts is that an ELF file came out.
  private static func unpack(_ payload: ArraySlice<UInt8>, from: String, to: String) throws {
    guard let tool = tools.first(where: { payload.starts(with: $0.magic) }) else {
      throw ToolFailure(description: "\(path): unknown compression")
    }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [tool.program, "-dc", from]
    guard FileManager.default.createFile(atPath: to, contents: nil) else {
      throw ToolFailure(description: "cannot write \(to)")
    }
    process.standardOutput = FileHandle(forWritingAtPath: to)
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    let head = FileHandle(forReadingAtPath: to)?.readData(ofLength: 4)
    guard head == Data([0x7F, 0x45, 0x4C, 0x46]) else {
      throw ToolFailure(
        description: "\(tool.program) failed on the kernel: apt-get install \(tool.package)")
    }
  }
}
