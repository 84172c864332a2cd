// SPDX-License-Identifier: Apache-2.0
//
// The host sides of a virtio console's ports: the terminal for the first, and for each other a Unix
// socket that accepts one client at a time.

import CHost
import Devices
import Glibc
import Host
import Synchronization
import SystemPackage

/// Receives a terminal's input.
protocol InputReceiver: Sendable {
  /// Bytes that the guest has not read yet.
  var pendingInput: Int { get }
  func receive(_ bytes: [UInt8])
}

extension SerialPort: InputReceiver {}

/// The terminal as a port.
final class TerminalPort: ConsoleBackend, InputReceiver {
  private let writer: ConsoleWriter
  private let input = Mutex<[UInt8]>([])
  private let wake = Mutex<(@Sendable () -> Void)?>(nil)

  init(_ writer: ConsoleWriter) { self.writer = writer }

  /// - Parameter wake: makes the device check for bytes.
  func connect(wake: @escaping @Sendable () -> Void) { self.wake.withLock { $0 = wake } }

  var isOpen: Bool { true }
  var hasRoom: Bool { true }
  var hasInput: Bool { pendingInput > 0 }
  func put(_ bytes: [UInt8]) { for byte in bytes { writer.put(byte) } }

  func take(_ limit: Int) -> [UInt8] {
    input.withLock { input in
      defer { input.removeFirst(min(limit, input.count)) }
      return Array(input.prefix(limit))
    }
  }

  var pendingInput: Int { input.withLock { $0.count } }

  func receive(_ bytes: [UInt8]) {
    input.withLock { $0 += bytes }
    wake.withLock { $0 }?()
  }
}

/// A console without a terminal, if there are other ports.
final class NobodyPort: ConsoleBackend {
  let isOpen = false
  let hasRoom = true
  let hasInput = false
  func put(_ bytes: [UInt8]) {}
  func take(_ limit: Int) -> [UInt8] { [] }
}

/// A guest's port, and the host's socket for it.
package struct PortConfiguration: Sendable, Hashable {
  package let name: String
  package let path: String

  /// Reads text such as "agent=/run/user/1000/agent.sock".
  package init(_ text: String) throws(RunError) {
    let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else {
      throw RunError("--port \(text): give NAME=SOCKET")
    }
    (name, path) = (String(parts[0]), String(parts[1]))
    guard name.utf8.count <= 63, name.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F && $0 != 0x2F })
    else { throw RunError("--port \(text): a name has up to 63 letters, digits and signs but /") }
    guard path.utf8.count < UnixSocket.pathLimit else {
      throw RunError("--port \(text): too long for a socket; give a shorter path")
    }
  }
}

/// A Unix socket as a port.
final class SocketPort: ConsoleBackend {
  private struct State {
    var client: Int32?
    var source: EventLoop.Source?
    var interest: Poller.Readiness = .readable
    var input: [UInt8] = []
    var output: [UInt8] = []
    var loop: EventLoop?
    var wake: (@Sendable () -> Void)?
  }

  /// Limit of bytes that wait for the guest.
  private static let backlog = 64 << 10

  private let listener: OwnedFileDescriptor
  private let state = Mutex(State())

  /// Listens at a path, and replaces an old socket without a listener.
  init(_ configuration: PortConfiguration) throws(RunError) {
    let option = "--port \(configuration.name)=\(configuration.path)"
    do throws(Errno) {
      listener = try UnixSocket.listen(configuration.path)
    } catch {
      throw RunError(
        error == .addressInUse
          ? "\(option): in use by another program; give another path"
          : "\(option): cannot be made (\(error)); check the folder")
    }
  }

  /// - Parameter wake: makes the device check for bytes, room, or a change of `isOpen`.
  func connect(_ loop: EventLoop, wake: @escaping @Sendable () -> Void) throws(Errno) {
    state.withLock { ($0.loop, $0.wake) = (loop, wake) }
    _ = try loop.add(listener.rawValue) { [weak self] _ in self?.accept() }
  }

  var isOpen: Bool { state.withLock { $0.client != nil } }
  var hasRoom: Bool { state.withLock { $0.output.isEmpty } }
  var hasInput: Bool { state.withLock { !$0.input.isEmpty } }

  func put(_ bytes: [UInt8]) {
    state.withLock { state in
      state.output += bytes
      flush(&state)
      update(&state)
    }
  }

  func take(_ limit: Int) -> [UInt8] {
    state.withLock { state in
      let bytes = Array(state.input.prefix(limit))
      state.input.removeFirst(bytes.count)
      update(&state)
      return bytes
    }
  }

  // MARK: In the event loop's thread

  private func accept() {
    guard let client = UnixSocket.accept(listener.rawValue)?.release() else { return }
    state.withLock { state in
      guard state.client == nil else {
        close(client)
        return
      }
      (state.client, state.interest, state.output) = (client, .readable, [])
      state.source = try? state.loop?.add(client) { [weak self] in self?.serve($0) }
      if state.source == nil { drop(&state) }
    }
    state.withLock { $0.wake }?()
  }

  private func serve(_ readiness: Poller.Readiness) {
    state.withLock { state in
      if readiness.contains(.writable) { flush(&state) }
      let isCut = !readiness.isDisjoint(with: [.hangUp, .error])
      if isCut, state.input.count >= Self.backlog { drop(&state) }
      if isCut || readiness.contains(.readable) { fill(&state) }
      update(&state)
    }
    state.withLock { $0.wake }?()
  }

  private func fill(_ state: inout State) {
    guard let client = state.client, state.input.count < Self.backlog else { return }
    var chunk = [UInt8](repeating: 0, count: 4096)
    let count = unsafe Glibc.read(client, &chunk, chunk.count)
    if count > 0 {
      state.input += chunk[..<count]
    } else if count == 0 || ![EAGAIN, EINTR].contains(errno) {
      drop(&state)
    }
  }

  private func flush(_ state: inout State) {
    guard let client = state.client, !state.output.isEmpty else { return }
    let count = unsafe Glibc.write(client, state.output, state.output.count)
    if count > 0 {
      state.output.removeFirst(count)
    } else if ![EAGAIN, EINTR].contains(errno) {
      drop(&state)
    }
  }

  /// Sets the events to wait for: input if there is room, output if bytes are left.
  private func update(_ state: inout State) {
    guard let source = state.source else { return }
    var interest: Poller.Readiness = state.input.count < Self.backlog ? .readable : []
    if !state.output.isEmpty { interest.insert(.writable) }
    guard interest != state.interest else { return }
    state.interest = interest
    try? state.loop?.change(source, interest: interest)
  }

  /// The client has disconnected; its bytes stay for the guest.
  private func drop(_ state: inout State) {
    if let source = state.source { state.loop?.remove(source) }
    if let client = state.client { close(client) }
    (state.source, state.client, state.output) = (nil, nil, [])
  }
}
