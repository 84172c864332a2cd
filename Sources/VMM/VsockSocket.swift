// SPDX-License-Identifier: Apache-2.0
//
// The --vsock option, and the host's end of the guest's sockets: one Unix socket where host clients
// name the guest port to connect to, and one socket for each host port that the guest may connect
// to. Firecracker and Cloud Hypervisor use the same convention, so their tools work.
//
//     host:   connect to PATH, write "CONNECT 52\n", read "OK 1073741824\n", then talk
//     guest:  connect to address 2, port 52; the listener at PATH_52 gets the connection

import CHost
import Devices
import Glibc
import Host
import Logging
import Synchronization
import SystemPackage

/// The guest's address and the path of the host's socket.
package struct VsockConfiguration: Sendable, Hashable {
  package private(set) var address = VsockDevice.firstGuestAddress
  package private(set) var path = ""

  /// Reads text such as "cid=3,path=/run/user/1000/guest.sock".
  package init(_ text: String) throws(RunError) {
    for option in text.split(separator: ",", omittingEmptySubsequences: false) {
      let parts = option.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      let value = parts.count == 2 ? parts[1] : ""
      switch parts[0] {
      case "cid":
        guard let number = UInt32(value),
          (VsockDevice.firstGuestAddress..<UInt32.max).contains(number)
        else {
          throw RunError(
            "--vsock \(text): cid=\(value) is no guest's address; give a number from 3 to 4294967294"
          )
        }
        address = number
      case "path" where !value.isEmpty: path = String(value)
      default:
        throw RunError("--vsock \(text): unknown option \(option); give cid=NUMBER,path=SOCKET")
      }
    }
    guard !path.isEmpty else {
      throw RunError("--vsock \(text): no path; give cid=NUMBER,path=SOCKET")
    }
    guard path.utf8.count < UnixSocket.pathLimit - SocketConnector.suffixLimit else {
      throw RunError("--vsock \(text): too long for a socket; give a shorter path")
    }
  }
}

/// The host's side.
final class VsockSocket: VsockBackend {
  /// A client that has not named a port yet.
  private struct Client {
    let source: EventLoop.Source
    var line: [UInt8] = []
  }

  private struct State {
    var clients: [Int32: Client] = [:]
    /// Oldest first.
    var order: [Int32] = []
  }

  /// Limit of clients that have not named a port: one more closes the oldest.
  private static let clientLimit = 32
  private static let lineLimit = "CONNECT 4294967295\r\n".utf8.count
  private static let backlog: Int32 = 64

  let configuration: VsockConfiguration
  private let listener: OwnedFileDescriptor
  private let connector: SocketConnector
  private let state = Mutex(State())

  init(_ configuration: VsockConfiguration) throws(RunError) {
    self.configuration = configuration
    let option = "--vsock path=\(configuration.path)"
    do throws(Errno) {
      listener = try UnixSocket.listen(configuration.path, backlog: Self.backlog)
    } catch {
      throw RunError(
        error == .addressInUse
          ? "\(option): in use by another program; give another path"
          : "\(option): cannot be made (\(error)); check the folder")
    }
    do throws(Errno) {
      connector = try SocketConnector(base: configuration.path)
    } catch {
      throw RunError(
        "\(option): its helper does not start: \(error)", status: ExitStatus.engineFailed)
    }
  }

  /// Starts serving a device.
  func start(_ loop: EventLoop, _ device: VsockDevice) throws(Errno) {
    try connector.connect(
      loop,
      ended: {
        log.warning("vsock: the helper process has ended; the guest cannot connect any more")
      }
    ) { [weak device] number, file in device?.connected(number, file) }
    _ = try loop.add(listener.rawValue) { [weak self, weak device] _ in
      guard let self, let device, let file = UnixSocket.accept(listener.rawValue) else { return }
      add(file, loop, device)
    }
  }

  // MARK: VsockBackend

  func connect(port: UInt32, number: UInt64) -> Bool { connector.ask(port: port, number: number) }

  // MARK: Clients, in the event loop's thread

  private func add(
    _ file: consuming OwnedFileDescriptor, _ loop: EventLoop, _ device: VsockDevice
  ) {
    let raw = file.release()
    let oldest = state.withLock { state in
      state.order.count >= Self.clientLimit ? state.order.first : nil
    }
    if let oldest { _ = take(oldest, loop) }
    let source = try? loop.add(raw) { [weak self, weak device] _ in
      guard let self, let device else { return }
      listen(raw, loop, device)
    }
    guard let source else {
      close(raw)
      return
    }
    state.withLock { state in
      state.clients[raw] = Client(source: source)
      state.order.append(raw)
    }
  }

  /// Removes a client from the table and returns its socket.
  private func take(_ raw: Int32, _ loop: EventLoop) -> OwnedFileDescriptor {
    let client = state.withLock { state in
      state.order.removeAll { $0 == raw }
      return state.clients.removeValue(forKey: raw)
    }
    if let client { loop.remove(client.source) }
    return OwnedFileDescriptor(owning: raw)
  }

  /// Reads a client's line, and no byte behind it.
  private func listen(_ raw: Int32, _ loop: EventLoop, _ device: VsockDevice) {
    var byte: UInt8 = 0
    while true {
      let count = unsafe Glibc.read(raw, &byte, 1)
      if count < 0, [EAGAIN, EINTR].contains(errno) { return }
      let line = state.withLock { state in
        state.clients[raw]?.line.append(byte)
        return state.clients[raw]?.line ?? []
      }
      if count == 1, byte != UInt8(ascii: "\n"), line.count < Self.lineLimit { continue }
      let file = take(raw, loop)
      if count == 1, let port = Self.port(line) { device.offer(port: port, socket: file) }
      return
    }
  }

  /// The port in a line; nil if the line is malformed.
  static func port(_ line: [UInt8]) -> UInt32? {
    let text = String(decoding: line, as: UTF8.self)
    guard let end = text.last, end.isNewline else { return nil }
    let words = text.dropLast().split(separator: " ", omittingEmptySubsequences: false)
    guard words.count == 2, words[0].uppercased() == "CONNECT" else { return nil }
    return UInt32(words[1])
  }
}
