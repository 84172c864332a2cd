// SPDX-License-Identifier: Apache-2.0
//
// Where a vCPU's registers are: in the control block (`VirtualCPU.backend`), and the others in the
// physical CPU on which it is resident or else in a `GuestContext`. Loading and unloading access
// that CPU's state under the pool's lock; only the thread in an ioctl of the vCPU uses the rest.

import X86CPU

struct VCPURegisters {
  /// The physical CPU that this vCPU owns now.
  var slot: PhysicalCPUSlot?
  /// State of the CPU where this vCPU is resident, or was last.
  private(set) var cpu: CPU
  /// Incremented when the state in the physical CPU may differ from the last exit's.
  private(set) var loadCount: UInt64 = 0
  private var context = GuestContext()

  init(_ cpu: CPU) { self.cpu = cpu }

  /// The last exit's state has changed.
  mutating func changed() { loadCount &+= 1 }

  mutating func load(on physical: PhysicalCPU) {
    cpu = physical.cpu
    changed()
  }

  /// Called after the control block has been loaded.
  func restoreContext() { context.restore(to: cpu) }

  mutating func saveContext(from physical: PhysicalCPU) { context.save(from: physical.cpu) }

  /// Sets the behaviour of the vendor in the guest's CPUID.
  mutating func setVendorRules(_ rules: VendorRules) {
    context.rules = rules
    unsafe cpu.s.pointee.rules = rules
  }
}
