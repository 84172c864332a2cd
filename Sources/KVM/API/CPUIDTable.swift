// SPDX-License-Identifier: Apache-2.0
//
// CPUID tables and MSR lists between the client's memory and ours. Counts come from the client:
// they are checked against a limit before memory is allocated.

import CHost
import SystemPackage

/// `kvm_cpuid2`: a count, padding, then entries.
enum CPUIDTable {
  static let headerSize = 8
  /// As KVM_MAX_CPUID_ENTRIES.
  static let limit = 256

  /// Copies entries out.
  ///
  /// - Throws: E2BIG if the client's buffer is too small; the count stays unchanged.
  static func write(_ entries: [kvm_cpuid_entry2], to argument: Argument) throws(Errno) {
    let capacity: UInt32 = try argument.read()
    guard entries.count <= Int(capacity) else { throw .argListTooLong }
    try argument.write(UInt32(entries.count))
    for (index, entry) in entries.enumerated() {
      try argument.setElement(index, at: headerSize, to: entry)
    }
  }

  /// KVM_SET_CPUID: `kvm_cpuid_entry`, without indices.
  static func readOld(_ argument: Argument) throws(Errno) -> [kvm_cpuid_entry2] {
    let count: UInt32 = try argument.read()
    guard count <= limit else { throw .argListTooLong }
    var entries: [kvm_cpuid_entry2] = []
    for index in 0..<Int(count) {
      let old: kvm_cpuid_entry = try argument.element(index, at: headerSize)
      var entry = kvm_cpuid_entry2()
      (entry.function, entry.eax, entry.ebx) = (old.function, old.eax, old.ebx)
      (entry.ecx, entry.edx) = (old.ecx, old.edx)
      entries.append(entry)
    }
    return entries
  }

  static func areEqual(_ one: [kvm_cpuid_entry2], _ other: [kvm_cpuid_entry2]) -> Bool {
    one.count == other.count
      && zip(one, other).allSatisfy {
        $0.function == $1.function && $0.index == $1.index && $0.flags == $1.flags
          && $0.eax == $1.eax && $0.ebx == $1.ebx && $0.ecx == $1.ecx && $0.edx == $1.edx
      }
  }

  static func read(_ argument: Argument) throws(Errno) -> [kvm_cpuid_entry2] {
    let count: UInt32 = try argument.read()
    guard count <= limit else { throw .argListTooLong }
    var entries: [kvm_cpuid_entry2] = []
    entries.reserveCapacity(Int(count))
    for index in 0..<Int(count) {
      entries.append(try argument.element(index, at: headerSize))
    }
    return entries
  }
}

/// `kvm_msr_list`: a count, then numbers.
enum MSRListTable {
  /// - Throws: E2BIG if the client's buffer is too small; the required count is written back.
  static func write(_ numbers: [UInt32], to argument: Argument) throws(Errno) {
    let capacity: UInt32 = try argument.read()
    try argument.write(UInt32(numbers.count))
    guard numbers.count <= Int(capacity) else { throw .argListTooLong }
    for (index, number) in numbers.enumerated() {
      try argument.setElement(index, at: 4, to: number)
    }
  }
}

/// `kvm_msrs`: a count, padding, then entries.
enum MSRTable {
  static let limit = 256

  /// Calls `body` for each entry until it returns nil.
  ///
  /// - Returns: the number of entries processed.
  static func forEach(
    _ argument: Argument, _ body: (kvm_msr_entry) -> UInt64?
  ) throws(Errno) -> Int32 {
    let count: UInt32 = try argument.read()
    guard count < limit else { throw .argListTooLong }
    for index in 0..<Int(count) {
      var entry: kvm_msr_entry = try argument.element(index, at: 8)
      guard let value = body(entry) else { return Int32(index) }
      entry.data = value
      try argument.setElement(index, at: 8, to: entry)
    }
    return Int32(count)
  }
}
