// SPDX-License-Identifier: Apache-2.0
//
// Virtual interrupts of a virtual APIC (SDM volume 3, "Evaluation and Delivery of Virtual
// Interrupts"). For the loop between instructions, a deliverable one is an open interrupt window
// (`InterceptSet.interruptWindow`), as with SVM.

import Synchronization
import X86

extension CPU {
  private var requested: UInt8 {
    get { UInt8(truncatingIfNeeded: s.pointee.virtualAPIC.interruptStatus) }
    nonmutating set {
      let kept = s.pointee.virtualAPIC.interruptStatus & 0xFF00
      s.pointee.virtualAPIC.interruptStatus = kept | UInt16(newValue)
    }
  }

  private var serviced: UInt8 {
    get { UInt8(truncatingIfNeeded: s.pointee.virtualAPIC.interruptStatus >> 8) }
    nonmutating set {
      let kept = s.pointee.virtualAPIC.interruptStatus & 0xFF
      s.pointee.virtualAPIC.interruptStatus = kept | UInt16(newValue) << 8
    }
  }

  // MARK: Vectors in the page's 256-bit registers

  private func word(_ register: UInt64, _ vector: UInt8) -> UInt64 {
    register &+ UInt64(vector >> 5) << 4
  }

  private func setVector(_ register: UInt64, _ vector: UInt8, _ isSet: Bool) {
    let place = word(register, vector)
    let bit: UInt32 = 1 << UInt32(vector & 31)
    let old = readVirtualAPIC(place)
    writeVirtualAPIC(place, isSet ? old | bit : old & ~bit)
  }

  /// The highest vector; 0 if there is none.
  private func highestVector(_ register: UInt64) -> UInt8 {
    for number in (0..<8 as Range<UInt8>).reversed() {
      let bits = readVirtualAPIC(word(register, number << 5))
      if bits != 0 { return number << 5 | UInt8(31 &- bits.leadingZeroBitCount) }
    }
    return 0
  }

  // MARK: Virtualization of TPR and EOI

  /// - Returns: false on an exit.
  func virtualizeTPR() -> Bool {
    if s.pointee.virtualAPIC.features.contains(.delivery) {
      virtualizePPR()
      evaluateVirtualInterrupts()
      return true
    }
    if !isTPRBelowThreshold { return true }
    _ = exit(.tprBelowThreshold)
    return false
  }

  var isTPRBelowThreshold: Bool { virtualTPR >> 4 < s.pointee.virtualAPIC.threshold & 15 }

  private func virtualizePPR() {
    let (tpr, service) = (virtualTPR, serviced)
    writeVirtualAPIC(
      VirtualAPICRegister.processorPriority,
      UInt32(tpr >> 4 >= service >> 4 ? tpr : service & 0xF0))
  }

  /// - Returns: false on an exit.
  func virtualizeEOI() -> Bool {
    let vector = serviced
    setVector(VirtualAPICRegister.inService, vector, false)
    serviced = highestVector(VirtualAPICRegister.inService)
    virtualizePPR()
    if s.pointee.virtualAPIC.eoiExits[Int(vector >> 6)] >> UInt64(vector & 63) & 1 != 0 {
      _ = exit(.virtualizedEOI, value: UInt64(vector))
      return false
    }
    evaluateVirtualInterrupts()
    return true
  }

  func virtualizeSelfIPI(_ vector: UInt8) {
    setVector(VirtualAPICRegister.requests, vector, true)
    requested = max(requested, vector)
    evaluateVirtualInterrupts()
  }

  /// Whether an interrupt of sufficient priority is pending.
  private func evaluateVirtualInterrupts() {
    if s.pointee.virtualAPIC.holdsDelivery { return }
    let priority = UInt8(
      truncatingIfNeeded: readVirtualAPIC(VirtualAPICRegister.processorPriority))
    if requested >> 4 > priority >> 4 {
      s.pointee.intercepts.set.insert(.interruptWindow)
    } else {
      s.pointee.intercepts.set.remove(.interruptWindow)
    }
  }

  // MARK: Delivery

  /// Whether an open window is for the virtual APIC's interrupts.
  @inline(__always) var deliversVirtualInterrupts: Bool {
    s.pointee.virtualAPIC.features.contains(.delivery) && !s.pointee.virtualAPIC.holdsDelivery
  }

  /// Delivers a virtual interrupt: the guest's interrupts are enabled and one is pending.
  ///
  /// - Returns: false on an exit.
  func deliverVirtualInterrupt() -> Bool {
    let vector = requested
    setVector(VirtualAPICRegister.inService, vector, true)
    serviced = vector
    writeVirtualAPIC(VirtualAPICRegister.processorPriority, UInt32(vector & 0xF0))
    setVector(VirtualAPICRegister.requests, vector, false)
    requested = highestVector(VirtualAPICRegister.requests)
    evaluateVirtualInterrupts()
    s.pointee.activity = ActivityState.active
    return deliverWaiting(GuestEvent(.externalInterrupt, vector: vector))
  }

  /// At VM entry: effects of the virtual APIC before the guest's first instruction.
  ///
  /// - Returns: false on an exit.
  func openVirtualAPIC() -> Bool {
    let features = s.pointee.virtualAPIC.features
    if features.contains(.delivery) {
      virtualizePPR()
      evaluateVirtualInterrupts()
      return true
    }
    guard features.isSuperset(of: [.tpr, .accesses]), isTPRBelowThreshold else { return true }
    _ = exit(.tprBelowThreshold)
    return false
  }

  /// The notification vector arrived: takes posted interrupts over ("Posted-Interrupt Processing").
  ///
  ///     255:0 posted requests   256 outstanding notification
  func takePostedInterrupts() {
    guard
      let descriptor = UnsafeMutableRawPointer(
        bitPattern: UInt(s.pointee.virtualAPIC.postedDescriptor))
    else { return }
    (descriptor + 32).assumingMemoryBound(to: Atomic<UInt64>.self).pointee
      .bitwiseAnd(~1, ordering: .sequentiallyConsistent)
    for number in 0..<4 as Range<UInt8> {
      let bits = UInt64.atomicExchange(descriptor + Int(number) * 8, 0)
      if bits == 0 { continue }
      for half in 0..<2 as Range<UInt8> {
        let place = word(VirtualAPICRegister.requests, number << 6 | half << 5)
        let new = UInt32(truncatingIfNeeded: bits >> (UInt64(half) * 32))
        writeVirtualAPIC(place, readVirtualAPIC(place) | new)
      }
      requested = max(requested, number << 6 | UInt8(63 &- bits.leadingZeroBitCount))
    }
    evaluateVirtualInterrupts()
  }
}
