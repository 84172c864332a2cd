// SPDX-License-Identifier: Apache-2.0
//
// A guest that is a hypervisor. We are L0, the guest is L1, and its guest is L2:
//
//     L1: VMRUN  -> exit to L0: `execute` checks L1's control block, merges it with ours, and
//                   makes the merged one current: the next entry enters L2
//     L2: exit   -> `takeExit`: if L1 asked for it, it is written to L1's block, and L1 continues
//                   behind its VMRUN. Otherwise we handle it like an exit of L1
//     an interrupt for L1 while L2 runs -> `beforeEntry`: L2 exits to L1, which takes it
//
// To the rest of the hypervisor "the guest" is the one that runs: while L2 runs, its registers are
// the vCPU's. Each vendor implements this protocol in a folder of its own, on its own backend. The
// object belongs to the thread that is in an ioctl of the vCPU.

import SystemPackage
import X86
import X86CPU

protocol NestedVirtualization: AnyObject {
  /// L2 runs.
  var isGuest: Bool { get }
  /// L1 takes no interrupt, NMI or SMI (SVM: the global interrupt flag is 0).
  var holdsEvents: Bool { get }
  /// L2 runs, and an interrupt for L1 makes it exit.
  var exitsOnInterrupt: Bool { get }
  /// L2 runs, and an NMI for L1 makes it exit.
  var exitsOnNMI: Bool { get }
  /// Whether interrupts may be taken now; nil where L1 runs, and its flags alone say.
  var allowsInterrupts: Bool? { get }

  /// An instruction of virtualization that exited.
  func execute(_ vcpu: VirtualCPU) -> Disposition
  /// Handles an exit of L2 that is L1's; nil: an exit like any other.
  func takeExit(_ vcpu: VirtualCPU) -> Disposition?
  /// Called before L2 is entered: exits to L1 instead if something is due.
  func beforeEntry(_ vcpu: VirtualCPU)
  /// L2 is about to shut down. False if L1 does not intercept that.
  func takeTripleFault(_ vcpu: VirtualCPU) -> Bool
  /// Translates L2's physical address to L1's, for emulated instructions; nil if it is not mapped.
  func translate(_ address: UInt64, writing: Bool, _ vcpu: VirtualCPU) -> UInt64?
  /// Returns to L1 without an exit, and resets the state of virtualization.
  func reset(_ vcpu: VirtualCPU)

  /// KVM's nested state, but for the header's size.
  func savedState(_ vcpu: VirtualCPU) -> NestedState
  /// Takes KVM's nested state. The vCPU's registers are those of L2 where it says that L2 runs.
  ///
  /// - Throws: `.invalidArgument` for what no processor can be in.
  func restore(_ state: NestedState, _ vcpu: VirtualCPU) throws(Errno)

  /// An SMI may be taken while L2 runs.
  var takesManagementInterrupts: Bool { get }
  /// Called when system management mode interrupts L2, after L2's registers are saved: makes L1's
  /// the vCPU's.
  ///
  /// - Returns: what the state-save area keeps of L2; nil if there is no memory to save L1's
  ///   registers in.
  func suspend(_ vcpu: VirtualCPU) -> SuspendedGuest?
  /// RSM into L2. The vCPU's registers are L2's.
  ///
  /// - Returns: false if L2 cannot be entered: a shutdown.
  func resume(_ guest: SuspendedGuest, _ vcpu: VirtualCPU) -> Bool

  /// The value of an MSR of virtualization; nil for others.
  func readMSR(_ number: UInt32) -> UInt64?
  /// nil for others; false if the value is invalid.
  func writeMSR(_ number: UInt32, _ value: UInt64, byHost: Bool) -> Bool?
}

/// What a state-save area of system management mode keeps of L2 (APM volume 2, "SMM State-Save
/// Area").
struct SuspendedGuest {
  /// L1's physical address of its control block.
  var controlBlock: UInt64
  /// SVM's virtual interrupt.
  var virtualInterrupt: UInt64
}

extension VirtualCPU {
  /// L2 runs.
  var runsNestedGuest: Bool { nested?.isGuest == true }

  /// Handles the processor's last exit.
  func handleExit() -> Disposition {
    if let nested, nested.isGuest, let disposition = nested.takeExit(self) { return disposition }
    return handle(backend.takeExit())
  }

  /// VMRUN and its like.
  func executeVirtualization() -> Disposition {
    if let nested { return nested.execute(self) }
    raise(.invalidOpcode)
    return .resume
  }

  /// The physical address that the machine's memory knows for the one that the processor has.
  func machineAddress(_ address: UInt64, writing: Bool) -> UInt64? {
    guard let nested, nested.isGuest else { return address }
    return nested.translate(address, writing: writing, self)
  }
}
