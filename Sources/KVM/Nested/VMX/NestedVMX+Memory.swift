// SPDX-License-Identifier: Apache-2.0
//
// L2's memory where L1 uses EPT. L2's physical address is looked up in L1's EPT as a processor does
// it (SDM volume 3, "The Extended Page Table Mechanism"); what that does not allow is L1's EPT
// violation or misconfiguration. What it allows is then L1's access to its memory: mapped, logged
// and protected as any other. Both together make one leaf of the shadow tables.

import X86
import X86CPU

/// What L1's EPT says of an address.
private enum EPTWalk {
  /// - Parameters:
  ///   - physical: L1's address of the access.
  ///   - leaf: rights and size, as a leaf of ours would have them.
  case page(physical: UInt64, leaf: NestedLeaf)
  /// - Parameter rights: that all entries on the way give.
  case violation(rights: UInt64)
  case misconfigured
  /// An entry was exchanged under the walk.
  case exchanged
}

/// A kind of access, by the rights that it needs.
private struct EPTAccess {
  var needed: UInt64
  var isWrite: Bool { needed & EPTEntry.write != 0 }

  init(writing: Bool) { needed = writing ? EPTEntry.write : EPTEntry.read }

  init(_ violation: EPTViolationQualification) {
    needed = 0
    if violation.contains(.read) { needed |= EPTEntry.read }
    if violation.contains(.write) { needed |= EPTEntry.write }
    if violation.contains(.fetch) { needed |= EPTEntry.execute }
  }
}

extension NestedVMX {
  // MARK: Which tables

  /// Makes the tables of vmcs12 the current ones.
  func useShadow(_ vcpu: VirtualCPU) {
    let source = ShadowTables.Source(root: block.fields[.eptPointer], space: 0)
    // Every switch of guests flushes the TLB, new tables or not.
    _ = unsafe shadows.use(source, .extended, vcpu.machine.memory)
  }

  /// L1 has invalidated the translations of an EPT pointer, whatever its flags.
  func clearShadows(of pointer: UInt64) {
    shadows.clear { ($0.root ^ pointer) & Page.mask == 0 }
  }

  // MARK: Faults

  func takeViolation(_ vcpu: VirtualCPU) -> Disposition {
    let address = vmx.read(.guestPhysicalAddress)
    let violation = EPTViolationQualification(rawValue: vmx.read(.exitQualification))
    switch walk(address, EPTAccess(violation), vcpu) {
    case .exchanged: return .resume
    case .misconfigured:
      leaveMisconfigured(vcpu, address)
      return .resume
    case .violation(let rights):
      let all = EPTViolationQualification.rights(.max).rawValue
      let found = EPTViolationQualification.rights(rights).rawValue
      leave(vcpu, qualification: violation.rawValue & ~all | found)
      return .resume
    case .page(let physical, let leaf):
      if violation.contains(.nmiUnblocking) { blockNMIsAgain() }
      return vcpu.mapNested(
        address, physical, leaf, isWrite: violation.contains(.write), shadows.current)
    }
  }

  private func leaveMisconfigured(_ vcpu: VirtualCPU, _ address: UInt64) {
    leave(vcpu, NestedVMXExit(reason: .eptMisconfiguration))
    block.fields[.guestPhysicalAddress] = address
  }

  /// The IRET that unblocked NMIs did not happen.
  private func blockNMIsAgain() {
    guard vmx.read(.idtVectoringInfo) & UInt64(InterruptionInfo.validBit) == 0 else { return }
    vmx[.interruptibility] |= UInt64(Interruptibility.blockingByNMI)
  }

  func translate(_ address: UInt64, writing: Bool, _ vcpu: VirtualCPU) -> UInt64? {
    guard hasEPT else { return address }
    guard case .page(let physical, _) = walk(address, EPTAccess(writing: writing), vcpu) else {
      return nil
    }
    return physical
  }

  // MARK: The walk

  private func walk(_ address: UInt64, _ access: EPTAccess, _ vcpu: VirtualCPU) -> EPTWalk {
    let pointer = block.fields[.eptPointer]
    let setsFlags = pointer & EPTPointer.accessedDirty != 0
    var table = pointer & EPTEntry.addressMask
    var rights = EPTEntry.rightsMask
    var level = 3
    if address &>> NestedLeaf.shift(4) != 0 { return .violation(rights: 0) }
    while level >= 0 {
      let index = (address &>> NestedLeaf.shift(level)) & 511
      let place = table &+ index &* 8
      guard let entry: UInt64 = vcpu.memory.load(place), entry & EPTEntry.rightsMask != 0 else {
        return .violation(rights: 0)
      }
      let isLeaf = level == 0 || level < 3 && entry & EPTEntry.pageSize != 0
      if isMisconfigured(entry, level, isLeaf: isLeaf, vcpu) { return .misconfigured }
      rights &= entry
      // Each level must give the rights that the access needs.
      if isLeaf, rights & access.needed != access.needed {
        return .violation(rights: rights & EPTEntry.rightsMask)
      }
      if setsFlags {
        let dirty = isLeaf && access.isWrite ? EPTEntry.dirty : 0
        guard vcpu.markNestedEntry(entry, EPTEntry.accessed | dirty, at: place) else {
          return .exchanged
        }
      }
      if isLeaf { return page(address, entry, level, rights, access, setsFlags) }
      table = entry & EPTEntry.addressMask
      level &-= 1
    }
    return .violation(rights: 0)
  }

  private func page(
    _ address: UInt64, _ entry: UInt64, _ level: Int, _ rights: UInt64, _ access: EPTAccess,
    _ setsFlags: Bool
  ) -> EPTWalk {
    var leaf = NestedLeaf(entry: rights & EPTEntry.rightsMask, level: level)
    // Without the dirty flag a write must come this way.
    if setsFlags, !access.isWrite, entry & EPTEntry.dirty == 0 { leaf.entry &= ~EPTEntry.write }
    let base = entry & EPTEntry.addressMask & ~leaf.offsetMask
    return .page(physical: base | address & leaf.offsetMask, leaf: leaf)
  }

  /// SDM volume 3, "EPT Misconfigurations".
  private func isMisconfigured(
    _ entry: UInt64, _ level: Int, isLeaf: Bool, _ vcpu: VirtualCPU
  ) -> Bool {
    if entry & (EPTEntry.read | EPTEntry.write) == EPTEntry.write { return true }
    let executeOnly = capabilities.eptVPID & EPTCapabilities.executeOnly != 0
    if !executeOnly, entry & EPTEntry.rightsMask == EPTEntry.execute { return true }
    let width = min(vcpu.cpuid.physicalAddressBits ?? 52, CPU.physicalAddressBits)
    var reserved = EPTEntry.addressMask & ~((1 &<< width) &- 1)
    guard isLeaf else { return entry & (reserved | 0xF8) != 0 }
    if level > 0 {
      reserved |= NestedLeaf(entry: 0, level: level).offsetMask & Page.mask
      let size = level == 1 ? EPTCapabilities.pages2M : EPTCapabilities.pages1G
      if capabilities.eptVPID & size == 0 { return true }
    }
    let type = entry >> EPTEntry.memoryTypeShift & 7
    return type == 2 || type == 3 || type == 7 || entry & reserved != 0
  }
}
