// SPDX-License-Identifier: Apache-2.0
//
// The virtual APIC: a hypervisor's page of APIC registers, on which the processor itself handles
// frequent guest accesses (SDM volume 3, "APIC Virtualization and Virtual Interrupts"). This file
// has the accesses; CPU+VirtualInterrupts has the interrupts.
//
// An access to the APIC's address goes to the virtual page. The effects of a write follow the
// instruction, as an exit may. So such an instruction runs alone: the first attempt ends with
// `GuestException.alone`, and then the run loop executes it by itself (`SlowReason.apicAccess`).
// The page is in no TLB.

import X86

extension GuestException {
  /// The instruction must run alone. It has had no effect yet.
  static let alone = GuestException(rawValue: aloneBit)
  static let aloneBit: UInt64 = 1 << 11
}

extension SlowReason {
  /// The instruction at RIP accesses the virtual APIC.
  static let apicAccess: UInt32 = 1 << 7
}

/// Registers of the virtual-APIC page, by offset.
enum VirtualAPICRegister {
  static let id: UInt64 = 0x20
  static let taskPriority: UInt64 = 0x80
  static let processorPriority: UInt64 = 0xA0
  static let endOfInterrupt: UInt64 = 0xB0
  static let inService: UInt64 = 0x100
  static let requests: UInt64 = 0x200
  static let commandLow: UInt64 = 0x300
  static let commandHigh: UInt64 = 0x310
  static let selfIPI: UInt64 = 0x3F0

  /// Offsets, in units of 16 bytes, of registers that "APIC-register virtualization" lets a guest
  /// read: ID, version, TPR, EOI, LDR, DFR, SVR, ISR, TMR, IRR, ESR, ICR, LVT entries, initial
  /// count, divide configuration.
  private static let readable: UInt64 =
    1 << 2 | 1 << 3 | 1 << 8 | 1 << 11 | 7 << 13 | 0xFF << 16 | 0xFF << 24 | 0xFF << 32
    | 1 << 40 | 0x1FF << 48 | 1 << 62
  /// The same for writes.
  private static let writable: UInt64 =
    1 << 2 | 1 << 8 | 1 << 11 | 7 << 13 | 1 << 40 | 0x1FF << 48 | 1 << 62

  static func isReadable(_ offset: UInt64) -> Bool { readable >> (offset >> 4 & 63) & 1 != 0 }
  static func isWritable(_ offset: UInt64) -> Bool { writable >> (offset >> 4 & 63) & 1 != 0 }
}

extension CPU {
  // MARK: The page

  func virtualRegister(_ offset: UInt64) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(bitPattern: UInt(s.pointee.virtualAPIC.page)).unsafelyUnwrapped
      + Int(offset & 0xFFF)
  }

  func readVirtualAPIC(_ offset: UInt64) -> UInt32 {
    virtualRegister(offset).load(as: UInt32.self)
  }

  func writeVirtualAPIC(_ offset: UInt64, _ value: UInt32) {
    virtualRegister(offset).storeBytes(of: value, as: UInt32.self)
  }

  /// The virtual task priority; bits 7:4 are its class.
  var virtualTPR: UInt8 {
    UInt8(truncatingIfNeeded: readVirtualAPIC(VirtualAPICRegister.taskPriority))
  }

  // MARK: Accesses by address

  /// A guest's access to the APIC-access page: its address in the virtual page.
  ///
  /// - Throws: an exit, or `.alone`.
  func accessVirtualAPIC(
    _ linear: UInt64, _ size: Int, _ kind: AccessKind
  ) throws(GuestException) -> UInt64 {
    let offset = linear & Page.offsetMask
    // An instruction under emulation accesses memory for the hypervisor.
    if s.pointee.emulation != nil { return s.pointee.virtualAPIC.accessPage | offset }
    if s.pointee.pageTracking.isDelivering { throw apicAccessExit(offset, .delivery, linear) }
    if !isVirtualized(offset, size, kind) || !isFirst(offset, kind) {
      throw apicAccessExit(offset, kind == .write ? .write : .read, linear)
    }
    if !s.pointee.virtualAPIC.isOpen {
      s.pointee.slow |= SlowReason.apicAccess
      throw .alone
    }
    s.pointee.virtualAPIC.accessed = UInt16(truncatingIfNeeded: offset)
    if kind == .write { s.pointee.virtualAPIC.hasWritten = true }
    return s.pointee.virtualAPIC.page | offset
  }

  /// Whether the processor virtualizes an access: to the first four bytes of a register that it
  /// knows.
  private func isVirtualized(_ offset: UInt64, _ size: Int, _ kind: AccessKind) -> Bool {
    let features = s.pointee.virtualAPIC.features
    let end = offset & 15 &+ UInt64(truncatingIfNeeded: size)
    if !features.contains(.tpr) || size > 4 || end > 4 || kind == .execute { return false }
    let register = offset & ~15
    if register == VirtualAPICRegister.taskPriority { return true }
    if features.contains(.registers) {
      return kind == .write
        ? VirtualAPICRegister.isWritable(register) && register < 0x400
        : VirtualAPICRegister.isReadable(register) && register < 0x400
    }
    return kind == .write && features.contains(.delivery)
      && (register == VirtualAPICRegister.endOfInterrupt
        || register == VirtualAPICRegister.commandLow)
  }

  /// An operation counts as one access; the write of a read-modify-write is not separate.
  private func isFirst(_ offset: UInt64, _ kind: AccessKind) -> Bool {
    let accessed = s.pointee.virtualAPIC.accessed
    return !s.pointee.virtualAPIC.isOpen || accessed == .max || UInt64(accessed) == offset
  }

  func apicAccessExit(
    _ offset: UInt64, _ kind: APICAccessKind, _ linear: UInt64
  ) -> GuestException {
    let exception = exit(.apicAccess)
    s.pointee.exit.selector = UInt16(truncatingIfNeeded: offset & Page.offsetMask)
    s.pointee.exit.size = kind.rawValue
    s.pointee.exit.linear = linear
    return exception
  }

  /// Exits if a page walk reached the APIC-access page.
  func requireNotAPIC(_ page: PhysicalPage, _ address: UInt64) throws(GuestException) {
    if page.host != s.pointee.virtualAPIC.accessPage || s.pointee.emulation != nil { return }
    let isDelivering = s.pointee.pageTracking.isDelivering
    throw apicAccessExit(address, isDelivering ? .physicalDelivery : .physical, 0)
  }

  /// Whether one entry may map the 2 MiB around a host page.
  @inline(__always) func isWithoutAPIC(_ host: UInt64) -> Bool {
    (host ^ s.pointee.virtualAPIC.accessPage) & LargeTLB.mask != 0
  }

  // MARK: After the instruction

  /// Performs the effect of the last instruction's write ("APIC-Write Emulation").
  ///
  /// - Returns: false on an exit.
  func finishAPICWrite() -> Bool {
    let offset = UInt64(s.pointee.virtualAPIC.accessed) & ~3
    s.pointee.virtualAPIC.hasWritten = false
    s.pointee.virtualAPIC.accessed = .max
    let delivers = s.pointee.virtualAPIC.features.contains(.delivery)
    switch offset {
    case VirtualAPICRegister.taskPriority:
      writeVirtualAPIC(offset, UInt32(virtualTPR))
      return virtualizeTPR()
    case VirtualAPICRegister.endOfInterrupt where delivers:
      writeVirtualAPIC(offset, 0)
      return virtualizeEOI()
    case VirtualAPICRegister.commandLow where delivers:
      let command = readVirtualAPIC(offset)
      if isSelfIPI(command) {
        virtualizeSelfIPI(UInt8(truncatingIfNeeded: command))
        return true
      }
    case VirtualAPICRegister.commandHigh:
      writeVirtualAPIC(offset, readVirtualAPIC(offset) & 0xFF00_0000)
      return true
    default: break
    }
    _ = exit(.apicWrite, value: offset)
    return false
  }

  /// A fixed, edge-triggered self-IPI with a vector above 15.
  private func isSelfIPI(_ command: UInt32) -> Bool {
    command & 0xFFF3_3000 == 0 && command >> 18 & 3 == 1 && command & 0x8700 == 0
      && command & 0xF0 != 0
  }

  /// Ends an instruction with the recorded exit after it.
  func trapExit(_ i: MicroOpPointer) -> Int32 {
    s.pointee.rip = nextRIP(i)
    if s.pointee.slow & SlowReason.trapFlag != 0 {
      s.pointee.pendingDebug |= PendingDebug.singleStep
    }
    let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
    s.pointee.interruptibility &= ~shadows
    s.pointee.slow &= ~SlowReason.interruptShadow
    return Step.trapExit
  }

  // MARK: CR8 and MSRs

  var virtualizesTPR: Bool { s.pointee.virtualAPIC.features.contains(.tpr) }

  /// MOV to CR8; the value has been checked.
  func writeVirtualCR8(_ value: UInt64, _ i: MicroOpPointer) -> Int32 {
    writeVirtualAPIC(
      VirtualAPICRegister.taskPriority, UInt32(truncatingIfNeeded: value & 15) << 4)
    return virtualizeTPR() ? reload(i) : trapExit(i)
  }

  /// Reads an MSR of the virtual APIC; nil for other numbers.
  func readVirtualMSR(_ number: UInt32) -> UInt64? {
    guard s.pointee.virtualAPIC.features.contains(.x2APIC), number >> 8 == 8 else { return nil }
    let offset = UInt64(number & 0xFF) << 4
    let all = s.pointee.virtualAPIC.features.contains(.registers)
    if !all && offset != VirtualAPICRegister.taskPriority { return nil }
    return virtualRegister(offset).load(as: UInt64.self)
  }

  /// Writes an MSR of the virtual APIC; returns how the instruction ends, or nil for other numbers.
  func writeVirtualMSR(
    _ number: UInt32, _ value: UInt64, _ i: MicroOpPointer
  ) throws(GuestException) -> Int32? {
    let features = s.pointee.virtualAPIC.features
    guard features.contains(.x2APIC), number >> 8 == 8 else { return nil }
    let offset = UInt64(number & 0xFF) << 4
    var goesOn = true
    switch offset {
    case VirtualAPICRegister.taskPriority:
      if value >> 8 != 0 { throw .generalProtection }
      virtualRegister(offset).storeBytes(of: value, as: UInt64.self)
      goesOn = virtualizeTPR()
    case VirtualAPICRegister.endOfInterrupt where features.contains(.delivery):
      if value != 0 { throw .generalProtection }
      virtualRegister(offset).storeBytes(of: value, as: UInt64.self)
      goesOn = virtualizeEOI()
    case VirtualAPICRegister.selfIPI where features.contains(.delivery):
      if value >> 8 != 0 { throw .generalProtection }
      virtualRegister(offset).storeBytes(of: value, as: UInt64.self)
      if value & 0xF0 != 0 {
        virtualizeSelfIPI(UInt8(truncatingIfNeeded: value))
      } else {
        _ = exit(.apicWrite, value: offset)
        goesOn = false
      }
    default: return nil
    }
    return goesOn ? reload(i) : trapExit(i)
  }
}
