// SPDX-License-Identifier: Apache-2.0
//
// A TestMachine whose guest is run by the verbs of VT-x: VMXON, a VMCS with valid fields, VM
// entries.
//
//     let m = try VMXMachine()                 // a 64-bit guest at 0x1000, CPL 0
//     m.test.load([0xEB, 0xFE], at: 0x1000)
//     m.processor.kick()
//     #expect(try m.processor.vmlaunch() == .externalInterrupt)

import X86
import X86CPU

package final class VMXMachine {
  package let test: TestMachine
  package let region = HostPage()
  package let vmcs = HostPage()
  package var processor: PhysicalCPU { test.processor }
  package var cpu: CPU { test.cpu }

  /// In VMX operation with a current VMCS that a VM entry accepts.
  ///
  /// - Parameter threshold: see `TestMachine`.
  package init(threshold: UInt32? = nil) throws {
    test = TestMachine(threshold: threshold)
    test.setLongMode()
    let ept = cpu.vmxControls.eptPointer
    try processor.vmxon(region.address)
    try processor.vmclear(vmcs.address)
    try processor.vmptrld(vmcs.address)
    Self.writeControls(processor, ept: ept)
    Self.writeHost(processor)
    Self.writeLongModeGuest(processor)
  }

  /// Pages that `makePage` has made.
  private var pages: [HostPage] = []

  deinit { try? processor.vmxoff() }

  /// A page for another VMCS or an area of MSRs: it is there as long as the processor may write to
  /// it.
  package func makePage() -> HostPage {
    let page = HostPage()
    pages.append(page)
    return page
  }

  package static func writeControls(_ p: PhysicalCPU, ept: UInt64) {
    p.vmwrite(
      .pinBasedControls,
      UInt64(
        VMXCapabilities.pin.required | PinControls.externalInterruptExiting
          | PinControls.nmiExiting | PinControls.virtualNMIs))
    p.vmwrite(
      .primaryControls,
      UInt64(
        VMXCapabilities.primary.required | PrimaryControls.hltExiting
          | PrimaryControls.unconditionalIOExiting | PrimaryControls.secondaryControls))
    p.vmwrite(
      .secondaryControls,
      UInt64(
        SecondaryControls.enableEPT | SecondaryControls.unrestrictedGuest
          | SecondaryControls.enableVPID))
    p.vmwrite(.eptPointer, ept)
    p.vmwrite(.vpid, 1)
    p.vmwrite(
      .exitControls,
      UInt64(
        VMXCapabilities.exit.required | ExitControls.hostAddressSpaceSize
          | ExitControls.saveDebugControls | ExitControls.saveEFER | ExitControls.loadEFER
          | ExitControls.savePAT | ExitControls.loadPAT))
    p.vmwrite(
      .entryControls,
      UInt64(
        VMXCapabilities.entry.required | EntryControls.ia32eModeGuest
          | EntryControls.loadDebugControls | EntryControls.loadEFER | EntryControls.loadPAT))
    p.vmwrite(.vmcsLinkPointer, .max)
  }

  package static func writeHost(_ p: PhysicalCPU) {
    p.vmwrite(.hostCR0, 0x8005_0033)
    p.vmwrite(.hostCR4, CR4([.pae, .vmxe]).rawValue)
    p.vmwrite(.hostCSSelector, 0x8)
    p.vmwrite(.hostTRSelector, 0x10)
    p.vmwrite(.hostEFER, 0xD01)
    p.vmwrite(.hostPAT, 0x0007_0406_0007_0406)
  }

  package static func writeLongModeGuest(_ p: PhysicalCPU) {
    p.vmwrite(.guestCR0, CR0([.pe, .ne, .et, .wp, .pg]).rawValue)
    p.vmwrite(.guestCR3, 0x10000)
    p.vmwrite(.guestCR4, CR4([.pae, .vmxe, .osfxsr]).rawValue)
    p.vmwrite(.guestEFER, EFER([.sce, .lme, .lma, .nxe]).rawValue)
    p.vmwrite(.guestPAT, 0x0007_0406_0007_0406)
    p.vmwrite(.guestDR7, 0x400)
    for register in SegmentRegister.allCases {
      let (selector, rights): (UInt64, UInt64) =
        switch register {
        case .cs: (0x8, 0xA09B)
        case .ldtr: (0, 0x1_0000)
        case .tr: (0x18, 0x8B)
        default: (0x10, 0xC093)
        }
      let n = UInt32(register.rawValue) * 2
      let limit: UInt64 = register == .tr ? 0x67 : 0xFFFF_FFFF
      p.vmwrite(VMCSField(rawValue: VMCSField.guestESSelector.rawValue + n), selector)
      p.vmwrite(VMCSField(rawValue: VMCSField.guestESBase.rawValue + n), 0)
      p.vmwrite(VMCSField(rawValue: VMCSField.guestESLimit.rawValue + n), limit)
      p.vmwrite(VMCSField(rawValue: VMCSField.guestESAccessRights.rawValue + n), rights)
    }
    for field in [VMCSField.guestGDTRLimit, .guestIDTRLimit] { p.vmwrite(field, 0xFFFF) }
    for field in [VMCSField.guestGDTRBase, .guestIDTRBase] { p.vmwrite(field, 0x2000) }
    for field in [
      VMCSField.guestInterruptibility, .guestActivityState, .guestPendingDebugExceptions,
      .guestSysenterESP, .guestSysenterEIP, .guestDebugControl,
    ] { p.vmwrite(field, 0) }
    p.vmwrite(.guestRIP, 0x1000)
    p.vmwrite(.guestRSP, 0x8000)
    p.vmwrite(.guestRFLAGS, 2)
  }
}

/// 4 KiB of host memory that begins with the VMCS revision.
package final class HostPage {
  package let base: UnsafeMutableRawPointer
  package var address: UInt64 { UInt64(UInt(bitPattern: base)) }

  package init() {
    base = .allocate(byteCount: 4096, alignment: 4096)
    base.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
    base.storeBytes(of: VMXCapabilities.revision, as: UInt32.self)
  }

  deinit { base.deallocate() }
}
