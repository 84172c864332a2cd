// SPDX-License-Identifier: Apache-2.0
//
// Ethernet frames over a stream socket, each behind its length in 32 bits, high byte first: what
// passt and QEMU's stream sockets speak. Nothing here waits: what the socket does not take is kept,
// up to one frame, and what has come of a frame that is not whole is kept, too.

import CHost
import Glibc
import GuestMemory
import Host
import SystemPackage

/// A socket with frames. For one thread.
struct FrameStream: ~Copyable {
  /// The largest frame: an IP packet, and an Ethernet header with a VLAN's tag.
  static let frameLimit = 65_535 + 18
  static let frameMinimum = 14
  private static let prefixSize = 4
  /// Some large frames at a time.
  private static let inputSize = 256 << 10
  /// System calls take no more pieces.
  private static let pieceLimit = 1000

  enum Input {
    case more, none, ended
  }

  private let socket: OwnedFileDescriptor
  private var input = [UInt8](repeating: 0, count: inputSize)
  private var start = 0
  private var end = 0
  /// What is left of a frame that the socket has not taken whole.
  private var output: [UInt8] = []
  private(set) var hasEnded = false

  /// Makes the socket one that never waits.
  init(_ socket: consuming OwnedFileDescriptor) throws(Errno) {
    let raw = socket.rawValue
    let flags = try systemCall { () -> Int32 in fcntl(raw, F_GETFL) }
    _ = try systemCall { () -> Int32 in fcntl(raw, F_SETFL, flags | O_NONBLOCK) }
    self.socket = socket
  }

  var descriptor: Int32 { socket.rawValue }
  var wantsToWrite: Bool { !output.isEmpty }

  // MARK: In

  /// Nothing more is expected.
  mutating func giveUp() { hasEnded = true }

  /// Where the next frame is in what has come; nil where it is not whole.
  private mutating func nextFrame() -> Range<Int>? {
    guard end &- start >= Self.prefixSize else { return nil }
    let size = input.load(big: UInt32.self, at: start).map { Int($0) } ?? 0
    guard size >= Self.frameMinimum, size <= Self.frameLimit else {
      // Nobody knows where the next one begins.
      hasEnded = true
      return nil
    }
    let first = start &+ Self.prefixSize
    guard end &- first >= size else { return nil }
    return first..<first &+ size
  }

  /// Hands the next frame to a function, if one is there, and lets go of it when that returns true.
  ///
  /// - Returns: nil without a frame, else what the function says.
  mutating func takeFrame(_ body: (RawSpan) -> Bool) -> Bool? {
    guard let frame = nextFrame() else { return nil }
    let isTaken = body(input.bytes.extracting(frame))
    if isTaken { start = frame.upperBound }
    return isTaken
  }

  /// Reads what has come.
  mutating func fill() -> Input {
    if hasEnded { return .ended }
    if start > 0 {
      let (first, count) = (start, end &- start)
      input.withMutableBytes { $0.moveToStart(first..<first &+ count) }
      (start, end) = (0, count)
    }
    let raw = socket.rawValue
    let (used, room) = (end, input.count &- end)
    do throws(Errno) {
      let count = try input.withMutableBytes { (all) throws(Errno) -> Int in
        var rest = all.part(used..<used &+ room)
        return try Host.read(raw, into: &rest)
      }
      end &+= count
      if count == 0 { hasEnded = true }
      return count == 0 ? .ended : .more
    } catch {
      if error == .wouldBlock || error == .resourceTemporarilyUnavailable { return .none }
      hasEnded = true
      return .ended
    }
  }

  // MARK: Out

  /// Sends a frame, or as much of it as the socket takes; the rest follows by `flush`. Only while
  /// nothing is left.
  mutating func send(_ frame: GuestBuffers) {
    guard !hasEnded, frame.count >= Self.frameMinimum, frame.count <= Self.frameLimit else {
      return
    }
    let raw = socket.rawValue
    let prefix = UInt32(truncatingIfNeeded: frame.count).bigEndian
    let whole = frame.count &+ Self.prefixSize
    let sent: Int? = unsafe withUnsafeBytes(of: prefix) { prefix -> Int? in
      unsafe frame.withVectors { pieces -> Int? in
        guard pieces.count < Self.pieceLimit else { return 0 }
        let first = unsafe iovec(
          iov_base: UnsafeMutableRawPointer(mutating: prefix.baseAddress), iov_len: prefix.count)
        return unsafe Self.send(raw, [first] + pieces)
      }
    }
    guard let sent else {
      hasEnded = true
      return
    }
    if sent < whole {
      let all =
        unsafe withUnsafeBytes(of: prefix) { unsafe Array($0) }
        + (frame.bytes(count: frame.count) ?? [])
      output = Array(all[sent...])
    }
  }

  /// Sends what is left.
  mutating func flush() {
    guard !output.isEmpty, !hasEnded else { return }
    let raw = socket.rawValue
    let sent = unsafe output.withUnsafeMutableBytes {
      unsafe Self.send(raw, [iovec(iov_base: $0.baseAddress, iov_len: $0.count)])
    }
    if let sent { output.removeFirst(sent) } else { hasEnded = true }
  }

  /// How much went out; nil where nobody is there any more.
  private static func send(_ socket: Int32, _ pieces: [iovec]) -> Int? {
    do throws(Errno) {
      return try systemCall { () -> Int in
        unsafe pieces.withUnsafeBufferPointer {
          unsafe writev(socket, $0.baseAddress, Int32($0.count))
        }
      }
    } catch {
      return error == .wouldBlock || error == .resourceTemporarilyUnavailable ? 0 : nil
    }
  }
}
