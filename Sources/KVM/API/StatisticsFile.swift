// SPDX-License-Identifier: Apache-2.0
//
// KVM_GET_STATS_FD: a self-describing file (Linux, "KVM_GET_STATS_FD").
//
//     header | identifier | descriptors, each with its name | one u64 for each
//
// The file is memory shared with its readers. A vCPU that has one writes its numbers at each exit,
// so they are current: between exits only `instructions` would change.

import CHost
import Host
import Synchronization
import SystemPackage
import X86

#if canImport(Glibc)
  import Glibc
#endif

final class StatisticsFile: Sendable {
  /// A statistic that only grows, or a current value.
  enum Kind: UInt32, Sendable {
    case cumulative = 0
    case instant = 1
  }

  private static let nameSize = 48
  private static let headerSize = MemoryLayout<kvm_stats_header>.size
  private static let descriptorSize = 20 + nameSize - 4

  private let file: MemoryFile
  private let mapping: Mapping
  private let dataOffset: Int
  private let count: Int

  init(identifier: String, _ statistics: [(name: String, kind: Kind)]) throws(Errno) {
    count = statistics.count
    let descriptors = Self.headerSize + Self.nameSize
    dataOffset = descriptors + count * Self.descriptorSize
    let size = dataOffset + count * 8
    file = try MemoryFile(name: "kvm-stats", size: size)
    mapping = try Mapping(sharing: file.descriptor.rawValue, size: (size + 4095) & ~4095)
    var header = kvm_stats_header()
    header.name_size = UInt32(Self.nameSize)
    header.num_desc = UInt32(count)
    header.id_offset = UInt32(Self.headerSize)
    header.desc_offset = UInt32(descriptors)
    header.data_offset = UInt32(dataOffset)
    unsafe mapping.address.storeBytes(of: header, as: kvm_stats_header.self)
    store(identifier, at: Self.headerSize)
    for (index, statistic) in statistics.enumerated() {
      let place = descriptors + index * Self.descriptorSize
      unsafe mapping.address.storeBytes(
        of: statistic.kind.rawValue, toByteOffset: place, as: UInt32.self)
      // Exponent 0, one number.
      unsafe mapping.address.storeBytes(of: 1, toByteOffset: place + 6, as: UInt16.self)
      unsafe mapping.address.storeBytes(
        of: UInt32(index * 8), toByteOffset: place + 8, as: UInt32.self)
      store(statistic.name, at: place + 16)
    }
  }

  private func store(_ text: String, at offset: Int) {
    for (index, byte) in text.utf8.prefix(Self.nameSize - 1).enumerated() {
      unsafe mapping.address.storeBytes(of: byte, toByteOffset: offset + index, as: UInt8.self)
    }
  }

  func set(_ index: Int, _ value: UInt64) {
    guard index < count else { return }
    unsafe mapping.address.storeBytes(
      of: value, toByteOffset: dataOffset + index * 8, as: UInt64.self)
  }

  /// A new descriptor with its own file position, for the client to close.
  func open() throws(Errno) -> Int32 {
    let path = "/proc/self/fd/\(file.descriptor.rawValue)"
    return try OwnedFileDescriptor(opening: path, flags: 0).release()
  }
}

extension VirtualCPU {
  /// Linux's names, with the exits that they count. The total of all exits precedes them.
  private static let exitStatistics: [(name: String, cause: GuestExit.Cause)] = [
    ("io_exits", .port), ("mmio_exits", .nestedFault), ("halt_exits", .hlt),
    ("irq_window_exits", .interruptWindow), ("nmi_window_exits", .nmiWindow),
    ("irq_exits", .externalInterrupt), ("hypercalls", .hypercall), ("invlpg", .invlpg),
    ("notify_window_exits", .notify),
  ]

  func openStatistics() throws(Errno) -> Int32 {
    if statisticsFile == nil {
      let names =
        ["exits"] + Self.exitStatistics.map(\.name) + ["user_exits", "halt_wakeup"]
      statisticsFile = try StatisticsFile(
        identifier: "kvm-\(getpid())/vcpu-\(id)",
        names.map { (name: $0, kind: StatisticsFile.Kind.cumulative) })
      updateStatistics()
    }
    guard let file = statisticsFile else { throw .noMemory }
    return try file.open()
  }

  func updateStatistics() {
    guard let file = statisticsFile else { return }
    var all: UInt64 = 0
    for cause in 0..<GuestExit.Cause.count { all &+= statistics.exits[cause] }
    file.set(0, all)
    var index = 1
    for entry in Self.exitStatistics {
      file.set(index, statistics.exits[Int(entry.cause.rawValue)])
      index += 1
    }
    file.set(index, statistics.userExits)
    file.set(index + 1, statistics.halts)
  }
}

extension Machine {
  func openStatistics() throws(Errno) -> Int32 {
    try configuration.withLock { (_) throws(Errno) -> Int32 in
      if statisticsFile == nil {
        statisticsFile = try StatisticsFile(
          identifier: "kvm-\(getpid())",
          [(name: "vcpus", kind: .instant), (name: "memslots", kind: .instant)])
      }
      guard let file = statisticsFile else { throw .noMemory }
      let slots = memories.reduce(0) { $0 + $1.all.count }
      file.set(0, UInt64(virtualCPUs.count))
      file.set(1, UInt64(slots))
      return try file.open()
    }
  }
}
