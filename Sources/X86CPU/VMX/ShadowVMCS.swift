// SPDX-License-Identifier: Apache-2.0
//
// A guest's VMX instructions that need no exit: VMREAD and VMWRITE of a shadow VMCS (SDM volume 3,
// "VMCS Shadowing"), and VM functions.

import X86
import X86Decoder

extension VMXInstructions {
  /// Whether the bitmaps let the processor access a field.
  private static func isShadowed(_ c: CPU, _ encoding: UInt64, _ bitmap: UInt64) -> Bool {
    guard encoding >> 15 == 0, let bits = UnsafePointer<UInt8>(bitPattern: UInt(bitmap)) else {
      return false
    }
    return bits[Int(encoding >> 3)] & 1 << UInt8(truncatingIfNeeded: encoding & 7) == 0
  }

  /// Size of the operands in bytes.
  private static func size(_ c: CPU) -> Int { c.is64Bit ? 8 : 4 }

  private static func value(_ c: CPU, _ register: UnsafeMutableRawPointer) -> UInt64 {
    c.is64Bit ? c.read(register, as: UInt64.self) : UInt64(c.read(register, as: UInt32.self))
  }

  private static func fail(
    _ c: CPU, _ shadow: UnsafeMutableRawPointer?, _ error: VMXInstructionError
  ) -> Int32 {
    guard let shadow else {
      c.arithmeticFlags = RFLAGS.cf.rawValue
      return Step.next
    }
    let place = VMCSLayout.locations[VMCSLayout.slot(.vmInstructionError)].page
    shadow.storeBytes(of: UInt64(error.rawValue), toByteOffset: Int(place), as: UInt64.self)
    c.arithmeticFlags = RFLAGS.zf.rawValue
    return Step.next
  }

  /// The shadow VMCS and the field's location in it.
  private static func locate(
    _ c: CPU, _ encoding: UInt64
  ) -> (shadow: UnsafeMutableRawPointer?, field: VMCSField, location: FieldLocation?) {
    let field = VMCSField(rawValue: UInt32(truncatingIfNeeded: encoding))
    let shadow = PhysicalCPU.region(c.owner.vmx.pointee.page(.vmcsLinkPointer))
    let location = VMCSLayout.locations[VMCSLayout.slot(field)]
    let whole = field.isHigh && field.width == .bits64 ? field.rawValue & ~1 : field.rawValue
    return (shadow, field, UInt32(location.encoding) == whole ? location : nil)
  }

  /// VMREAD; nil if it exits.
  static func readShadow(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32? {
    let bitmap = c.owner.vmx.pointee.controls.virtualization.vmreadBitmap
    let encoding = value(c, i.pointee.src)
    if bitmap == 0 || !isShadowed(c, encoding, bitmap) { return nil }
    try c.requirePrivilege()
    let (shadow, field, location) = locate(c, encoding)
    guard let shadow, let location else { return fail(c, shadow, .unsupportedField) }
    var result = shadow.load(fromByteOffset: Int(location.page), as: UInt64.self)
    if field.isHigh { result >>= 32 }
    if OperandSummary(of: i).isRegister {
      c.is64Bit
        ? c.write(result, to: i.pointee.dst)
        : c.write(UInt32(truncatingIfNeeded: result), to: i.pointee.dst)
    } else {
      let address = try c.linearAddress(i, size: size(c), .write)
      if c.is64Bit {
        try c.store(result, at: address)
      } else {
        try c.store(UInt32(truncatingIfNeeded: result), at: address)
      }
    }
    c.arithmeticFlags = 0
    return Step.next
  }

  /// VMWRITE; nil if it exits.
  static func writeShadow(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32? {
    let bitmap = c.owner.vmx.pointee.controls.virtualization.vmwriteBitmap
    let encoding = value(c, i.pointee.dst)
    if bitmap == 0 || !isShadowed(c, encoding, bitmap) { return nil }
    try c.requirePrivilege()
    var source: UInt64
    if OperandSummary(of: i).isRegister {
      source = value(c, i.pointee.src)
    } else {
      let address = try c.linearAddress(i, size: size(c))
      source = c.is64Bit ? try c.load(address) : UInt64(try c.load(address, as: UInt32.self))
    }
    let (shadow, field, location) = locate(c, encoding)
    guard let shadow, let location else { return fail(c, shadow, .unsupportedField) }
    source &= PhysicalCPU.mask(field.width)
    if field.isHigh {
      let old = shadow.load(fromByteOffset: Int(location.page), as: UInt64.self)
      source = old & 0xFFFF_FFFF | source << 32
    }
    shadow.storeBytes(of: source, toByteOffset: Int(location.page), as: UInt64.self)
    c.arithmeticFlags = 0
    return Step.next
  }

  // MARK: VM functions

  /// VMFUNC: EAX is the function's number. CPL is not checked.
  static func vmfunc(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let controls = c.owner.vmx.pointee.controls
    let isVMX = c.s.pointee.intercepts.mode == .vmx
    if !isVMX || controls.activeSecondary & SecondaryControls.enableVMFunctions == 0 {
      throw .invalidOpcode
    }
    let number = c.gpr[0] & 0xFFFF_FFFF
    guard number < 64, controls.virtualization.functions >> number & 1 != 0 else {
      throw c.exit(.vmfunc, i)
    }
    // Only EPTP switching is supported.
    let index = c.gpr[1] & 0xFFFF_FFFF
    guard index < VMXCapabilities.eptpListCount,
      let list = UnsafePointer<UInt64>(bitPattern: UInt(controls.virtualization.eptpList)),
      VMXCapabilities.allows(eptPointer: list[Int(index)])
    else { throw c.exit(.vmfunc, i) }
    c.owner.switchEPT(to: list[Int(index)], view: UInt16(truncatingIfNeeded: index))
    return c.reload(i)
  }
}

extension PhysicalCPU {
  /// EPTP switching: the VMCS gets the new pointer, too.
  fileprivate func switchEPT(to pointer: UInt64, view: UInt16) {
    guard VMXCapabilities.allows(eptPointer: pointer) else { return }
    cpu.s.pointee.pageTracking.view = view
    if vmx.pointee.current != nil { vmx.pointee.setPage(.eptPointer, pointer) }
    if vmx.pointee.controls.eptPointer == pointer { return }
    vmx.pointee.controls.eptPointer = pointer
    vmx.pointee.tlbEPT = pointer
    cpu.s.pointee.intercepts.nestedRoot = pointer
    cpu.flushTLB()
  }
}
