// SPDX-License-Identifier: Apache-2.0
//
// Checks on the controls of APIC virtualization, posted interrupts, PML, VM functions, VMCS
// shadowing and virtualization exceptions.

import X86

extension EntryChecks {
  private func isOn(_ control: UInt32) -> Bool { secondary & control != 0 }
  private var hasEPT: Bool { isOn(SecondaryControls.enableEPT) }

  func checkTPRShadow() throws(EntryFailure) {
    try require(isPage(page(.virtualAPICAddress)), .virtualAPICAddress)
    if isOn(SecondaryControls.virtualInterruptDelivery) { return }
    let threshold = page(.tprThreshold)
    try require(threshold >> 4 == 0, .tprThresholdReserved)
    if isOn(SecondaryControls.virtualizeAPICAccesses) { return }
    let address = page(.virtualAPICAddress)
    guard readsMemory, Self.isHostPage(address),
      let base = UnsafeRawPointer(bitPattern: UInt(address))
    else { return }
    let offset = Int(VirtualAPICRegister.taskPriority)
    let tpr = base.load(fromByteOffset: offset, as: UInt8.self)
    try require(threshold & 0xF <= UInt64(tpr >> 4), .tprThresholdAboveTPR)
  }

  func checkAPICVirtualization() throws(EntryFailure) {
    if isOn(SecondaryControls.virtualizeAPICAccesses) {
      try require(isPage(page(.apicAccessAddress)), .apicAccessAddress)
      try require(!isOn(SecondaryControls.virtualizeX2APIC), .x2APICWithAPICAccesses)
    }
    let dependent =
      SecondaryControls.virtualizeX2APIC | SecondaryControls.apicRegisterVirtualization
      | SecondaryControls.virtualInterruptDelivery
    if primary & PrimaryControls.useTPRShadow == 0 {
      try require(!isOn(dependent), .apicFeaturesWithoutTPRShadow)
    }
    if isOn(SecondaryControls.virtualInterruptDelivery) {
      try require(
        pin & PinControls.externalInterruptExiting != 0, .deliveryWithoutInterruptExiting)
    }
    if pin & PinControls.postedInterrupts != 0 { try checkPostedInterrupts() }
  }

  private func checkPostedInterrupts() throws(EntryFailure) {
    try require(isOn(SecondaryControls.virtualInterruptDelivery), .postedWithoutDelivery)
    try require(exit & ExitControls.acknowledgeInterrupt != 0, .postedWithoutAcknowledge)
    try require(page(.postedInterruptVector) >> 8 == 0, .postedInterruptVector)
    let descriptor = page(.postedInterruptDescriptor)
    try require(
      descriptor & 63 == 0 && isAddress(descriptor), .postedInterruptDescriptor)
  }

  /// Checks EPT controls other than the EPT pointer.
  func checkPaging() throws(EntryFailure) {
    if isOn(SecondaryControls.enablePML) {
      try require(hasEPT, .pmlWithoutEPT)
      try require(isPage(page(.pmlAddress)), .pmlAddress)
    }
    if isUnrestricted { try require(hasEPT, .unrestrictedGuestWithoutEPT) }
    if isOn(SecondaryControls.modeBasedExecute) {
      try require(hasEPT, .modeBasedExecuteWithoutEPT)
    }
    if isOn(SecondaryControls.enableVMFunctions) { try checkVMFunctions() }
    if isOn(SecondaryControls.vmcsShadowing) {
      try require(isPage(page(.vmreadBitmap)), .vmreadBitmapAddress)
      try require(isPage(page(.vmwriteBitmap)), .vmwriteBitmapAddress)
    }
    if isOn(SecondaryControls.eptViolationVE) {
      try require(
        isPage(page(.virtualizationExceptionInfo)), .virtualizationExceptionAddress)
    }
  }

  private func checkVMFunctions() throws(EntryFailure) {
    let functions = page(.vmFunctionControls)
    try require(functions & ~VMXCapabilities.vmFunctions == 0, .vmFunctionControls)
    if functions & VMFunctions.eptpSwitching != 0 {
      try require(hasEPT, .eptpSwitchingWithoutEPT)
      try require(isPage(page(.eptpListAddress)), .eptpListAddress)
    }
  }
}
