// SPDX-License-Identifier: Apache-2.0
//
// A VMCS in memory while it is current on no CPU: its fields as plain values, and those checks of
// VM entry that need no CPU. A hypervisor keeps in this form what it runs for a guest that is a
// hypervisor itself.
//
//     page[.guestRIP] = 0xFFF0
//     try page.checkControls(cpu, limits)

import X86

package struct VMCSPage {
  private let base: UnsafeMutableRawPointer

  /// - Parameter base: 4 KiB, aligned.
  package init(base: UnsafeMutableRawPointer) { self.base = base }

  /// Offsets of the areas.
  package static let guestState = 0x100..<0x400
  package static let hostState = 0x400..<0x500
  package static let exitInformation = 0x800..<(0x800 + 8 * VMCSLayout.exitInformation.count)
  package static let launchState = VMCSLayout.launchStateOffset
  package static let abortIndicator = VMCSLayout.abortOffset

  /// Where the field is whose whole or high half an encoding names; nil: there is none.
  private static func location(_ field: VMCSField) -> FieldLocation? {
    guard field.rawValue >> 15 == 0 else { return nil }
    let location = VMCSLayout.locations[VMCSLayout.slot(field)]
    let whole = field.isHigh && field.width == .bits64 ? field.rawValue & ~1 : field.rawValue
    return UInt32(location.encoding) == whole ? location : nil
  }

  package static func exists(_ field: VMCSField) -> Bool { location(field) != nil }

  /// A field, or the high half of one; one that does not exist is 0.
  package subscript(_ field: VMCSField) -> UInt64 {
    get {
      guard let location = Self.location(field) else { return 0 }
      let value = base.load(fromByteOffset: Int(location.page), as: UInt64.self)
      return field.isHigh ? value >> 32 : value
    }
    nonmutating set {
      guard let location = Self.location(field) else { return }
      var value = newValue & PhysicalCPU.mask(field.width)
      if field.isHigh {
        let old = base.load(fromByteOffset: Int(location.page), as: UInt64.self)
        value = old & 0xFFFF_FFFF | value << 32
      }
      base.storeBytes(of: value, toByteOffset: Int(location.page), as: UInt64.self)
    }
  }

  /// After memory of a guest's was copied here: no field has bits beyond its width.
  package func truncateFields() {
    for field in VMCSLayout.fields { self[field] = self[field] }
  }

  // MARK: Checks

  /// The checks on VMX controls (VMfailValid with error 7).
  package func checkControls(_ cpu: CPU, _ limits: EntryLimits) throws(EntryFailure) {
    try check(cpu, limits) { (checks) throws(EntryFailure) in try checks.checkControls(.all) }
  }

  /// The checks on the host-state area (error 8).
  package func checkHostState(_ cpu: CPU, _ limits: EntryLimits) throws(EntryFailure) {
    try check(cpu, limits) { (checks) throws(EntryFailure) in try checks.checkHostState() }
  }

  private func check(
    _ cpu: CPU, _ limits: EntryLimits, _ body: (EntryChecks) throws(EntryFailure) -> Void
  ) throws(EntryFailure) {
    var unit = VMXUnit()
    unit.current = base
    try withUnsafeMutablePointer(to: &unit) { (unit) throws(EntryFailure) in
      try body(EntryChecks(cpu: cpu, unit: unit, readsMemory: false, limits: limits))
    }
  }
}

extension PhysicalCPU {
  /// The rule that the guest state of the current VMCS breaks, if any.
  package func guestStateFailure() -> EntryFailure? {
    do throws(EntryFailure) {
      try EntryChecks(cpu: cpu, unit: vmx).checkGuestState(.all)
      return nil
    } catch {
      return error
    }
  }
}
