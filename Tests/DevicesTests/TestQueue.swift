// SPDX-License-Identifier: Apache-2.0
//
// A driver's side of a split queue, written for tests from the specification: it shares no code
// with the device's side.

import Devices
import GuestMemory

/// A driver's side of a split queue, in a page for each part.
struct TestQueue {
  struct Buffer {
    var address: UInt64
    var count: UInt32
    var isWritable = false
  }

  let memory: GuestMemory
  let place: QueuePlace
  private var available: UInt16 = 0
  private var seen: UInt16 = 0
  private var nextFree: UInt16 = 0

  init(_ memory: GuestMemory, at base: UInt64, size: UInt16) {
    self.memory = memory
    var place = QueuePlace(size: size)
    place.descriptors = base
    place.driver = base + 0x1000
    place.device = base + 0x2000
    self.place = place
  }

  static func bytes<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
  }

  func put<Value: FixedWidthInteger>(_ value: Value, at address: UInt64) {
    precondition(memory.write(Self.bytes(value), at: address))
  }

  func get<Value: FixedWidthInteger>(_ type: Value.Type, at address: UInt64) -> Value {
    guard let bytes = memory.read(address, count: MemoryLayout<Value>.size) else { return 0 }
    return bytes.reversed().reduce(0) { $0 << 8 | Value(truncatingIfNeeded: $1) }
  }

  /// Writes a descriptor of a table.
  func describe(
    _ index: UInt16, _ buffer: Buffer, flags: UInt16 = 0, next: UInt16 = 0, table: UInt64? = nil
  ) {
    let entry = (table ?? place.descriptors) + UInt64(index) * 16
    put(buffer.address, at: entry)
    put(buffer.count, at: entry + 8)
    put(flags | (buffer.isWritable ? SplitQueueLayout.write : 0), at: entry + 12)
    put(next, at: entry + 14)
  }

  /// Makes a chain available: descriptors one after the other, or a table of them.
  ///
  /// - Returns: its head.
  @discardableResult
  mutating func add(_ buffers: [Buffer], table: UInt64? = nil) -> UInt16 {
    let head = nextFree
    for (index, buffer) in buffers.enumerated() {
      let isLast = index == buffers.count - 1
      let number = table == nil ? (head &+ UInt16(index)) % place.size : UInt16(index)
      describe(
        number, buffer, flags: isLast ? 0 : SplitQueueLayout.next,
        next: table == nil ? (number + 1) % place.size : number + 1, table: table)
    }
    if let table {
      describe(
        head, Buffer(address: table, count: UInt32(buffers.count * 16)),
        flags: SplitQueueLayout.indirect)
    }
    nextFree = (head &+ UInt16(table == nil ? buffers.count : 1)) % place.size
    offer(head)
    return head
  }

  /// Puts a head into the available ring.
  mutating func offer(_ head: UInt16) {
    put(head, at: place.driver + 4 + UInt64(available % place.size) * 2)
    available &+= 1
    put(available, at: place.driver + 2)
  }

  /// What the device has given back since the last look.
  mutating func takeUsed() -> [(head: UInt32, written: UInt32)] {
    let index = get(UInt16.self, at: place.device + 2)
    var used: [(UInt32, UInt32)] = []
    while seen != index {
      let entry = place.device + 4 + UInt64(seen % place.size) * 8
      used.append((get(UInt32.self, at: entry), get(UInt32.self, at: entry + 4)))
      seen &+= 1
    }
    return used
  }
}
