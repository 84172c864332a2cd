// SPDX-License-Identifier: Apache-2.0
//
// One connection between a socket of the guest and a stream socket of the host: data in transit in
// both directions, and each side's credit. Nothing here blocks. Data that the host's socket does
// not accept is buffered up to `bufferSize`, the credit announced to the guest; data that the guest
// has no room for stays in the host's socket, except for one read.

import Glibc
import GuestMemory
import Host
import SystemPackage

/// A connection of a `VsockDevice`. For one thread at a time.
final class VsockConnection {
  /// Bytes that the guest may send ahead.
  static let bufferSize: UInt32 = 128 << 10
  /// Bytes of one read from the host's socket.
  private static let inputSize = 16 << 10

  enum Stage {
    /// The guest has asked; the host's side is being connected.
    case connecting
    /// The host has asked; the guest has not answered.
    case offered
    case open
    /// The guest has closed it; the host's side still gets earlier data.
    case draining
  }

  /// Packets due to the guest, other than data.
  struct Replies: OptionSet {
    let rawValue: UInt8
    static let request = Replies(rawValue: 1)
    static let response = Replies(rawValue: 2)
    static let credit = Replies(rawValue: 4)
  }

  let number: UInt64
  let ports: VsockPorts
  var stage: Stage
  var replies: Replies = []
  /// The guest has been asked to connect.
  private(set) var hasAsked = false
  /// It is in the device's queue of connections with packets.
  var isQueued = false

  var socket: OwnedFileDescriptor?
  var source: EventLoop.Source?
  var interest: Poller.Readiness = []

  // To the guest.
  private var input: [UInt8] = []
  private var inputStart = 0
  /// Nothing more comes from the host.
  private(set) var hasEnded = false
  /// The host's client has closed the socket: reads do not block.
  var isCut = false
  private var told: UInt32 = 0
  private var sent: UInt32 = 0
  private var guestBufferSize: UInt32 = 0
  private var guestForwarded: UInt32 = 0
  private var hasAskedForCredit = false
  /// What the guest has shut down (`VsockHeader.Shutdown`).
  private(set) var guestShutdown: UInt32 = 0

  // To the host.
  private var output: [UInt8] = []
  private var outputStart = 0
  private var received: UInt32 = 0
  private var forwarded: UInt32 = 0
  private var toldForwarded: UInt32 = 0
  /// The host's socket can be written.
  private var hostReceives = true
  private var isHalfClosed = false

  init(number: UInt64, _ ports: VsockPorts, _ stage: Stage) {
    self.number = number
    self.ports = ports
    self.stage = stage
  }

  private var guestReceives: Bool { guestShutdown & VsockHeader.Shutdown.receive == 0 }

  /// The host's socket has all that the guest has sent.
  var isFlushed: Bool { outputStart == output.count }

  // MARK: Credit

  /// Bytes that the guest has room for; 0 if its numbers are inconsistent.
  private var credit: Int {
    let used = sent &- guestForwarded
    return used <= guestBufferSize ? Int(guestBufferSize &- used) : 0
  }

  func noteCredit(_ header: VsockHeader) {
    (guestBufferSize, guestForwarded) = (header.bufferSize, header.forwarded)
    if credit > 0 { hasAskedForCredit = false }
  }

  // MARK: From the guest

  /// The guest accepts the host's connection: writes the line "OK" to the client.
  ///
  /// - Returns: false if the client has closed the socket.
  func accept() -> Bool {
    guard let raw = socket?.rawValue else { return false }
    let line = Array("OK \(ports.host)\n".utf8)
    // It is the first write, so the socket has room.
    guard unsafe Glibc.write(raw, line, line.count) == line.count else { return false }
    stage = .open
    fill()
    return true
  }

  /// Takes bytes that the guest has sent.
  ///
  /// - Returns: false if they exceed its credit.
  func accept(_ data: GuestBuffers) -> Bool {
    let room = Self.bufferSize &- (received &- forwarded)
    guard guestShutdown & VsockHeader.Shutdown.send == 0, data.count <= Int(room) else {
      return false
    }
    received &+= UInt32(truncatingIfNeeded: data.count)
    var done = 0
    if hostReceives, isFlushed { done = write(data) }
    if !hostReceives {
      forwarded = received
    } else if done < data.count, let rest = data.bytes(from: done, count: data.count &- done) {
      if outputStart >= Int(Self.bufferSize) {
        output.removeFirst(outputStart)
        outputStart = 0
      }
      output += rest
    }
    updateCredit()
    return true
  }

  /// Writes as much as the socket accepts; returns the count.
  private func write(_ data: GuestBuffers) -> Int {
    guard let raw = socket?.rawValue, !data.isEmpty else { return 0 }
    let progress = unsafe data.withVectors { pieces in
      Self.attempt {
        unsafe writev(raw, pieces.baseAddress, Int32(truncatingIfNeeded: pieces.count))
      }
    }
    return note(progress)
  }

  /// Writes buffered data to the host's socket.
  func flush() {
    guard let raw = socket?.rawValue, hostReceives, !isFlushed else { return }
    let start = outputStart
    let progress = unsafe output.withUnsafeBytes { bytes in
      let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[start...])
      return Self.attempt { unsafe Glibc.write(raw, rest.baseAddress, rest.count) }
    }
    outputStart &+= note(progress)
    if isFlushed { (output, outputStart) = ([], 0) }
    updateCredit()
  }

  /// Notes the result of a write; returns the bytes written.
  private func note(_ progress: Progress) -> Int {
    switch progress {
    case .bytes(let count):
      forwarded &+= UInt32(truncatingIfNeeded: count)
      return count
    case .wait: break
    case .end: stopReceiving()
    }
    return 0
  }

  /// The result of a call on the host's socket.
  private enum Progress {
    case bytes(Int)
    case wait
    /// End of file or an error: no more calls.
    case end
  }

  private static func attempt(_ call: () -> Int) -> Progress {
    do throws(Errno) {
      let count = try systemCall { () -> Int in call() }
      return count > 0 ? .bytes(count) : .end
    } catch {
      return error == .wouldBlock || error == .resourceTemporarilyUnavailable ? .wait : .end
    }
  }

  /// Drops buffered data, because the host's socket cannot be written any more.
  private func stopReceiving() {
    hostReceives = false
    (output, outputStart) = ([], 0)
    forwarded = received
  }

  private func updateCredit() {
    if forwarded &- toldForwarded >= Self.bufferSize / 2 { replies.insert(.credit) }
  }

  /// The guest has shut down receiving or sending: does the same at the host's socket.
  func noteShutdown(_ flags: UInt32) {
    guestShutdown |= flags & VsockHeader.Shutdown.both
    if !guestReceives {
      (input, inputStart) = ([], 0)
      if let raw = socket?.rawValue { shutdown(raw, Int32(SHUT_RD)) }
    }
    closeHalf()
  }

  /// Shuts down the host's socket for writing after the guest's last byte.
  func closeHalf() {
    guard guestShutdown & VsockHeader.Shutdown.send != 0, isFlushed, !isHalfClosed else { return }
    isHalfClosed = true
    if let raw = socket?.rawValue { shutdown(raw, Int32(SHUT_WR)) }
  }

  // MARK: To the guest

  /// The host's client has closed the socket.
  func noteCut() {
    isCut = true
    stopReceiving()
  }

  /// Reads from the host's socket if the last read has been sent to the guest.
  func fill() {
    guard stage == .open, guestReceives, !hasEnded, inputStart == input.count,
      let raw = socket?.rawValue
    else { return }
    var bytes = [UInt8](repeating: 0, count: Self.inputSize)
    let progress = unsafe bytes.withUnsafeMutableBytes { bytes in
      Self.attempt { unsafe Glibc.read(raw, bytes.baseAddress, bytes.count) }
    }
    switch progress {
    case .bytes(let count): (input, inputStart) = (Array(bytes[..<count]), 0)
    case .wait: break
    case .end: hasEnded = true
    }
  }

  /// Flags of the shutdown to announce to the guest.
  private var ending: UInt32 {
    guard stage == .open else { return 0 }
    let isOver = inputStart == input.count && (hasEnded || isCut && !guestReceives)
    return (isOver ? VsockHeader.Shutdown.send : 0)
      | (isCut || !hostReceives ? VsockHeader.Shutdown.receive : 0)
  }

  private var hasData: Bool { stage == .open && guestReceives && inputStart < input.count }

  /// Whether there is a packet for the guest.
  var hasPacket: Bool {
    !replies.isEmpty || ending != told || hasData && (credit > 0 || !hasAskedForCredit)
  }

  /// The next packet for the guest, with at most `room` bytes of data.
  func nextPacket(room: Int, _ header: inout VsockHeader) -> ArraySlice<UInt8> {
    typealias Operation = VsockHeader.Operation
    var data: ArraySlice<UInt8> = []
    if replies.contains(.request) {
      header.operation = Operation.request
      (hasAsked, replies) = (true, replies.subtracting(.request))
    } else if replies.contains(.response) {
      header.operation = Operation.response
      replies.remove(.response)
    } else if hasData, credit > 0 {
      header.operation = Operation.data
      data = input[inputStart...].prefix(min(room, credit))
      inputStart &+= data.count
      sent &+= UInt32(truncatingIfNeeded: data.count)
    } else if ending != told {
      header.operation = Operation.shutdown
      told = ending
      header.flags = told
    } else if hasData, !hasAskedForCredit {
      header.operation = Operation.creditRequest
      hasAskedForCredit = true
    } else {
      header.operation = Operation.creditUpdate
    }
    // Every packet carries the credit.
    replies.remove(.credit)
    toldForwarded = forwarded
    header.length = UInt32(truncatingIfNeeded: data.count)
    (header.bufferSize, header.forwarded) = (Self.bufferSize, forwarded)
    return data
  }

  // MARK: Waiting

  /// The events of the host's socket to wait for.
  var wanted: Poller.Readiness {
    var wanted: Poller.Readiness = []
    if stage == .open, guestReceives, !hasEnded, inputStart == input.count {
      wanted.insert(.readable)
    }
    if !isFlushed { wanted.insert(.writable) }
    return wanted
  }
}
