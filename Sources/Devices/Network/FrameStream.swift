// SPDX-License-Identifier: Apache-2.0
//
// Ethernet frames over a stream socket, each preceded by its length in 32 bits, big-endian: the
// protocol of passt and QEMU's stream sockets. Nothing here blocks: an unsent rest is buffered, up
// to one frame, and so is an incomplete received frame.

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
  /// Room for some large frames.
  private static let inputSize = 256 << 10
  /// Limit of pieces in a system call.
  private static let pieceLimit = 1000

  enum Input {
    case more, none, ended
  }

  private let socket: OwnedFileDescriptor
  private var input = [UInt8](repeating: 0, count: inputSize)
  private var start = 0
  private var end = 0
  /// The unsent rest of a frame.
  private var output: [UInt8] = []
  private(set) var hasEnded = false

  /// Makes the socket non-blocking.
  init(_ socket: consuming OwnedFileDescriptor) throws(Errno) {
    let raw = socket.rawValue
    let flags = try systemCall { () -> Int32 in fcntl(raw, F_GETFL) }
    _ = try systemCall { () -> Int32 in fcntl(raw, F_SETFL, flags | O_NONBLOCK) }
    self.socket = socket
  }

  var descriptor: Int32 { socket.rawValue }
  var wantsToWrite: Bool { !output.isEmpty }

  // MARK: Receive

  /// Ends reception.
  mutating func giveUp() { hasEnded = true }

  /// The range of the next frame in the received bytes; nil if it is incomplete.
  private mutating func nextFrame() -> Range<Int>? {
    guard end &- start >= Self.prefixSize else { return nil }
    let size = input.load(big: UInt32.self, at: start).map { Int($0) } ?? 0
    guard size >= Self.frameMinimum, size <= Self.frameLimit else {
      // The start of the next frame is unknown.
      hasEnded = true
      return nil
    }
    let first = start &+ Self.prefixSize
    guard end &- first >= size else { return nil }
    return first..<first &+ size
  }

  /// Passes the next frame, if any, to a function, and drops it if that returns true.
  ///
  /// - Returns: nil without a frame, else what the function says.
  mutating func takeFrame(_ body: (RawSpan) -> Bool) -> Bool? {
    guard let frame = nextFrame() else { return nil }
    let isTaken = body(input.bytes.extracting(frame))
    if isTaken { start = frame.upperBound }
    return isTaken
  }

  /// Reads available bytes.
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

  // MARK: Send

  /// Sends a frame, or as much of it as the socket takes; `flush` sends the rest. Call it only when
  /// no rest is left.
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

  /// Sends the rest.
  mutating func flush() {
    guard !output.isEmpty, !hasEnded else { return }
    let raw = socket.rawValue
    let sent = unsafe output.withUnsafeMutableBytes {
      unsafe Self.send(raw, [iovec(iov_base: $0.baseAddress, iov_len: $0.count)])
    }
    if let sent { output.removeFirst(sent) } else { hasEnded = true }
  }

  /// The number of bytes sent; nil if the other end is closed.
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
