// SPDX-License-Identifier: Apache-2.0
//
// Where a vCPU's registers are: in the control block (`VirtualCPU.backend`), and, for those that no
// control block holds, in the physical CPU on which it is resident or else in a `GuestContext`. It
// touches that CPU's state when it is loaded and unloaded, which is under the pool's lock; the rest
// belongs to the thread that is in an ioctl of the vCPU.

import X86CPU

struct VCPURegisters {
  /// The physical CPU that this vCPU has now.
  var slot: PhysicalCPUSlot?
  /// State of the CPU where this vCPU is, or was last.
  private(set) var cpu: CPU
  /// Goes up when the state in the physical CPU may no longer be what the last exit left.
  private(set) var loadCount: UInt64 = 0
  private var context = GuestContext()

  init(_ cpu: CPU) { self.cpu = cpu }

  /// What the last exit left is no longer there as it was.
  mutating func changed() { loadCount &+= 1 }

  mutating func load(on physical: PhysicalCPU) {
    cpu = physical.cpu
    changed()
  }

  /// After the control block has been loaded.
  func restoreContext() { context.restore(to: cpu) }

  mutating func saveContext(from physical: PhysicalCPU) { context.save(from: physical.cpu) }

  /// What the vendor that the guest's CPUID names does in its own way.
  mutating func setVendorRules(_ rules: VendorRules) {
    context.rules = rules
    unsafe cpu.s.pointee.rules = rules
  }
}
