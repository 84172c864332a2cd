// SPDX-License-Identifier: Apache-2.0

/// The rule that a VM entry broke.
package enum EntryFailure: String, Error, Sendable, Hashable {
  case todo = "todo"
  /// Exit qualification of exit reason 33.
  package var qualification: UInt64 { 0 }
}
struct EntryChecks {
  let cpu: CPU
  let unit: UnsafeMutablePointer<VMXUnit>
  func checkControls(_ dirty: VMCSGroups) throws(EntryFailure) {}
  func checkHostState() throws(EntryFailure) {}
  func checkGuestState(_ dirty: VMCSGroups) throws(EntryFailure) {}
}
extension PhysicalCPU {
  func loadEntryMSRs() -> Bool { true }
  func storeExitMSRs() throws(VMXError) {}
  func loadExitMSRs() throws(VMXError) {}
  func openEvents() -> Bool { true }
}
