// SPDX-License-Identifier: Apache-2.0
//
// Accesses that the processor makes by itself: descriptor tables, TSS, interrupt stacks. They have
// supervisor privilege whatever the CPL (SDM volume 3, "Access Rights": implicit supervisor accesses).

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

  /// Accesses go through this bank from now on.
  @inline(__always) func useBank(_ bank: Int) {
    s.pointee.tlb = tlbBank(bank)
    s.pointee.tlbContext =
      bank == TLB.supervisor ? s.pointee.supervisorTLBContext : s.pointee.addressSpace
  }

  @inline(__always) func tlbBank(_ bank: Int) -> UnsafeMutablePointer<TLBEntry> {
    s.pointee.tlbBanks + bank * TLB.entriesPerBank
  }
}
