// SPDX-License-Identifier: Apache-2.0
//
// Raw disk images: what is written is in the file, locks keep others out, and what is no image
// is refused.

import Devices
import Glibc
import GuestMemory
import HostTestSupport
import SystemPackage
import Testing

@Suite struct RawImageTests {
  let path: String
  let memory: GuestMemory

  init() throws {
    path = try Command.temporaryFile([UInt8](repeating: 0x5A, count: 64 << 10))
    memory = try GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
  }

  private func buffers(_ pieces: [(UInt64, UInt32)]) -> GuestBuffers {
    var buffers = GuestBuffers(memory)
    for (address, count) in pieces { _ = buffers.append(address, count: count) }
    return buffers
  }

  private func contents(_ offset: Int, _ count: Int) throws -> [UInt8] {
    let file = open(path, O_RDONLY)
    defer { close(file) }
    var bytes = [UInt8](repeating: 0, count: count)
    #expect(pread(file, &bytes, count, offset) == count)
    return bytes
  }

  private func failure(_ path: String, isReadOnly: Bool = false) -> ImageError? {
    do throws(ImageError) {
      _ = try RawImage(path: path, isReadOnly: isReadOnly)
      return nil
    } catch {
      return error
    }
  }

  @Test func bytesGoInAndOut() throws {
    defer { unlink(path) }
    let image = try RawImage(path: path, isReadOnly: false)
    #expect(image.size == 64 << 10)
    let bytes = (0..<1024).map { UInt8(truncatingIfNeeded: $0) }
    #expect(memory.write(bytes, at: 0x1000))
    try image.write(at: 512, from: buffers([(0x1000, 24), (0x1018, 1000)]))
    try image.flush()
    #expect(try contents(512, 1024) == bytes)
    try image.read(at: 512, into: buffers([(0x9000, 1), (0x9001, 1023)]))
    #expect(memory.read(0x9000, count: 1024) == bytes)
    try image.writeZeroes(at: 512, count: 512, mayDiscard: false)
    try image.discard(at: 4096, count: 4096)
    #expect(try contents(512, 512) == [UInt8](repeating: 0, count: 512))
    #expect(try contents(1024, 1)[0] == bytes[512] && image.size == 64 << 10)
  }

  /// A file that somebody cuts gives an error, no end.
  @Test func aFileThatIsCut() throws {
    defer { unlink(path) }
    let image = try RawImage(path: path, isReadOnly: false)
    truncate(path, 512)
    #expect(throws: Errno.ioError) { try image.read(at: 0, into: buffers([(0, 1024)])) }
  }

  @Test func locksKeepWritersApart() throws {
    defer { unlink(path) }
    do {
      let first = try RawImage(path: path, isReadOnly: false)
      withExtendedLifetime(first) {
        #expect(failure(path) == .isInUse && failure(path, isReadOnly: true) == .isInUse)
      }
    }
    let readers = try (0..<2).map { _ in try RawImage(path: path, isReadOnly: true) }
    withExtendedLifetime(readers) { #expect(failure(path) == .isInUse) }
  }

  @Test func whatIsNoImage() throws {
    defer { unlink(path) }
    #expect(failure("/nonexistent/image") == .cannotOpen(.noSuchFileOrDirectory))
    #expect(failure("/tmp", isReadOnly: true) == .notAFile)
    #expect(failure("/dev/null") == .notAFile)
    truncate(path, 1000)
    #expect(failure(path) == .badSize(1000))
    truncate(path, 0)
    #expect(failure(path) == .isEmpty)
  }
}
