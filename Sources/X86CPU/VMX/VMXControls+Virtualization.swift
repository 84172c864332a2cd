// SPDX-License-Identifier: Apache-2.0
//
// Controls of rarely used features: APIC virtualization, posted interrupts, PML, virtualization
// exceptions, VM functions, VMCS shadowing, mode-based execute control. If none of them is on, VM
// entry reads none of their fields.

import X86

package struct VirtualizationControls {
  package var virtualAPIC: UInt64 = 0
  package var apicAccess: UInt64 = 0
  package var tprThreshold: UInt8 = 0
  package var eoiExits = InlineArray<4, UInt64>(repeating: 0)
  package var postedVector: UInt16 = 0
  package var postedDescriptor: UInt64 = 0
  package var pageLog: UInt64 = 0
  package var exceptionArea: UInt64 = 0
  package var functions: UInt64 = 0
  package var eptpList: UInt64 = 0
  package var vmreadBitmap: UInt64 = 0
  package var vmwriteBitmap: UInt64 = 0

  package init() {}

  init(_ unit: VMXUnit, _ controls: VMXControls) {
    let secondary = controls.activeSecondary
    func address(_ field: VMCSField, _ control: UInt32) -> UInt64 {
      secondary & control != 0 ? unit.page(field) : 0
    }
    if controls.primary & PrimaryControls.useTPRShadow != 0 {
      virtualAPIC = unit.page(.virtualAPICAddress)
      tprThreshold = UInt8(truncatingIfNeeded: unit.page(.tprThreshold))
    }
    apicAccess = address(.apicAccessAddress, SecondaryControls.virtualizeAPICAccesses)
    eoiExits[0] = unit.page(.eoiExitBitmap0)
    eoiExits[1] = unit.page(.eoiExitBitmap1)
    eoiExits[2] = unit.page(.eoiExitBitmap2)
    eoiExits[3] = unit.page(.eoiExitBitmap3)
    postedVector = UInt16(truncatingIfNeeded: unit.page(.postedInterruptVector))
    postedDescriptor = unit.page(.postedInterruptDescriptor)
    pageLog = address(.pmlAddress, SecondaryControls.enablePML)
    exceptionArea = address(.virtualizationExceptionInfo, SecondaryControls.eptViolationVE)
    functions = address(.vmFunctionControls, SecondaryControls.enableVMFunctions)
    eptpList = address(.eptpListAddress, SecondaryControls.enableVMFunctions)
    vmreadBitmap = address(.vmreadBitmap, SecondaryControls.vmcsShadowing)
    vmwriteBitmap = address(.vmwriteBitmap, SecondaryControls.vmcsShadowing)
  }
}

extension VMXControls {
  private static let virtualizing =
    SecondaryControls.virtualizeAPICAccesses | SecondaryControls.virtualizeX2APIC
    | SecondaryControls.apicRegisterVirtualization | SecondaryControls.virtualInterruptDelivery
    | SecondaryControls.enableVMFunctions | SecondaryControls.vmcsShadowing
    | SecondaryControls.enablePML | SecondaryControls.eptViolationVE
    | SecondaryControls.modeBasedExecute

  /// Whether any of the features is on.
  @inline(__always) var needsVirtualization: Bool {
    primary & PrimaryControls.useTPRShadow != 0 || activeSecondary & Self.virtualizing != 0
      || exit & ExitControls.acknowledgeInterrupt != 0
  }

  fileprivate var apicFeatures: VirtualAPICFeatures {
    let secondary = activeSecondary
    let rows: [(Bool, VirtualAPICFeatures)] = [
      (primary & PrimaryControls.useTPRShadow != 0, .tpr),
      (secondary & SecondaryControls.virtualizeAPICAccesses != 0, .accesses),
      (secondary & SecondaryControls.virtualizeX2APIC != 0, .x2APIC),
      (secondary & SecondaryControls.apicRegisterVirtualization != 0, .registers),
      (secondary & SecondaryControls.virtualInterruptDelivery != 0, .delivery),
      (exit & ExitControls.acknowledgeInterrupt != 0, .acknowledges),
    ]
    return rows.reduce(into: []) { if $1.0 { $0.insert($1.1) } }
  }
}

extension PhysicalCPU {
  /// Applies these controls to the processor.
  func adoptVirtualization(_ controls: VMXControls) {
    if !controls.needsVirtualization && !vmx.pointee.isVirtualizing { return }
    vmx.pointee.isVirtualizing = controls.needsVirtualization
    adoptVirtualAPIC(controls)
    let s = cpu.s
    let own = controls.virtualization
    s.pointee.pageTracking.log = own.pageLog
    s.pointee.pageTracking.exceptionArea = own.exceptionArea
    let separates = controls.activeSecondary & SecondaryControls.modeBasedExecute != 0
    if s.pointee.pageTracking.separatesUserExecution != separates {
      s.pointee.pageTracking.separatesUserExecution = separates
      cpu.flushTLB()
    }
  }

  private func adoptVirtualAPIC(_ controls: VMXControls) {
    let s = cpu.s
    let own = controls.virtualization
    s.pointee.virtualAPIC.features = controls.apicFeatures
    s.pointee.virtualAPIC.page = own.virtualAPIC
    s.pointee.virtualAPIC.threshold = own.tprThreshold
    s.pointee.virtualAPIC.eoiExits = own.eoiExits
    s.pointee.virtualAPIC.holdsDelivery =
      controls.primary & PrimaryControls.interruptWindowExiting != 0
    let posts = controls.pin & PinControls.postedInterrupts != 0
    s.pointee.virtualAPIC.postedVector = posts ? own.postedVector : .max
    s.pointee.virtualAPIC.postedDescriptor = own.postedDescriptor
    let hasPage = controls.activeSecondary & SecondaryControls.virtualizeAPICAccesses != 0
    let accessPage = hasPage ? own.apicAccess : .max
    if s.pointee.virtualAPIC.accessPage != accessPage {
      // Drop all translations of both pages.
      s.pointee.virtualAPIC.accessPage = accessPage
      cpu.flushTLB()
    }
  }
}

extension CPU {
  /// For the recorded EPT violation: stores its information in the guest's area ("Convertible EPT
  /// Violations" and "Virtualization-Exception Information").
  ///
  ///     0 exit reason   4 all ones   8 exit qualification   16 linear address
  ///     24 guest-physical address   32 EPTP index
  ///
  /// - Returns: false if it must exit: outside protected mode, during event delivery, or
  ///   if the guest has not released the last one's information.
  func raisesVirtualizationException() -> Bool {
    guard isProtected, s.pointee.emulation == nil, !s.pointee.pageTracking.isDelivering,
      let area = UnsafeMutableRawPointer(bitPattern: UInt(s.pointee.pageTracking.exceptionArea)),
      area.load(fromByteOffset: 4, as: UInt32.self) == 0
    else { return false }
    let fields = ExitFields(of: self)
    area.storeBytes(of: UInt32(ExitReason.eptViolation.rawValue), as: UInt32.self)
    area.storeBytes(of: .max, toByteOffset: 4, as: UInt32.self)
    area.storeBytes(of: fields.qualification, toByteOffset: 8, as: UInt64.self)
    area.storeBytes(of: fields.guestLinear, toByteOffset: 16, as: UInt64.self)
    area.storeBytes(of: fields.guestPhysical, toByteOffset: 24, as: UInt64.self)
    area.storeBytes(of: s.pointee.pageTracking.view, toByteOffset: 32, as: UInt16.self)
    return true
  }
}
