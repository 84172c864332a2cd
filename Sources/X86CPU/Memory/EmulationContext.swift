// SPDX-License-Identifier: Apache-2.0
//
// The processor's side of MMIO: who answers accesses outside memory.

import X86

/// Answers accesses outside memory while the hypervisor emulates one instruction.
///
/// The hypervisor's MMIO and string I/O handlers let the processor execute the instruction that
/// exited, with this in place of the devices. A method that returns nil or false stops the
/// instruction before it changes anything (user space must answer the access). Then the hypervisor
/// emulates the same instruction again and replays the answers in the same order.
package protocol EmulationContext: AnyObject {
  /// Reads `size` (1, 2, 4 or 8) bytes at a guest-physical address.
  func readMMIO(_ address: UInt64, size: Int) -> UInt64?
  func writeMMIO(_ address: UInt64, size: Int, value: UInt64) -> Bool
  /// Reads `size` (1, 2 or 4) bytes from a port: INS (IN exits with its own information).
  func readPort(_ port: UInt16, size: Int) -> UInt64?
  func writePort(_ port: UInt16, size: Int, value: UInt64) -> Bool
  /// Makes EPT map the memory at a guest-physical address, for a page walk's read or write.
  func mapMemory(_ address: UInt64, writing: Bool) -> Bool
}

extension EmulationContext {
  package func mapMemory(_ address: UInt64, writing: Bool) -> Bool { false }
}

extension CPU {
  /// A page with a paging-structure entry, mapped first if an instruction is being emulated.
  func tablePage(
    _ address: UInt64, _ kind: AccessKind, _ linear: UInt64
  ) throws(GuestException) -> PhysicalPage {
    // With accessed and dirty flags every page walk counts as a write (SDM volume 3, "Accessed and
    // Dirty Flags for EPT").
    let alsoWrites = kind == .read && s.pointee.intercepts.walksWrite
    let kind = alsoWrites ? .write : kind
    if let page = physicalPage(address, kind) {
      try requireNotAPIC(page, address)
      return page
    }
    if s.pointee.emulation != nil,
      emulationContext?.mapMemory(address, writing: kind == .write) == true,
      let page = physicalPage(address, kind)
    {
      return page
    }
    throw eptViolation(address, kind, .pageWalk(linear))
  }
}
