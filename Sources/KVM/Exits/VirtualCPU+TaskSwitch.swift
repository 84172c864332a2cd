// SPDX-License-Identifier: Apache-2.0
//
// The hardware task switch, which always exits: the processor has checked the gate, the rest is
// done here by the processor's own routine (SDM volume 3, "Treatment of Task Switches").

import CHost
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  func switchTask(selector: UInt16, source: TaskSwitchSource) -> Disposition {
    guard let slot else { return .resume }
    let event = events.takeInterrupted()
    var returnRIP = backend[.rip]
    // Only an instruction is behind itself; an interrupt or a fault returns to where it came.
    if source != .interrupt || event?.isOfInstruction == true {
      returnRIP &+= backend.instructionLength
    }
    mailbox.enter(slot.index)
    defer { leaveGuest() }
    do throws(GuestException) {
      // It cannot be begun again in its midst: memory that no nested entry has is accessed here.
      emulation.finish()
      emulation.begin(at: backend[.rip], cpu)
      let isDone = try slot.cpu.withContext(self) { () throws(GuestException) in
        try slot.cpu.switchTask(
          selector: selector, source: source, returnRIP: returnRIP, errorCode: event?.errorCode)
      }
      emulation.finish()
      if !isDone {
        backend.stateChangedInPlace()
        leaveGuest()
        return memoryVanished()
      }
      if source != .interrupt { noteRetired(isBranch: true) }
    } catch {
      emulation.finish()
      if error.isVMExit {
        backend.stateChangedInPlace()
        return emulation.takeHostFault() ? hostFault() : emulationFailed()
      }
      if error.vector == ExceptionVector.pageFault.rawValue {
        unsafe cpu.s.pointee.cr2 = unsafe cpu.s.pointee.faultAddress
      }
      raise(error)
    }
    // It changed registers behind the control block's back.
    backend.stateChangedInPlace()
    return .resume
  }
}
