// SPDX-License-Identifier: Apache-2.0
//
// VT-x's instructions that manage VMX operation and the current VMCS, as methods. Addresses are
// host-physical, that is, addresses in this process; regions are 4 KiB, aligned, with
// `VMXCapabilities.revision` in their first 4 bytes.
//
//     try cpu.vmxon(region)
//     try cpu.vmclear(vmcs)
//     try cpu.vmptrld(vmcs)           // the guest state is now in the CPU
//     cpu.vmwrite(.guestRIP, 0xFFF0); ...
//     try cpu.vmlaunch()
//     try cpu.vmclear(vmcs)           // all of it is in memory: another CPU may vmptrld it
//     try cpu.vmxoff()

import X86

extension PhysicalCPU {
  /// Whether the CPU is in VMX operation.
  package var isInVMXOperation: Bool { vmx.pointee.vmxonRegion != 0 }

  /// Enters VMX operation.
  ///
  /// - Throws: `notInVMXOperation` if the processor has no VT-x; `failInvalid` if the region is
  ///   misaligned, out of range or has another revision; in VMX operation already, error 15 or
  ///   `failInvalid` without a current VMCS.
  package func vmxon(_ region: UInt64) throws(VMXError) {
    if silicon != .intel { throw .notInVMXOperation }
    if isInVMXOperation { throw fail(.vmxonInRootOperation) }
    guard let base = Self.region(region), VMCSHeader(base: base).revision == VMCSLayout.revision,
      !VMCSHeader(base: base).isShadow
    else { throw .failInvalid }
    vmx.pointee.vmxonRegion = region
    vmx.pointee.current = nil
    vmx.pointee.dirty = []
  }

  /// Leaves VMX operation and writes the current VMCS's data to memory.
  package func vmxoff() throws(VMXError) {
    try requireVMXOperation()
    releaseCurrent()
    vmx.pointee.vmxonRegion = 0
    cpu.flushTLB()
  }

  /// Writes the VMCS's data to memory and makes it inactive, not current, and "clear".
  ///
  /// - Throws: error 2 (address) or 3 (the VMXON region); `activeElsewhere`.
  package func vmclear(_ address: UInt64) throws(VMXError) {
    try requireVMXOperation()
    guard let base = Self.region(address) else { throw fail(.vmclearInvalidAddress) }
    if address == vmx.pointee.vmxonRegion { throw fail(.vmclearVMXONPointer) }
    let header = VMCSHeader(base: base)
    if let other = header.activeOn, other != number { throw .activeElsewhere(other) }
    if base == vmx.pointee.current { releaseCurrent() }
    header.launched = false
    header.activeOn = nil
  }

  /// Makes a VMCS active and current here. The previously current one stays active.
  ///
  /// - Throws: error 9 (address), 10 (the VMXON region), 11 (revision); `activeElsewhere`.
  package func vmptrld(_ address: UInt64) throws(VMXError) {
    try requireVMXOperation()
    guard let base = Self.region(address) else { throw fail(.vmptrldInvalidAddress) }
    if address == vmx.pointee.vmxonRegion { throw fail(.vmptrldVMXONPointer) }
    let header = VMCSHeader(base: base)
    if header.revision != VMCSLayout.revision { throw fail(.vmptrldIncorrectRevision) }
    if base == vmx.pointee.current { return }
    if let other = header.activeOn, other != number { throw .activeElsewhere(other) }
    flushCurrent()
    header.activeOn = number
    vmx.pointee.current = base
    vmx.pointee.launched = header.launched
    vmx.pointee.dirty = .all
    loadLazyFields(base)
  }

  /// The current VMCS's address; all ones if there is none.
  package func vmptrst() throws(VMXError) -> UInt64 {
    try requireVMXOperation()
    guard let current = vmx.pointee.current else { return .max }
    return UInt64(UInt(bitPattern: current))
  }

  // MARK: Failing

  @inline(__always) func requireVMXOperation() throws(VMXError) {
    if vmx.pointee.vmxonRegion == 0 { throw .notInVMXOperation }
  }

  /// VMfail(number): recorded in the current VMCS, if there is one.
  func fail(_ number: VMXInstructionError) -> VMXError {
    guard vmx.pointee.current != nil else { return .failInvalid }
    vmx.pointee.setPage(.vmInstructionError, UInt64(number.rawValue))
    return .failValid(number)
  }

  /// The memory of a VMXON region or VMCS; nil if the pointer is invalid.
  static func region(_ address: UInt64) -> UnsafeMutableRawPointer? {
    guard address & Page.offsetMask == 0, address >> VMXCapabilities.hostAddressWidth == 0 else {
      return nil
    }
    return UnsafeMutableRawPointer(bitPattern: UInt(address))
  }

  // MARK: Lazy state

  /// Flushes the current VMCS and makes it inactive.
  func releaseCurrent() {
    guard let current = vmx.pointee.current else { return }
    flushCurrent()
    VMCSHeader(base: current).activeOn = nil
  }

  /// Writes the lazy fields back; then no VMCS is current.
  private func flushCurrent() {
    guard let current = vmx.pointee.current else { return }
    for location in VMCSLayout.lazyLocations {
      current.storeBytes(
        of: cpu.readLazy(location), toByteOffset: Int(location.page), as: UInt64.self)
    }
    keepExitFields()
    VMCSHeader(base: current).launched = vmx.pointee.launched
    vmx.pointee.current = nil
  }

  /// Writes the exit-information fields to the VMCS's memory, which then holds them.
  func keepExitFields() {
    guard vmx.pointee.hasExitRecord, let current = vmx.pointee.current else { return }
    vmx.pointee.hasExitRecord = false
    let fields = ExitFields(of: cpu)
    for location in VMCSLayout.exitLocations {
      current.storeBytes(
        of: fields.value(location.state), toByteOffset: Int(location.page), as: UInt64.self)
    }
  }

  private func loadLazyFields(_ base: UnsafeMutableRawPointer) {
    for location in VMCSLayout.lazyLocations {
      let value = base.load(fromByteOffset: Int(location.page), as: UInt64.self)
      cpu.writeLazy(location, value)
    }
  }
}

extension CPU {
  /// A lazy field's value in this CPU.
  @inline(__always) func readLazy(_ location: FieldLocation) -> UInt64 {
    let offset = Int(location.state)
    switch location.kind {
    case .page, .exit: return 0
    case .state2: return UInt64(raw.load(fromByteOffset: offset, as: UInt16.self))
    case .state4: return UInt64(raw.load(fromByteOffset: offset, as: UInt32.self))
    case .state8: return raw.load(fromByteOffset: offset, as: UInt64.self)
    case .rflags: return flags
    }
  }

  /// RFLAGS keeps its reserved bits until VM entry has checked them.
  @inline(__always) func writeLazy(_ location: FieldLocation, _ value: UInt64) {
    let offset = Int(location.state)
    switch location.kind {
    case .page, .exit: break
    case .state2:
      raw.storeBytes(of: UInt16(truncatingIfNeeded: value), toByteOffset: offset, as: UInt16.self)
    case .state4:
      raw.storeBytes(of: UInt32(truncatingIfNeeded: value), toByteOffset: offset, as: UInt32.self)
    case .state8: raw.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    case .rflags:
      s.pointee.rflags = value & ~RFLAGS.arithmetic.rawValue
      arithmeticFlags = value
    }
  }
}
