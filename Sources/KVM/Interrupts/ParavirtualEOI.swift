// SPDX-License-Identifier: Apache-2.0
//
// EOI without an exit (Linux, "MSR_KVM_PV_EOI_EN"): we set bit 0 of a word in guest memory when the
// end of the interrupt in service affects only this local APIC and no other request is pending. The
// guest ends that interrupt by clearing the bit; if the bit is clear already, it writes the EOI
// register as usual.
//
//     entry:  one in service, edge-triggered, none requested  -> bit set      (offerEOI)
//             no longer so                                    -> bit cleared
//     exit:   the bit is clear again                          -> EOI          (takeEOI)
//     leaving KVM_RUN:                                        -> bit cleared  (withdrawEOI)
//
// So other observers of guest memory or of the local APIC see an ordinary local APIC.

import InterruptChips
import Synchronization

struct ParavirtualEOI: Sendable {
  static let enabled: UInt64 = 1
  /// The MSR: the word's address, and the enable bit.
  var msr: UInt64 = 0
  /// The guest's bit is set, unless it has ended the interrupt.
  var isOffered = false

  var isEnabled: Bool { msr & Self.enabled != 0 }
  var address: UInt64 { msr & ~Self.enabled }
}

extension LocalAPIC {
  /// The interrupt in service, if it is edge-triggered and no request waits for its end.
  var quietVector: UInt8? {
    guard let vector = highestServicedVector, highestRequestedVector == nil else { return nil }
    return isLevelTriggered(vector) ? nil : vector
  }
}

extension VirtualCPU {
  func writeEOIMSR(_ value: UInt64) -> Bool {
    let address = value & ~ParavirtualEOI.enabled
    guard address & 3 == 0 else { return false }
    if value & ParavirtualEOI.enabled != 0, unsafe machine.memory.slot(at: address) == nil {
      return false
    }
    withdrawEOI()
    paravirtual.eoi.msr = value
    events.mustCheck = true
    return true
  }

  /// Called before an entry if the local APIC may have changed.
  func offerEOI() {
    guard paravirtual.eoi.isEnabled, let apic else { return }
    let vector = apic.state.withLock { $0.quietVector }
    // Ends of the 8254's ticks are counted.
    let wanted = vector.map { unsafe machine.interrupts?.isTick($0) == false } ?? false
    guard wanted != paravirtual.eoi.isOffered else { return }
    paravirtual.eoi.isOffered = storeEOI(wanted ? 1 : 0) && wanted
  }

  /// After an exit: the guest may have ended its interrupt.
  func takeEOI() {
    guard paravirtual.eoi.isOffered else { return }
    let word = unsafe machine.memory.load(paravirtual.eoi.address, as: UInt8.self) ?? 1
    guard word & 1 == 0 else { return }
    paravirtual.eoi.isOffered = false
    endInterrupt()
  }

  /// Clears the bit; the guest then ends the interrupt by the register.
  func withdrawEOI() {
    takeEOI()
    guard paravirtual.eoi.isOffered else { return }
    paravirtual.eoi.isOffered = false
    events.mustCheck = true
    _ = storeEOI(0)
  }

  private func endInterrupt() {
    if let effect = apic?.state.withLock({ $0.writeEOI() }) { perform(effect) }
  }

  private func storeEOI(_ value: UInt8) -> Bool {
    unsafe writeMemory(paravirtual.eoi.address, count: 1, in: machine.memory) {
      $0.storeBytes(of: value, as: UInt8.self)
    }
  }
}
