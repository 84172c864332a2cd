// SPDX-License-Identifier: Apache-2.0
//
// The device's side of a split virtqueue, as a plain value (virtio 1.2, "Split Virtqueues"). Its
// three parts are in guest memory, and the driver may write anything there at any time. So every
// descriptor is copied before it is checked, every address is checked against memory, a chain has
// at most `chainLimit` descriptors, and an index further ahead than the queue's size is an error.
// After an error the queue must not be used: the device needs a reset.
//
//     while let chain = try queue.pop(memory) {
//       let written = serve(chain)
//       if try queue.push(chain.head, written: written, memory) { interrupt() }
//     }

import GuestMemory
import Synchronization

/// A driver's error.
package enum QueueError: Error, Hashable, CustomStringConvertible {
  case outsideMemory(UInt64)
  case indexRanAway
  case noSuchDescriptor(UInt16)
  case endlessChain
  case unreadableOrder
  case badIndirectTable
  /// The device could not parse the bytes.
  case badRequest(String)

  package var description: String {
    switch self {
    case .outsideMemory(let address): "address 0x\(String(address, radix: 16)) is outside of memory"
    case .indexRanAway: "the available index is further ahead than the queue is long"
    case .noSuchDescriptor(let index): "there is no descriptor \(index)"
    case .endlessChain: "a chain of descriptors does not end"
    case .unreadableOrder: "a chain has a readable buffer behind a writable one"
    case .badIndirectTable: "a table of indirect descriptors is malformed"
    case .badRequest(let what): what
    }
  }
}

/// The addresses of a queue.
package struct QueuePlace: Sendable, Hashable {
  package var size: UInt16
  package var descriptors: UInt64 = 0
  /// The available ring.
  package var driver: UInt64 = 0
  /// The used ring.
  package var device: UInt64 = 0
  package init(size: UInt16) { self.size = size }
}

/// The buffers of one request.
package struct DescriptorChain: Sendable {
  package let head: UInt16
  /// Bytes that the driver wrote for the device.
  package fileprivate(set) var readable: GuestBuffers
  /// Buffers that the device may write.
  package fileprivate(set) var writable: GuestBuffers
}

package struct SplitQueue: Sendable, Hashable {
  /// Limit of descriptors in a chain; longer than any queue, as tables of indirect descriptors may
  /// be.
  package static let chainLimit = 1024

  private typealias Layout = SplitQueueLayout

  private struct Descriptor {
    let address: UInt64
    let length: UInt32
    let flags: UInt16
    let next: UInt16
    func has(_ flag: UInt16) -> Bool { flags & flag != 0 }
  }

  private let place: QueuePlace
  private let usesEventIndex: Bool
  private let allowsIndirect: Bool
  /// Counters in the rings' format: they wrap at 2^16, and their low bits index entries.
  private var nextAvailable: UInt16 = 0
  private var nextUsed: UInt16 = 0
  /// `nextUsed` at the last check whether the driver wants an interrupt.
  private var lastAsked: UInt16 = 0

  /// - Returns: nil if the size is not a power of two, or a part is misaligned or outside
  ///   memory.
  package init?(_ place: QueuePlace, features: UInt64, _ memory: GuestMemory) {
    let size = UInt64(place.size)
    let parts = [
      (place.descriptors, 16, Layout.descriptorSize &* size),
      (place.driver, 2, Layout.entries &+ Layout.availableEntrySize &* size &+ 2),
      (place.device, 4, Layout.entries &+ Layout.usedEntrySize &* size &+ 2),
    ]
    guard size > 0, size & (size &- 1) == 0, size <= 1 << 15,
      parts.allSatisfy({ address, alignment, bytes in
        unsafe address & UInt64(alignment &- 1) == 0
          && memory.host(address, count: Int(truncatingIfNeeded: bytes)) != nil
      })
    else { return nil }
    self.place = place
    usesEventIndex = features & VirtioFeature.eventIndex != 0
    allowsIndirect = features & VirtioFeature.indirectDescriptors != 0
  }

  package var size: UInt16 { place.size }

  private func slot(_ counter: UInt16) -> UInt64 { UInt64(counter & (place.size &- 1)) }

  // MARK: From the driver

  /// The number of available chains not yet taken.
  package func availableCount(_ memory: GuestMemory) throws(QueueError) -> UInt16 {
    let count = try load(place.driver &+ Layout.index, memory) &- nextAvailable
    guard count <= place.size else { throw .indexRanAway }
    return count
  }

  /// Takes the next chain; nil if there is none. Then the driver will notify of the next.
  package mutating func pop(_ memory: GuestMemory) throws(QueueError) -> DescriptorChain? {
    if try availableCount(memory) == 0 {
      guard try askForNotification(memory) else { return nil }
    }
    let entry = Layout.entries &+ slot(nextAvailable) &* Layout.availableEntrySize
    let head = try load(place.driver &+ entry, memory)
    nextAvailable &+= 1
    return try chain(head, memory)
  }

  /// Requests a notification of the next chain. True if one was added before the driver could see
  /// the request.
  package func askForNotification(_ memory: GuestMemory) throws(QueueError) -> Bool {
    if usesEventIndex {
      let event = Layout.entries &+ UInt64(place.size) &* Layout.usedEntrySize
      try store(nextAvailable, place.device &+ event, memory)
    }
    // The driver adds a chain and then reads the event, so the device writes the event and then
    // checks the index.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return try availableCount(memory) != 0
  }

  private func chain(
    _ head: UInt16, _ memory: GuestMemory
  ) throws(QueueError) -> DescriptorChain {
    var chain = DescriptorChain(
      head: head, readable: GuestBuffers(memory), writable: GuestBuffers(memory))
    var (table, count, index) = (place.descriptors, UInt32(place.size), head)
    var isIndirect = false
    for _ in 0..<Self.chainLimit {
      let descriptor = try descriptor(index, table, count, memory)
      if descriptor.has(Layout.indirect) {
        guard allowsIndirect, !isIndirect, !descriptor.has(Layout.next) else {
          throw .badIndirectTable
        }
        (table, index, isIndirect) = (descriptor.address, 0, true)
        count = descriptor.length / UInt32(Layout.descriptorSize)
        guard count > 0, descriptor.length & 15 == 0 else { throw .badIndirectTable }
        continue
      }
      try add(descriptor, to: &chain)
      guard descriptor.has(Layout.next) else { return chain }
      index = descriptor.next
    }
    throw .endlessChain
  }

  /// A copy of a descriptor, which the driver may change afterwards.
  private func descriptor(
    _ index: UInt16, _ table: UInt64, _ count: UInt32, _ memory: GuestMemory
  ) throws(QueueError) -> Descriptor {
    guard UInt32(index) < count else { throw .noSuchDescriptor(index) }
    let address = table.addingReportingOverflow(UInt64(index) &* Layout.descriptorSize)
    guard !address.overflow, let first = memory.load64(address.partialValue),
      let second = memory.load64(address.partialValue &+ 8)
    else { throw .outsideMemory(address.partialValue) }
    return Descriptor(
      address: first, length: UInt32(truncatingIfNeeded: second),
      flags: UInt16(truncatingIfNeeded: second >> 32),
      next: UInt16(truncatingIfNeeded: second >> 48))
  }

  private func add(
    _ descriptor: Descriptor, to chain: inout DescriptorChain
  ) throws(QueueError) {
    let fits: Bool
    if descriptor.has(Layout.write) {
      fits = chain.writable.append(descriptor.address, count: descriptor.length)
    } else {
      guard chain.writable.isEmpty else { throw .unreadableOrder }
      fits = chain.readable.append(descriptor.address, count: descriptor.length)
    }
    guard fits else { throw .outsideMemory(descriptor.address) }
  }

  // MARK: To the driver

  /// Returns a chain.
  ///
  /// - Parameter written: bytes that the device has written, at least, from the first writable one
  ///   on.
  /// - Returns: whether the driver wants an interrupt.
  package mutating func push(
    _ head: UInt16, written: UInt32, _ memory: GuestMemory
  ) throws(QueueError) -> Bool {
    try push([(head, written)], memory)
  }

  /// Returns chains atomically: the driver sees all or none.
  package mutating func push(
    _ chains: [(head: UInt16, written: UInt32)], _ memory: GuestMemory
  ) throws(QueueError) -> Bool {
    for chain in chains {
      let entry = place.device &+ Layout.entries &+ slot(nextUsed) &* Layout.usedEntrySize
      guard memory.store64(UInt64(chain.written) << 32 | UInt64(chain.head), at: entry) else {
        throw .outsideMemory(entry)
      }
      nextUsed &+= 1
    }
    try store(nextUsed, place.device &+ Layout.index, memory)
    // The driver changes its wish for interrupts and then reads the index.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return try wantsInterrupt(memory)
  }

  private mutating func wantsInterrupt(_ memory: GuestMemory) throws(QueueError) -> Bool {
    guard usesEventIndex else {
      return try load(place.driver &+ Layout.flags, memory) & Layout.noInterrupt == 0
    }
    let entries = Layout.entries &+ UInt64(place.size) &* Layout.availableEntrySize
    let event = try load(place.driver &+ entries, memory)
    defer { lastAsked = nextUsed }
    // Whether the counter has passed the event since the last check.
    return nextUsed &- event &- 1 < nextUsed &- lastAsked
  }

  // MARK: Memory

  private func load(_ address: UInt64, _ memory: GuestMemory) throws(QueueError) -> UInt16 {
    guard let value = memory.load16(address) else { throw .outsideMemory(address) }
    return value
  }

  private func store(
    _ value: UInt16, _ address: UInt64, _ memory: GuestMemory
  ) throws(QueueError) {
    guard memory.store16(value, at: address) else { throw .outsideMemory(address) }
  }
}
