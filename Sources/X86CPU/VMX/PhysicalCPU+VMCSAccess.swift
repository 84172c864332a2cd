// SPDX-License-Identifier: Apache-2.0
//
// VMREAD and VMWRITE. `vmread` and `vmwrite` are for code that names its fields: a table look-up
// and one load or store. The checked forms are for fields from elsewhere.

import X86

extension PhysicalCPU {
  /// A field's value, zero-extended; 0 if the field does not exist or no VMCS is current.
  package func vmread(_ field: VMCSField) -> UInt64 {
    let unit = vmx
    let location = unit.pointee.locations[VMCSLayout.slot(field)]
    guard UInt32(location.encoding) == field.rawValue, let current = unit.pointee.current else {
      return (try? vmreadChecked(field)) ?? 0
    }
    if location.kind == .exit, unit.pointee.hasExitRecord {
      return ExitFields(of: cpu).value(location.state)
    }
    if location.kind == .page || location.kind == .exit {
      return current.load(fromByteOffset: Int(location.page), as: UInt64.self)
    }
    return cpu.readLazy(location)
  }

  /// Writes a field, truncated to its width. No effect if the field does not exist or no VMCS is
  /// current (the error is in the VM-instruction error field).
  package func vmwrite(_ field: VMCSField, _ value: UInt64) {
    let unit = vmx
    let location = unit.pointee.locations[VMCSLayout.slot(field)]
    guard UInt32(location.encoding) == field.rawValue,
      let current = unit.pointee.current
    else {
      try? vmwriteChecked(field, value)
      return
    }
    store(value & Self.mask(field.width), field, location, current)
  }

  /// VMREAD with its errors.
  ///
  /// - Throws: `failInvalid` without a current VMCS; error 12 if the field does not exist.
  package func vmreadChecked(_ field: VMCSField) throws(VMXError) -> UInt64 {
    let (location, _) = try locate(field)
    let whole = vmread(VMCSField(rawValue: UInt32(location.encoding)))
    return field.isHigh ? whole >> 32 : whole
  }

  /// VMWRITE with its errors.
  ///
  /// Exit-information fields can be written, too (IA32_VMX_MISC).
  ///
  /// - Throws: `failInvalid` without a current VMCS; error 12 if the field does not exist.
  package func vmwriteChecked(_ field: VMCSField, _ value: UInt64) throws(VMXError) {
    let (location, current) = try locate(field)
    let whole = VMCSField(rawValue: UInt32(location.encoding))
    var value = value & Self.mask(field.width)
    if field.isHigh { value = vmread(whole) & 0xFFFF_FFFF | value << 32 }
    store(value, whole, location, current)
  }

  private func locate(
    _ field: VMCSField
  ) throws(VMXError) -> (FieldLocation, UnsafeMutableRawPointer) {
    try requireVMXOperation()
    guard let current = vmx.pointee.current else { throw .failInvalid }
    let location = vmx.pointee.locations[VMCSLayout.slot(field)]
    let whole = field.isHigh && field.width == .bits64 ? field.rawValue & ~1 : field.rawValue
    if UInt32(location.encoding) != whole { throw fail(.unsupportedField) }
    return (location, current)
  }

  static func mask(_ width: VMCSField.Width) -> UInt64 {
    switch width {
    case .bits16: 0xFFFF
    case .bits32: 0xFFFF_FFFF
    case .bits64, .natural: .max
    }
  }

  @inline(__always) private func store(
    _ value: UInt64, _ field: VMCSField, _ location: FieldLocation,
    _ current: UnsafeMutableRawPointer
  ) {
    if location.kind == .exit { keepExitFields() }
    if location.kind == .page || location.kind == .exit {
      let old = current.load(fromByteOffset: Int(location.page), as: UInt64.self)
      if old == value { return }
      current.storeBytes(of: value, toByteOffset: Int(location.page), as: UInt64.self)
      mark(location, changed: old ^ value)
    } else {
      let old = cpu.readLazy(location)
      if old == value { return }
      cpu.writeLazy(location, value)
      mark(location, changed: old ^ value)
    }
  }

  /// Marks a change for the next VM entry's checks.
  @inline(__always) private func mark(_ location: FieldLocation, changed: UInt64) {
    var groups = location.groups
    if groups == .controls || groups == .registers || groups == .rflags {
      groups = Self.refine(groups, VMCSField(rawValue: UInt32(location.encoding)), changed)
    }
    vmx.pointee.dirty.formUnion(groups)
  }

  /// Removes groups: some controls need no checks though their field does, and only some register
  /// changes affect translations.
  private static func refine(
    _ groups: VMCSGroups, _ field: VMCSField, _ changed: UInt64
  ) -> VMCSGroups {
    switch field {
    case .primaryControls: changed & ~freePrimaryControls == 0 ? .values : groups
    case .guestCR0: changed & CR0.paging.rawValue != 0 ? [groups, .paging] : groups
    case .guestCR3: [groups, .paging]
    case .guestRFLAGS: changed & RFLAGS.vm.rawValue != 0 ? [groups, .segments] : groups
    case .guestCR4: changed & CR4.paging.rawValue != 0 ? [groups, .paging] : groups
    default: groups
    }
  }

  /// Primary controls that hypervisors switch often and no check concerns. (NMI-window exiting is
  /// checked against virtual NMIs, so it is not among them.)
  private static let freePrimaryControls = UInt64(
    PrimaryControls.interruptWindowExiting | PrimaryControls.monitorTrapFlag
      | PrimaryControls.useTSCOffsetting | PrimaryControls.hltExiting
      | PrimaryControls.movDRExiting)
}
