// SPDX-License-Identifier: Apache-2.0
//
// The rows of the VMCS's layout by area. Fields without a row belong to features that are not
// offered: VMREAD and VMWRITE fail with error 12.

import X86

extension VMCSLayout {
  static let guestRegisters: [Row] = [
    Row(.guestCR0, .registers, .state8, \.cr0),
    Row(.guestCR3, .registers, .state8, \.cr3),
    Row(.guestCR4, .registers, .state8, \.cr4),
    Row(.guestDR7, .registers),
    Row(.guestDebugControl, .registers),
    Row(.guestPAT, .registers),
    Row(.guestEFER, .registers),
    Row(.guestSysenterCS, .registers, .state4, \.sysenterCS),
    Row(.guestSysenterESP, .registers, .state8, \.sysenterESP),
    Row(.guestSysenterEIP, .registers, .state8, \.sysenterEIP),
    Row(.guestRSP, [], .state8, offset: Int(GeneralRegister.rsp.rawValue) * 8),
    Row(.guestRIP, .rest, .state8, \.rip),
    Row(.guestRFLAGS, .rflags, .rflags, \.rflags),
    Row(.guestPDPTE0, [.registers, .paging], .state8, offset: pdpte(0)),
    Row(.guestPDPTE1, [.registers, .paging], .state8, offset: pdpte(1)),
    Row(.guestPDPTE2, [.registers, .paging], .state8, offset: pdpte(2)),
    Row(.guestPDPTE3, [.registers, .paging], .state8, offset: pdpte(3)),
  ]

  static let guestSegments: [Row] =
    [.es, .cs, .ss, .ds, .fs, .gs, .ldtr, .tr].flatMap(segmentRows) + [
      Row(.guestGDTRBase, .segments, .state8, \.gdtr.base),
      Row(.guestGDTRLimit, .segments, .state4, \.gdtr.limit),
      Row(.guestIDTRBase, .segments, .state8, \.idtr.base),
      Row(.guestIDTRLimit, .segments, .state4, \.idtr.limit),
    ]

  static let guestRest: [Row] = [
    Row(.guestInterruptibility, .rest, .state4, \.interruptibility),
    Row(.guestActivityState, .rest, .state4, \.activity),
    Row(.guestPendingDebugExceptions, .rest, .state8, \.pendingDebug),
    Row(.vmcsLinkPointer, .rest),
    Row(.guestSMBASE, []),
    Row(.preemptionTimerValue, []),
    Row(.guestInterruptStatus, .values, .state2, \.virtualAPIC.interruptStatus),
    Row(.pmlIndex, [], .state2, \.pageTracking.logIndex),
  ]

  static let host: [Row] = [
    VMCSField.hostCR0, .hostCR3, .hostCR4, .hostESSelector, .hostCSSelector, .hostSSSelector,
    .hostDSSelector, .hostFSSelector, .hostGSSelector, .hostTRSelector, .hostFSBase, .hostGSBase,
    .hostTRBase, .hostGDTRBase, .hostIDTRBase, .hostSysenterCS, .hostSysenterESP,
    .hostSysenterEIP, .hostRSP, .hostRIP, .hostPAT, .hostEFER,
  ].map { Row($0, .host) }

  static let execution: [Row] = [
    Row(.pinBasedControls, .controls),
    Row(.primaryControls, .controls),
    Row(.secondaryControls, .controls),
    Row(.exceptionBitmap, .values),
    Row(.pageFaultErrorCodeMask, .values),
    Row(.pageFaultErrorCodeMatch, .values),
    Row(.ioBitmapA, .controls),
    Row(.ioBitmapB, .controls),
    Row(.msrBitmap, .controls),
    Row(.tscOffset, .values),
    Row(.tscMultiplier, .controls),
    Row(.cr0Mask, .values),
    Row(.cr0ReadShadow, .values),
    Row(.cr4Mask, .values),
    Row(.cr4ReadShadow, .values),
    Row(.cr3TargetCount, .controls),
    Row(.cr3Target0, .values),
    Row(.cr3Target1, .values),
    Row(.cr3Target2, .values),
    Row(.cr3Target3, .values),
    Row(.eptPointer, .controls),
    Row(.vpid, .controls),
    Row(.pleGap, .values),
    Row(.pleWindow, .values),
    Row(.notifyWindow, .values),
    Row(.xssExitingBitmap, .values),
    Row(.executiveVMCSPointer, []),
    Row(.tprThreshold, .controls),
    Row(.virtualAPICAddress, .controls),
    Row(.apicAccessAddress, .controls),
    Row(.postedInterruptVector, .controls),
    Row(.postedInterruptDescriptor, .controls),
    Row(.eoiExitBitmap0, .values),
    Row(.eoiExitBitmap1, .values),
    Row(.eoiExitBitmap2, .values),
    Row(.eoiExitBitmap3, .values),
    Row(.pmlAddress, .controls),
    Row(.vmFunctionControls, .controls),
    Row(.eptpListAddress, .controls),
    Row(.eptpIndex, [], .state2, \.pageTracking.view),
    Row(.vmreadBitmap, .controls),
    Row(.vmwriteBitmap, .controls),
    Row(.virtualizationExceptionInfo, .controls),
  ]

  static let exitControls: [Row] = [
    VMCSField.exitControls, .exitMSRStoreCount, .exitMSRStoreAddress, .exitMSRLoadCount,
    .exitMSRLoadAddress,
  ].map { Row($0, .controls) }

  static let entryControls: [Row] = [
    Row(.entryControls, .controls),
    Row(.entryMSRLoadCount, .controls),
    Row(.entryMSRLoadAddress, .controls),
    Row(.entryInterruptionInfo, .injection),
    Row(.entryExceptionErrorCode, .injection),
    Row(.entryInstructionLength, .injection),
  ]

  static let exitInformation: [Row] = [
    Row(.vmInstructionError, []),
    Row(.exitReason, .reason),
    Row(.exitQualification, .qualification),
    Row(.guestLinearAddress, .guestLinear),
    Row(.guestPhysicalAddress, .guestPhysical),
    Row(.exitInterruptionInfo, .interruptionInfo),
    Row(.exitInterruptionErrorCode, .interruptionErrorCode),
    Row(.idtVectoringInfo, .idtVectoringInfo),
    Row(.idtVectoringErrorCode, .idtVectoringErrorCode),
    Row(.exitInstructionLength, .instructionLength),
    Row(.exitInstructionInfo, .instructionInfo),
    Row(.ioRCX, .io),
    Row(.ioRSI, .io),
    Row(.ioRDI, .io),
    Row(.ioRIP, .io),
  ]

  private static func pdpte(_ n: Int) -> Int {
    (MemoryLayout<CPUState>.offset(of: \.pdptrs) ?? 0) + n * 8
  }

  /// Selector, base, limit and access rights, whose encodings are in steps of 2 from ES's.
  private static func segmentRows(_ register: SegmentRegister) -> [Row] {
    let n = UInt32(register.rawValue) * 2
    let start = CPU.segmentsOffset + Int(register.rawValue) * MemoryLayout<SegmentState>.stride
    func row(
      _ first: VMCSField, _ kind: FieldKind, _ path: PartialKeyPath<SegmentState>
    ) -> Row {
      let offset = MemoryLayout<SegmentState>.offset(of: path) ?? 0
      return Row(
        VMCSField(rawValue: first.rawValue + n), .segments, kind, offset: start + offset)
    }
    return [
      row(.guestESSelector, .state2, \.selector),
      row(.guestESBase, .state8, \.base),
      row(.guestESLimit, .state4, \.limit),
      row(.guestESAccessRights, .state4, \.accessRights),
    ]
  }
}
