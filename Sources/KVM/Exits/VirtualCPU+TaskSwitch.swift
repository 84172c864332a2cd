// SPDX-License-Identifier: Apache-2.0
//
// The hardware task switch, which always exits: the processor has checked the gate, and its own
// routine does the rest here (SDM volume 3, "Treatment of Task Switches").

import CHost
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  func switchTask(selector: UInt16, source: TaskSwitchSource) -> Disposition {
    guard let slot else { return .resume }
    let event = events.takeInterrupted()
    var returnRIP = backend[.rip]
    // After an instruction the task resumes behind it; after an interrupt or a fault, at it.
    if source != .interrupt || event?.isOfInstruction == true {
      returnRIP &+= backend.instructionLength
    }
    mailbox.enter(slot.index)
    defer { leaveGuest() }
    do throws(GuestException) {
      // It cannot restart in the middle, so unmapped nested pages are handled here.
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
    // It changed registers outside the control block.
    backend.stateChangedInPlace()
    return .resume
  }
}
