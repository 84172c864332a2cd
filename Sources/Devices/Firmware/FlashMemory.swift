// SPDX-License-Identifier: Apache-2.0
//
// The flash chip in which UEFI stores its variables: 8 bits wide, Intel's command set ("Common
// Flash Memory Interface Publication 100", command set 0001H). It usually reads as memory, and the
// machine then maps it as read-only memory; after a command all accesses go to this device until
// another command returns to memory mode.
//
//     write 0x10, then a byte      programs the byte: bits of it become 0
//     write 0x20, then 0xD0        erases the block: all its bits become 1
//     write 0x70                   reads are the status
//     write 0xFF                   reads are the contents

import Host
import Synchronization
import SystemPackage

@safe package final class FlashMemory: BusDevice {
  /// Bytes that are erased together.
  package static let blockSize = 4096

  package enum Command {
    package static let program: UInt8 = 0x10
    package static let programAlternate: UInt8 = 0x40
    package static let erase: UInt8 = 0x20
    package static let eraseConfirm: UInt8 = 0xD0
    package static let clearStatus: UInt8 = 0x50
    package static let readStatus: UInt8 = 0x70
    package static let readIdentifier: UInt8 = 0x90
    package static let query: UInt8 = 0x98
    package static let readArray: UInt8 = 0xFF
  }

  package enum Status {
    package static let ready: UInt8 = 1 << 7
    package static let eraseError: UInt8 = 1 << 5
    package static let programError: UInt8 = 1 << 4
  }

  private enum Mode {
    case array
    case status
    case identifier
    case query
  }

  /// A command that waits for its second write.
  private enum Pending {
    case program
    case erase
  }

  private struct State {
    var mode = Mode.array
    var pending: Pending?
    var status = Status.ready
  }

  /// Maps the contents as memory, or sends reads to the device.
  package typealias Visibility = @Sendable (_ isMemory: Bool) -> Void
  /// Keeps contents that have changed: where they begin, and their bytes. Throws where it cannot.
  package typealias Keeper = @Sendable (Int, RawSpan) throws(Errno) -> Void

  private let contents: Mapping
  package let size: Int
  private let visibility: Visibility
  private let keep: Keeper
  private let state = Mutex(State())

  /// - Parameter bytes: the contents, a multiple of the block size.
  package init(
    _ bytes: [UInt8], visibility: @escaping Visibility, keep: @escaping Keeper
  ) throws(Errno) {
    contents = try Mapping(copying: bytes)
    size = bytes.count
    self.visibility = visibility
    self.keep = keep
  }

  /// The address of the contents, valid as long as the device lives.
  package var address: UnsafeMutableRawPointer { unsafe contents.address }

  package func resetWithMachine() {
    state.withLock { state in
      let wasArray = state.mode == .array
      state = State()
      if !wasArray { visibility(true) }
    }
  }

  // MARK: Reads

  package func read(offset: UInt64, width: Int) -> UInt64 {
    state.withLock { state in
      var value: UInt64 = 0
      for index in 0..<min(max(width, 0), 8) {
        let place = offset &+ UInt64(truncatingIfNeeded: index)
        value |= UInt64(byte(at: place, state)) << UInt64(truncatingIfNeeded: index &* 8)
      }
      return value
    }
  }

  private func byte(at offset: UInt64, _ state: State) -> UInt8 {
    switch state.mode {
    case .array: load(offset)
    case .status: state.status
    case .identifier: Self.element(Self.identifier, offset)
    case .query: Self.element(Self.queryTable, offset)
    }
  }

  private func load(_ offset: UInt64) -> UInt8 {
    guard let place = Int(exactly: offset), place < size else { return 0xFF }
    return contents.withBytes { $0.load(UInt8.self, at: place) } ?? 0xFF
  }

  private static func element(_ table: [UInt8], _ offset: UInt64) -> UInt8 {
    let index = Int(truncatingIfNeeded: offset & 0xFF)
    return index < table.count ? table[index] : 0
  }

  /// Intel, and a chip of 8 bits.
  private static let identifier: [UInt8] = [0x89, 0x18]

  /// The query table for drivers: command set, times as powers of two, no buffer, blocks of 4 KiB.
  private static let queryTable: [UInt8] = {
    var table = [UInt8](repeating: 0, count: 0x31)
    table.replaceSubrange(0x10..<0x13, with: Array("QRY".utf8))
    table[0x13] = 1
    (table[0x1B], table[0x1C]) = (0x45, 0x55)
    (table[0x1F], table[0x21], table[0x23], table[0x25]) = (7, 10, 4, 4)
    table[0x2C] = 1
    table[0x2F] = UInt8(blockSize >> 8)
    return table
  }()

  // MARK: Writes

  package func write(offset: UInt64, width: Int, value: UInt64) {
    state.withLock { state in
      let wasArray = state.mode == .array
      let low = UInt8(truncatingIfNeeded: value)
      switch state.pending {
      case nil: begin(low, &state)
      case .program:
        state.pending = nil
        program(offset, width, value, &state)
      case .erase:
        state.pending = nil
        erase(offset, isConfirmed: low == Command.eraseConfirm, &state)
      }
      let isArray = state.mode == .array
      if isArray != wasArray { visibility(isArray) }
    }
  }

  private func begin(_ command: UInt8, _ state: inout State) {
    switch command {
    case Command.program, Command.programAlternate:
      (state.pending, state.mode) = (.program, .status)
    case Command.erase: (state.pending, state.mode) = (.erase, .status)
    case Command.clearStatus: state.status = 0
    case Command.readStatus: state.mode = .status
    case Command.readIdentifier: state.mode = .identifier
    case Command.query: state.mode = .query
    default: state.mode = .array
    }
  }

  private func program(_ offset: UInt64, _ width: Int, _ value: UInt64, _ state: inout State) {
    state.status |= Status.ready
    guard let start = Int(exactly: offset), width > 0, width <= 8, start <= size &- width else {
      state.status |= Status.programError
      return
    }
    for index in 0..<width {
      let new = UInt8(truncatingIfNeeded: value >> UInt64(truncatingIfNeeded: index &* 8))
      let place = unsafe contents.address + (start &+ index)
      unsafe place.storeBytes(of: place.load(as: UInt8.self) & new, as: UInt8.self)
    }
    if !save(start, width) { state.status |= Status.programError }
  }

  private func erase(_ offset: UInt64, isConfirmed: Bool, _ state: inout State) {
    state.status |= Status.ready
    guard isConfirmed, let place = Int(exactly: offset), place < size else {
      state.status |= Status.eraseError | Status.programError
      return
    }
    let start = place & ~(Self.blockSize &- 1)
    unsafe UnsafeMutableRawBufferPointer(start: contents.address + start, count: Self.blockSize)
      .initializeMemory(as: UInt8.self, repeating: 0xFF)
    if !save(start, Self.blockSize) { state.status |= Status.eraseError }
  }

  private func save(_ start: Int, _ count: Int) -> Bool {
    do throws(Errno) {
      try contents.withBytes { (all) throws(Errno) in
        try keep(start, all.extracting(start..<start &+ count))
      }
      return true
    } catch {
      return false
    }
  }
}
