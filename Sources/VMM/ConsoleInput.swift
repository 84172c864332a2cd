// SPDX-License-Identifier: Apache-2.0
//
// The input of the serial port: a terminal with its escape keys, a pipe, or a plain file, which
// cannot be polled and is read every few milliseconds. The guest reads at its own speed, so input
// stays in the descriptor while the port has enough.

import Devices
import Glibc
import Host
import Synchronization
import SystemPackage

/// Reads a descriptor for the serial port. For the event loop's thread.
final class ConsoleInput: Sendable {
  private struct State {
    var keys = EscapeKeys()
    var isOpen = true
    var canBePolled = true
    /// Registered with the event loop: it can be polled, and the guest keeps up.
    var source: EventLoop.Source?
  }

  /// Limit of unread bytes in the serial port.
  private static let backlog = 4096
  private static let chunkSize = 1024
  /// Milliseconds between reads of a descriptor that cannot be polled.
  private static let interval: Int32 = 10

  private let descriptor: Int32
  private let isTerminal: Bool
  private let board: Board
  private let state = Mutex(State())

  init(_ descriptor: Int32, isTerminal: Bool, _ board: Board) {
    self.descriptor = descriptor
    self.isTerminal = isTerminal
    self.board = board
  }

  private var hasRoom: Bool { board.input.pendingInput < Self.backlog }

  /// Registers or unregisters the descriptor.
  ///
  /// - Returns: milliseconds until `look` must be called; nil if it need not be.
  func update() throws(Errno) -> Int32? {
    try state.withLock { (state) throws(Errno) in
      let isWanted = state.isOpen && hasRoom
      if state.canBePolled, isWanted != (state.source != nil) {
        if isWanted { try register(&state) } else { unregister(&state) }
      }
      return state.isOpen && state.source == nil ? Self.interval : nil
    }
  }

  private func register(_ state: inout State) throws(Errno) {
    do throws(Errno) {
      state.source = try board.loop.add(descriptor) { [self] _ in read() }
    } catch {
      switch error {
      case .notPermitted: state.canBePolled = false  // a plain file is always ready
      case .badFileDescriptor: state.isOpen = false
      default: throw error
      }
    }
  }

  private func unregister(_ state: inout State) {
    if let source = state.source { board.loop.remove(source) }
    state.source = nil
  }

  /// Reads a descriptor that cannot be polled.
  func look() {
    if state.withLock({ $0.isOpen && !$0.canBePolled }) { read() }
  }

  private func read() {
    guard state.withLock({ $0.isOpen }), hasRoom else { return }
    var chunk = [UInt8](repeating: 0, count: Self.chunkSize)
    let count = chunk.withMutableBytes { (try? Host.read(descriptor, into: &$0)) ?? 0 }
    guard count > 0 else {
      state.withLock { state in
        state.isOpen = false
        unregister(&state)
      }
      return
    }
    board.input.receive(isTerminal ? typed(chunk[..<count]) : Array(chunk[..<count]))
  }

  /// The typed bytes for the guest, without escape keys.
  private func typed(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
    state.withLock { $0.keys.take(bytes) }.compactMap { event in
      switch event {
      case .input(let byte): return byte
      case .quit: board.control.end(.quit)
      case .help: writeText(STDERR_FILENO, "\r\nmartlet: \(EscapeKeys.help)\r\n")
      }
      return nil
    }
  }
}
