// SPDX-License-Identifier: Apache-2.0
//
// Checks a saved VMCS or VMCB by loading it into a processor that runs nothing. Its addresses are
// of another machine, so no memory is read and rules that need memory are skipped.

import SystemPackage
import X86

package final class SavedControlStructures {
  private let intel: PhysicalCPU
  private let amd: PhysicalCPU
  private let pages: UnsafeMutableRawPointer
  private static let pageCount = 2

  /// - Parameter numbers: two unused CPU numbers of this process, from 0 to 63.
  package init(numbers: (Int, Int) = (0, 1)) throws(Errno) {
    intel = try PhysicalCPU(number: numbers.0, silicon: .intel, blockOps: 1 << 10)
    amd = try PhysicalCPU(number: numbers.1, silicon: .amd, blockOps: 1 << 10)
    pages = .allocate(byteCount: Self.pageCount * 4096, alignment: 4096)
    clear()
    do {
      try intel.vmxon(address(0))
      try amd.enableSVM()
    } catch {
      throw .ioError
    }
  }

  deinit {
    try? intel.vmxoff()
    try? amd.disableSVM()
    pages.deallocate()
  }

  private func address(_ page: Int) -> UInt64 { UInt64(UInt(bitPattern: pages + page * 4096)) }

  private func clear() {
    for page in 0..<Self.pageCount {
      let start = pages + page * 4096
      start.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
      start.storeBytes(of: VMXCapabilities.revision, as: UInt32.self)
    }
  }

  /// - Parameter fields: of a VMCS. Rules about missing fields are skipped.
  package func explain(vmcs fields: [VMCSField: UInt64]) -> EntryExplanation {
    clear()
    do throws(VMXError) {
      try intel.vmptrld(address(1))
      defer { try? intel.vmclear(address(1)) }
      intel.vmwrite(.vmcsLinkPointer, .max)
      for (field, value) in fields { try? intel.vmwriteChecked(field, value) }
      var all = intel.explainCurrentVMCS(reported: nil, readsMemory: false)
      let names = Set(fields.keys.map(\.name))
      all.broken.removeAll { !$0.fields.allSatisfy { names.contains($0.name) } }
      all.reported = Self.reported(all.broken, fields)
      return all
    } catch {
      return EntryExplanation(vendor: .intel, broken: [], reported: 0)
    }
  }

  /// The rule that the VMCS's own processor reported, if the VMCS says how it failed: other
  /// processors may allow what this one lacks.
  private static func reported(_ broken: [BrokenEntryRule], _ fields: [VMCSField: UInt64]) -> Int {
    let reason = UInt32(truncatingIfNeeded: fields[.exitReason] ?? 0)
    let failed = reason & ExitReason.entryFailureBit != 0
    let isOfGuest = failed && reason & 0xFFFF == UInt32(ExitReason.invalidGuestState.rawValue)
    guard isOfGuest else { return 0 }
    return broken.firstIndex { $0.outcome == EntryStage.guest.rawValue } ?? 0
  }

  /// - Parameter bytes: the 4096 bytes of a VMCB.
  package func explain(vmcb bytes: [UInt8]) -> EntryExplanation {
    clear()
    UnsafeMutableRawBufferPointer(start: pages + 4096, count: 4096)
      .copyBytes(from: bytes.prefix(4096))
    guard (try? amd.vmcbHold(address(1))) != nil else {
      return EntryExplanation(vendor: .amd, broken: [], reported: 0)
    }
    defer { amd.vmcbRelease() }
    return amd.explainHeldVMCB(reported: nil)
      ?? EntryExplanation(vendor: .amd, broken: [], reported: 0)
  }
}
