// SPDX-License-Identifier: Apache-2.0
//
// Linux services as the rest of the program has them: errnos become errors, mappings are
// aligned and shared as asked, events and kicks arrive, the terminal's mode comes back.

import CHost
import Glibc
import Host
import HostTestSupport
import Synchronization
import SystemPackage
import Testing

@Suite struct SystemCallTests {
  @Test func aFailedCallThrowsItsErrno() {
    #expect(throws: Errno.badFileDescriptor) {
      _ = try systemCall { () -> Int32 in close(-1) }
    }
    #expect(throws: Errno.noSuchFileOrDirectory) {
      _ = try contentsOfFile("/nonexistent/file")
    }
    #expect(throws: Errno.isDirectory) { _ = try contentsOfFile("/") }
  }

  @Test func anInterruptedCallIsRepeatedOrReported() throws {
    var calls = 0
    let value = try systemCall { () -> Int32 in
      calls += 1
      errno = EINTR
      return calls < 3 ? -1 : 7
    }
    #expect(value == 7 && calls == 3)
    #expect(throws: Errno.interrupted) {
      _ = try systemCall(interruption: .report) { () -> Int32 in
        errno = EINTR
        return -1
      }
    }
  }

  @Test func filesWithoutASizeAreReadToTheirEnd() throws {
    let text = try contentsOfFile("/proc/self/maps")
    #expect(text.count > 100 && text.last == UInt8(ascii: "\n"))
  }

  @Test func filesWithoutAnEndAreRefused() {
    #expect(throws: Errno.fileTooLarge) { _ = try contentsOfFile("/dev/zero", limit: 10_000) }
    #expect(throws: Errno.fileTooLarge) { _ = try contentsOfFile("/proc/self/maps", limit: 10) }
  }

  /// The largest file that there can be, of holes.
  @Test func filesThatNoMemoryHoldsAreRefused() throws {
    let file = memfd_create("large", UInt32(MFD_CLOEXEC))
    try #require(file >= 0)
    defer { close(file) }
    for size in [Int.max, 1 << 50] where ftruncate(file, size) == 0 {
      #expect(throws: Errno.fileTooLarge) { _ = try contentsOfFile("/proc/self/fd/\(file)") }
    }
  }
}

@Suite struct MappingTests {
  @Test func hugePageMappingsAreAligned() throws {
    for size in [1, 4096, 4097, 3 << 20, 64 << 20] {
      var mapping = try Mapping(anonymous: size, hugePages: true)
      #expect(Int(bitPattern: mapping.address) % Mapping.hugePageSize == 0)
      #expect(mapping.size >= size && mapping.size % 4096 == 0)
      let last = mapping.size - 1
      mapping.withMutableBytes { $0.storeBytes(of: 1, toByteOffset: last, as: UInt8.self) }
      let (inside, across) = (
        mapping.bytes.load(UInt8.self, at: last), mapping.bytes.load(UInt16.self, at: last)
      )
      #expect(inside == 1 && across == nil)
    }
  }

  @Test func impossibleSizesThrow() {
    #expect(throws: Errno.invalidArgument) { _ = try Mapping(anonymous: 0) }
    #expect(throws: Errno.noMemory) { _ = try Mapping(anonymous: 1 << 60) }
  }

  @Test func sharedMappingsSeeEachOther() throws {
    let file = try MemoryFile(name: "test", size: 8192)
    var one = try Mapping(sharing: file.descriptor.rawValue, size: 8192)
    let two = try Mapping(sharing: file.descriptor.rawValue, offset: 4096, size: 4096)
    one.withMutableBytes { $0.storeBytes(of: 0x5A, toByteOffset: 4096, as: UInt8.self) }
    let seen = two.bytes.load(UInt8.self, at: 0)
    #expect(seen == 0x5A)
  }

  @Test func codeIsWrittenHereAndRunThere() throws {
    let code = try CodeMemory(size: 4096)
    // mov eax, 42; ret
    code.writable.copyMemory(from: [0xB8, 42, 0, 0, 0, 0xC3] as [UInt8], byteCount: 6)
    typealias Function = @convention(c) () -> Int32
    #expect(unsafeBitCast(code.executable, to: Function.self)() == 42)
    #expect(code.writable != UnsafeMutableRawPointer(mutating: code.executable))
  }
}

@Suite struct EventTests {
  final class SharedText: Sendable {
    private let storage = Mutex<[UInt8]>([])
    func set(_ text: [UInt8]) { storage.withLock { $0 = text } }
    func get() -> [UInt8] { storage.withLock { $0 } }
  }

  @Test func pollerReportsWhatIsReady() throws {
    let poller = try Poller()
    let event = try EventFile()
    let timer = try TimerFile()
    try poller.add(event.descriptor.rawValue, token: 1)
    try poller.add(timer.descriptor.rawValue, token: 2)
    var seen: [UInt64] = []
    try poller.wait(timeout: 0) { token, _ in seen.append(token) }
    #expect(seen == [])
    event.signal()
    event.signal()
    try poller.wait(timeout: 1000) { token, _ in seen.append(token) }
    #expect(seen == [1])
    #expect(event.consume() == 2 && event.consume() == 0)
    let start = HostClock.monotonic()
    try timer.arm(at: start + 5_000_000)
    try poller.wait(timeout: 5000) { token, _ in seen.append(token) }
    #expect(seen == [1, 2] && timer.consume() == 1)
    #expect(HostClock.monotonic() - start >= 5_000_000)
  }

  @Test func aThreadHasItsNameAndCanBeKicked() throws {
    KickSignal.install()
    let name = SharedText()
    let result = SharedNumber()
    let ends = try makePipe()
    let thread = try HostThread(name: "a-long-thread-name") {
      name.set((try? contentsOfFile("/proc/thread-self/comm")) ?? [])
      var byte: UInt8 = 0
      let count = Glibc.read(ends.0, &byte, 1)
      result.value = count == -1 ? Int(errno) : -1
    }
    let identifier = thread.identifier
    while result.value == 0 {
      identifier.signal(KickSignal.number)
      usleep(1000)
    }
    thread.join()
    #expect(name.get() == Array("a-long-thread-n\n".utf8))
    #expect(result.value == Int(EINTR))
    close(ends.0)
    close(ends.1)
  }

  private func makePipe() throws -> (Int32, Int32) {
    var ends: [Int32] = [0, 0]
    _ = try systemCall { () -> Int32 in pipe(&ends) }
    return (ends[0], ends[1])
  }
}

@Suite(.serialized) struct RawTerminalTests {
  @Test func theTerminalIsRestored() throws {
    let pair = try PseudoTerminal()
    let before = pair.mode()
    do {
      let raw = try RawTerminal(descriptor: pair.terminal.rawValue)
      #expect(pair.mode().c_lflag & UInt32(ICANON | ECHO | ISIG) == 0)
      #expect(throws: Errno.resourceBusy) {
        _ = try RawTerminal(descriptor: pair.terminal.rawValue)
      }
      _ = consume raw
    }
    let after = pair.mode()
    #expect(after.c_lflag == before.c_lflag && after.c_iflag == before.c_iflag)
  }

  @Test func whatIsNoTerminalIsRefused() {
    #expect(throws: Errno.badFileDescriptor) { _ = try RawTerminal(descriptor: -1) }
  }
}
