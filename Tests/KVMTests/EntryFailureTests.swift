// SPDX-License-Identifier: Apache-2.0
//
// KVM_EXIT_FAIL_ENTRY, and what the user is told of it.

import CHost
import KVM
import Synchronization
import Testing
import X86

@Suite struct EntryFailureTests {
  /// What was told.
  private final class Told: Sendable {
    let warnings = Mutex<[[String]]>([])
    let saved = Mutex<[[UInt8]]>([])
    var reports: EntryFailureReports {
      EntryFailureReports(
        warn: { lines in self.warnings.withLock { $0.append(lines) } },
        save: { bytes in self.saved.withLock { $0.append(bytes) } })
    }
  }

  @Test(arguments: [SiliconVendor.intel, .amd])
  func aFailedEntryIsToldOnce(_ vendor: SiliconVendor) throws {
    try Engine.$vendor.withValue(vendor) {
      let told = Told()
      let client = try Client(entryFailures: told.reports)
      client.load([0xF4])
      try client.setLongMode()
      try client.changeSpecial { ($0.cs.l, $0.cs.db) = (1, 1) }
      for _ in 0..<3 {
        #expect(try client.run() == KVM_EXIT_FAIL_ENTRY)
        let reason = client.shared.pointee.fail_entry.hardware_entry_failure_reason
        #expect(reason == (vendor == .intel ? 0x8000_0021 : .max))
      }
      let warnings = told.warnings.withLock { $0 }
      #expect(warnings.count == 1)
      let lines = try #require(warnings.first)
      if vendor == .intel {
        #expect(lines[0] == "CPU 0: VT-x refuses this guest: exit reason 33 (invalid guest state)")
        #expect(lines[1].hasPrefix("> guest CS access rights = 0xE09B, bit 13 (L), bit 14 (D/B): "))
      } else {
        #expect(lines[0] == "CPU 0: SVM refuses this guest: VMEXIT_INVALID")
        #expect(lines[1].hasPrefix("> CS attributes = 0xE9B, EFER = 0x1500, "))
        #expect(lines[1].contains(", bit 9 (L), bit 10 (D/B): "))
      }
      #expect(lines.count == 2)
      let saved = told.saved.withLock { $0 }
      #expect(saved.count == 1)
      let first = try #require(saved.first)
      if vendor == .intel {
        let text = String(decoding: first, as: UTF8.self)
        #expect(text.contains("guest CS access rights = 0xE09B\n"))
      } else {
        #expect(first.count == 4096)
      }
      // Another way to fail is told again; the guest's state is whole after it is mended.
      try client.changeSpecial { ($0.cs.l, $0.cs.db) = (1, 0) }
      #expect(try client.run() == KVM_EXIT_HLT)
    }
  }
}
