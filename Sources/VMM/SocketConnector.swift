// SPDX-License-Identifier: Apache-2.0
//
// Connects to Unix sockets for the confined monitor, which cannot: a second process of this
// program, started before the monitor confines itself. It has the first part of the paths; the
// monitor sends only the port, which is the last part. So a guest that takes over the monitor
// reaches the sockets that it may reach anyway, and no others.
//
// The monitor sends a port (4 bytes) and receives one message: a byte, with the socket (unix(7),
// SCM_RIGHTS) if the connection succeeded.

import CHost
import Glibc
import Host
import Synchronization
import SystemPackage

/// The monitor's side.
package final class SocketConnector: Sendable {
  /// The name of the program's hidden command.
  package static let command = "connect-sockets"

  private struct State {
    /// Connections without an answer yet, in the order of the questions.
    var waiting: [UInt64] = []
    var source: EventLoop.Source?
  }

  /// Called with an answer in the event loop's thread.
  typealias Answer = @Sendable (UInt64, consuming OwnedFileDescriptor?) -> Void

  private let socket: OwnedFileDescriptor
  private let state = Mutex(State())

  /// Starts the process, for paths that are `base`, "_" and a port.
  init(base: String) throws(Errno) {
    let sockets = try HelperProcess.Sockets(SOCK_SEQPACKET)
    try HelperProcess.start(
      "/proc/self/exe", ["martlet", Self.command, base], socket: sockets.other.rawValue,
      output: nil)
    socket = sockets.takeOwn()
    let raw = socket.rawValue
    _ = try systemCall { () -> Int32 in fcntl(raw, F_SETFL, O_NONBLOCK) }
  }

  /// The path of a port.
  static func path(_ base: String, port: UInt32) -> String { "\(base)_\(port)" }

  /// The most bytes that a port adds to a path.
  static let suffixLimit = "_4294967295".utf8.count

  /// Starts receiving answers.
  ///
  /// - Parameters:
  ///   - ended: called when the process has exited.
  ///   - answer: called with each answer.
  func connect(
    _ loop: EventLoop, ended: @escaping @Sendable () -> Void, _ answer: @escaping Answer
  ) throws(Errno) {
    let source = try loop.add(socket.rawValue) { [weak self] _ in
      guard let self else { return }
      if receive(answer) { return }
      let (waiting, source) = state.withLock { state in
        defer { state = State() }
        return (state.waiting, state.source)
      }
      if let source { loop.remove(source) }
      for number in waiting { answer(number, nil) }
      ended()
    }
    state.withLock { $0.source = source }
  }

  /// Receives one answer; false if the process has exited.
  private func receive(_ answer: Answer) -> Bool {
    let message = FileMessage(from: socket.rawValue)
    if message.isEnd { return false }
    // The oldest question still waits for its answer.
    if message.isMissing { return true }
    let number = state.withLock { $0.waiting.isEmpty ? nil : $0.waiting.removeFirst() }
    if let number { answer(number, message.takeFile()) }
    return true
  }

  /// Asks for a connection; false if the process cannot be reached.
  func ask(port: UInt32, number: UInt64) -> Bool {
    let raw = socket.rawValue
    return state.withLock { state in
      let isSent = unsafe withUnsafeBytes(of: port.littleEndian) {
        unsafe write(raw, $0.baseAddress, $0.count) == $0.count
      }
      if isSent { state.waiting.append(number) }
      return isSent
    }
  }

  // MARK: The process

  /// Serves a monitor until it ends.
  package static func serve(base: String) {
    let monitor = HelperProcess.socketNumber
    var port: UInt32 = 0
    while unsafe Glibc.read(monitor, &port, 4) == 4 {
      let file = UnixSocket.connect(path(base, port: UInt32(littleEndian: port)))?.release()
      defer { if let file { close(file) } }
      guard FileMessage.send(file, to: monitor) else { return }
    }
  }
}

/// A message of one byte, with or without an open file (unix(7), "Ancillary messages").
private struct FileMessage: ~Copyable {
  private static let bytes = 24

  private var file: OwnedFileDescriptor?
  /// The other end is closed.
  let isEnd: Bool
  /// There was no message.
  let isMissing: Bool

  /// Receives one without waiting.
  init(from socket: Int32) {
    var control = [UInt64](repeating: 0, count: Self.bytes / 8)
    let flags = Int32(truncatingIfNeeded: MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
    let count = unsafe Self.call(&control) { unsafe recvmsg(socket, $0, flags) }
    isMissing = count < 0 && [EAGAIN, EINTR].contains(errno)
    isEnd = count <= 0 && !isMissing
    let header = unsafe control.withUnsafeBytes { unsafe $0.load(as: cmsghdr.self) }
    guard count == 1, Int(header.cmsg_len) == Self.length, header.cmsg_level == SOL_SOCKET,
      header.cmsg_type == Int32(truncatingIfNeeded: SCM_RIGHTS)
    else {
      file = nil
      return
    }
    file = OwnedFileDescriptor(owning: Int32(truncatingIfNeeded: control[2]))
  }

  consuming func takeFile() -> OwnedFileDescriptor? { file }

  /// Sends one; returns whether that succeeded.
  static func send(_ file: Int32?, to socket: Int32) -> Bool {
    var control = [UInt64](repeating: 0, count: bytes / 8)
    if let file {
      var header = cmsghdr()
      header.cmsg_len = length
      header.cmsg_level = SOL_SOCKET
      header.cmsg_type = Int32(truncatingIfNeeded: SCM_RIGHTS)
      unsafe control.withUnsafeMutableBytes {
        unsafe $0.storeBytes(of: header, as: cmsghdr.self)
        unsafe $0.storeBytes(of: file, toByteOffset: MemoryLayout<cmsghdr>.size, as: Int32.self)
      }
    }
    return unsafe call(&control, hasControl: file != nil) {
      unsafe sendmsg(socket, $0, Int32(truncatingIfNeeded: MSG_NOSIGNAL))
    } == 1
  }

  /// A header and one descriptor.
  private static let length = MemoryLayout<cmsghdr>.size + MemoryLayout<Int32>.size

  private static func call(
    _ control: inout [UInt64], hasControl: Bool = true,
    _ body: (UnsafeMutablePointer<msghdr>) -> Int
  ) -> Int {
    var byte: UInt8 = 0
    return unsafe withUnsafeMutableBytes(of: &byte) { byte in
      var piece = unsafe iovec(iov_base: byte.baseAddress, iov_len: 1)
      return unsafe control.withUnsafeMutableBytes { control in
        unsafe withUnsafeMutablePointer(to: &piece) { piece in
          var message = unsafe msghdr()
          unsafe (message.msg_iov, message.msg_iovlen) = unsafe (piece, 1)
          if hasControl {
            unsafe message.msg_control = control.baseAddress
            unsafe message.msg_controllen = control.count
          }
          return unsafe body(&message)
        }
      }
    }
  }
}
