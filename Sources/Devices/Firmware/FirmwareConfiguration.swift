// SPDX-License-Identifier: Apache-2.0
//
// Configuration for the machine's firmware (QEMU's specification of fw_cfg): numbered items and
// named files, read byte by byte at a port or copied to memory by a command in memory.
//
//     0x510  selector, 16 bits     0x511  data, 8 bits     0x514  address of a command, big-endian

import GuestMemory
import Host
import Synchronization

package final class FirmwareConfiguration: BusDevice {
  /// Size of the port range.
  package static let size: UInt64 = 12

  /// Numbers of well-known items.
  package enum Item {
    package static let signature: UInt16 = 0x00
    package static let features: UInt16 = 0x01
    package static let processorCount: UInt16 = 0x05
    package static let maximumProcessorCount: UInt16 = 0x0F
    package static let directory: UInt16 = 0x19
    static let firstFile: UInt16 = 0x20
  }

  private enum Register {
    static let selector: UInt64 = 0
    static let data: UInt64 = 1
    static let addressHigh: UInt64 = 4
    static let addressLow: UInt64 = 8
  }

  /// Bits of a command.
  private enum Command {
    static let error: UInt32 = 1 << 0
    static let read: UInt32 = 1 << 1
    static let skip: UInt32 = 1 << 2
    static let select: UInt32 = 1 << 3
    static let write: UInt32 = 1 << 4
    static let size = 16
  }

  /// Byte-wise reads, and commands.
  private static let features: UInt32 = 3
  /// The value read at the address port.
  private static let addressSignature: UInt64 = 0x5145_4D55_2043_4647
  /// Beyond the end of every item.
  private static let positionLimit = 1 << 32
  /// Bytes of a file name in the directory, including the final zero.
  private static let nameSize = 56

  private struct State {
    var item: UInt16 = 0
    var position = 0
    var addressHigh: UInt32 = 0
    var items: [UInt16: [UInt8]] = [:]
  }

  private let memory: GuestMemory
  private let numbersOfFiles: [String: UInt16]
  private let state = Mutex(State())

  /// - Parameters:
  ///   - numbers: items of 16 bits.
  ///   - files: sorted by name; names have at most 55 bytes.
  package init(
    _ memory: GuestMemory, numbers: [UInt16: UInt16], files: [(name: String, bytes: [UInt8])]
  ) {
    var items: [UInt16: [UInt8]] = [Item.signature: Array("QEMU".utf8)]
    var features: [UInt8] = []
    features.append(little: Self.features)
    items[Item.features] = features
    for (item, number) in numbers {
      var bytes: [UInt8] = []
      bytes.append(little: number)
      items[item] = bytes
    }
    var numbersOfFiles: [String: UInt16] = [:]
    var directory: [UInt8] = []
    directory.append(big: UInt32(truncatingIfNeeded: files.count))
    for (index, file) in files.enumerated() {
      let item = Item.firstFile &+ UInt16(truncatingIfNeeded: index)
      items[item] = file.bytes
      numbersOfFiles[file.name] = item
      directory.append(big: UInt32(truncatingIfNeeded: file.bytes.count))
      directory.append(big: item)
      directory.append(big: UInt16(0))
      let name = Array(file.name.utf8.prefix(Self.nameSize - 1))
      directory += name + [UInt8](repeating: 0, count: Self.nameSize &- name.count)
    }
    items[Item.directory] = directory
    self.numbersOfFiles = numbersOfFiles
    self.memory = memory
    let all = items
    state.withLock { $0.items = all }
  }

  /// Replaces the contents of files by others of the same size.
  package func replace(_ files: [(name: String, bytes: [UInt8])]) {
    state.withLock { state in
      for file in files {
        guard let item = numbersOfFiles[file.name], state.items[item]?.count == file.bytes.count
        else { continue }
        state.items[item] = file.bytes
      }
    }
  }

  package func resetWithMachine() {
    state.withLock { $0 = State(items: $0.items) }
  }

  package func read(offset: UInt64, width: Int) -> UInt64 {
    switch (offset, width) {
    case (Register.data, 1): state.withLock { UInt64(next(&$0)) }
    case (Register.addressHigh, 8): Self.addressSignature.byteSwapped
    case (Register.addressHigh, 4):
      UInt64(UInt32(truncatingIfNeeded: Self.addressSignature >> 32).byteSwapped)
    case (Register.addressLow, 4):
      UInt64(UInt32(truncatingIfNeeded: Self.addressSignature).byteSwapped)
    default: 0
    }
  }

  private func next(_ state: inout State) -> UInt8 {
    guard let bytes = state.items[state.item], state.position < bytes.count else { return 0 }
    defer { state.position &+= 1 }
    return bytes[state.position]
  }

  package func write(offset: UInt64, width: Int, value: UInt64) {
    state.withLock { state in
      switch (offset, width) {
      case (Register.selector, 2): select(UInt16(truncatingIfNeeded: value), &state)
      case (Register.addressHigh, 4):
        state.addressHigh = UInt32(truncatingIfNeeded: value).byteSwapped
      case (Register.addressHigh, 8): run(at: value.byteSwapped, &state)
      case (Register.addressLow, 4):
        let low = UInt32(truncatingIfNeeded: value).byteSwapped
        run(at: UInt64(state.addressHigh) << 32 | UInt64(low), &state)
      default: break
      }
    }
  }

  private func select(_ item: UInt16, _ state: inout State) {
    (state.item, state.position) = (item, 0)
  }

  // MARK: Commands

  /// Executes the command at an address and stores its result there.
  private func run(at address: UInt64, _ state: inout State) {
    state.addressHigh = 0
    guard let command = memory.read(address, count: Command.size),
      let control = command.load(big: UInt32.self, at: 0),
      let count = command.load(big: UInt32.self, at: 4),
      let target = command.load(big: UInt64.self, at: 8)
    else { return }
    if control & Command.select != 0 {
      select(UInt16(truncatingIfNeeded: control >> 16), &state)
    }
    var isDone = true
    if control & Command.read != 0 {
      isDone = copy(Int(truncatingIfNeeded: count), to: target, &state)
    } else if control & Command.skip != 0 {
      state.position = min(state.position &+ Int(truncatingIfNeeded: count), Self.positionLimit)
    } else if control & Command.write != 0 {
      // Writes are not supported.
      isDone = false
    }
    var answer: [UInt8] = []
    answer.append(big: isDone ? 0 : Command.error)
    _ = memory.write(answer, at: address)
  }

  /// Copies bytes of the item to memory; beyond its end they are 0.
  private func copy(_ count: Int, to address: UInt64, _ state: inout State) -> Bool {
    guard unsafe memory.host(address, count: count) != nil else { return false }
    let bytes = state.items[state.item] ?? []
    let rest = bytes.dropFirst(state.position).prefix(count)
    state.position &+= rest.count
    return memory.write(Array(rest), at: address)
      && memory.clear(address &+ UInt64(truncatingIfNeeded: rest.count), count: count &- rest.count)
  }
}
