// SPDX-License-Identifier: Apache-2.0
//
// Implicit accesses of the processor: descriptor tables, TSS, interrupt stacks. They have
// supervisor privilege at any CPL (SDM volume 3, "Access Rights": implicit supervisor accesses).

import X86

extension CPU {
  package func loadSystem<T: FixedWidthInteger & UnsignedInteger>(
    _ linear: UInt64, as type: T.Type = T.self
  ) throws(GuestException) -> T {
    let saved = currentBank
    useBank(TLB.supervisor)
    defer { useBank(saved) }
    return try load(linear, as: T.self)
  }

  package func storeSystem<T: FixedWidthInteger & UnsignedInteger>(
    _ value: T, at linear: UInt64
  ) throws(GuestException) {
    let saved = currentBank
    useBank(TLB.supervisor)
    defer { useBank(saved) }
    try store(value, at: linear)
  }

  /// Runs `body` with its accesses at the given privilege (0 or 3) instead of the CPL's.
  package func withPrivilege<R>(
    _ cpl: UInt8, _ body: () throws(GuestException) -> R
  ) throws(GuestException) -> R {
    let saved = currentBank
    useBank(cpl == 3 ? TLB.user : TLB.supervisor)
    defer { useBank(saved) }
    return try body()
  }

  var owner: PhysicalCPU {
    Unmanaged<PhysicalCPU>.fromOpaque(s.pointee.owner.unsafelyUnwrapped).takeUnretainedValue()
  }

  /// Selects the bank for accesses.
  @inline(__always) func useBank(_ bank: Int) {
    s.pointee.tlb = tlbBank(bank)
    if bank == TLB.supervisor {
      s.pointee.tlbContext = s.pointee.supervisorTLBContext
    } else {
      let isChecked = bank == TLB.user && alignmentIsChecked
      s.pointee.tlbContext = isChecked ? TLB.checkedContext : s.pointee.addressSpace
    }
  }

  /// For accesses with user privilege (SDM volume 3, "Interrupt 17, Alignment Check Exception").
  @inline(__always) private var alignmentIsChecked: Bool {
    s.pointee.cpl == 3 && s.pointee.rflags & RFLAGS.ac.rawValue != 0
      && s.pointee.cr0 & CR0.am.rawValue != 0
  }

  /// Whether alignment checks are active.
  @inline(__always) var checksAlignment: Bool { s.pointee.tlbContext == TLB.checkedContext }

  /// Runs `body` without alignment checks, for an instruction that never raises #AC.
  @inline(__always) func withoutAlignmentChecks<R>(
    _ body: () throws(GuestException) -> R
  ) throws(GuestException) -> R {
    if !checksAlignment { return try body() }
    s.pointee.tlbContext = s.pointee.addressSpace
    defer { s.pointee.tlbContext = TLB.checkedContext }
    return try body()
  }

  /// Raises #AC if alignment is checked. Operands of up to 8 bytes are aligned to their size, those
  /// of 10 to 8; larger ones have their own rules.
  @inline(__always) func checkAlignment(_ linear: UInt64, _ size: Int) throws(GuestException) {
    if checksAlignment { try checkAlignment(linear, to: Self.alignment(size)) }
  }

  /// The same for a given alignment, a power of 2.
  func checkAlignment(_ linear: UInt64, to alignment: UInt64) throws(GuestException) {
    if checksAlignment && linear & (alignment &- 1) != 0 {
      throw GuestException(.alignmentCheck, code: 0)
    }
  }

  private static func alignment(_ size: Int) -> UInt64 {
    switch size {
    case 2, 4, 8: UInt64(size)
    case 10: 8
    default: 1
    }
  }

  @inline(__always) func tlbBank(_ bank: Int) -> UnsafeMutablePointer<TLBEntry> {
    s.pointee.tlbBanks + bank * TLB.entriesPerBank
  }
}
