// SPDX-License-Identifier: Apache-2.0
//
// One small guest for each exit reason of VT-x and each exit code of SVM: its code, and what of a
// valid control structure has to be changed so that it exits. `ExitCoverageTests` runs them.

import Support
import X86
import X86CPU

/// A guest that ends in one exit.
struct ExitGuest<Machine, Exit: Sendable>: Sendable {
  var exit: Exit
  var name: String
  var code: [UInt8]
  var prepare: @Sendable (Machine) -> Void
}

typealias VMXGuest = ExitGuest<VMXMachine, ExitReason>
typealias SVMGuest = ExitGuest<SVMMachine, SVMExitCode>

// MARK: VT-x

extension ExitGuest<VMXMachine, ExitReason> {
  /// - Parameters:
  ///   - exit: how it ends.
  ///   - code: the guest's code at 0x1000.
  ///   - changes: set bits of fields.
  ///   - prepare: what else is to be done.
  init(
    _ exit: ExitReason, _ code: [UInt8], _ changes: [(VMCSField, UInt32)] = [],
    prepare: @escaping @Sendable (VMXMachine) -> Void = { _ in }
  ) {
    self.init(
      exit: exit, name: exit.name, code: code,
      prepare: { m in
        for (field, bits) in changes {
          m.processor.vmwrite(field, m.processor.vmread(field) | UInt64(bits))
        }
        prepare(m)
      })
  }

  /// A page of the guest's at 6 MiB leads to 16 MiB, where the nested tables have nothing.
  @Sendable private static func mapNothing(_ m: VMXMachine) {
    m.test.store(0x100_0087 as UInt64, at: 0x12000 + 3 * 8)
  }

  /// 32-bit protected mode without paging, and an available TSS at selector 0x28.
  @Sendable private static func makeTasks(_ m: VMXMachine) {
    VMXEntryCheckTests.makePAE(m.processor)
    m.processor.vmwrite(.guestCR0, CR0([.pe, .ne, .et]).rawValue)
    m.test.store(0x0000_8900_3000_0067 as UInt64, at: 0x2000 + 0x28)
  }

  private static let moveFrom6MiB: [UInt8] = [0x8A, 0x04, 0x25, 0x34, 0x12, 0x60, 0x00]
  private static let moveFrom4MiB: [UInt8] = [0x8A, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00]

  static let all: [VMXGuest] =
    [
      .init(.exceptionOrNMI, [0x0F, 0x0B], [(.exceptionBitmap, 1 << 6)]),
      .init(.externalInterrupt, [0xEB, 0xFE]) { $0.processor.kick() },
      .init(.tripleFault, [0x0F, 0x0B]) { $0.processor.vmwrite(.guestIDTRLimit, 0) },
      .init(
        .interruptWindow, [0xEB, 0xFE],
        [
          (.primaryControls, PrimaryControls.interruptWindowExiting),
          (.guestRFLAGS, UInt32(truncatingIfNeeded: RFLAGS.if.rawValue)),
        ]),
      .init(.nmiWindow, [0xEB, 0xFE], [(.primaryControls, PrimaryControls.nmiWindowExiting)]),
      .init(.taskSwitch, [0xEA, 0, 0, 0, 0, 0x28, 0], prepare: makeTasks),
      .init(.cpuid, [0x0F, 0xA2]),
      .init(.hlt, [0xF4]),
      .init(.invd, [0x0F, 0x08]),
      .init(
        .invlpg, [0x0F, 0x01, 0x38], [(.primaryControls, PrimaryControls.invlpgExiting)]),
      .init(.rdpmc, [0x0F, 0x33], [(.primaryControls, PrimaryControls.rdpmcExiting)]),
      .init(.rdtsc, [0x0F, 0x31], [(.primaryControls, PrimaryControls.rdtscExiting)]),
      .init(.vmcall, [0x0F, 0x01, 0xC1]),
      .init(.vmclear, [0x66, 0x0F, 0xC7, 0x30]),
      .init(.vmlaunch, [0x0F, 0x01, 0xC2]),
      .init(.vmptrld, [0x0F, 0xC7, 0x30]),
      .init(.vmptrst, [0x0F, 0xC7, 0x38]),
      .init(.vmread, [0x0F, 0x78, 0xD8]),
      .init(.vmresume, [0x0F, 0x01, 0xC3]),
      .init(.vmwrite, [0x0F, 0x79, 0xD8]),
      .init(.vmxoff, [0x0F, 0x01, 0xC4]),
      .init(.vmxon, [0xF3, 0x0F, 0xC7, 0x30]),
      .init(
        .controlRegisterAccess, [0x0F, 0x22, 0xD8],
        [(.primaryControls, PrimaryControls.cr3LoadExiting)]),
      .init(
        .debugRegisterAccess, [0x0F, 0x23, 0xC1],
        [(.primaryControls, PrimaryControls.movDRExiting)]),
      .init(.ioInstruction, [0xE6, 0x80]),
      .init(.rdmsr, [0x0F, 0x32]),
      .init(.wrmsr, [0x0F, 0x30]),
      .init(.invalidGuestState, [0xF4]) { $0.processor.vmwrite(.guestRFLAGS, 0) },
      .init(.msrLoading, [0xF4]) { m in
        m.processor.vmwrite(.entryMSRLoadAddress, m.makePage().address)
        m.processor.vmwrite(.entryMSRLoadCount, 1)
      },
      .init(.mwait, [0x0F, 0x01, 0xC9], [(.primaryControls, PrimaryControls.mwaitExiting)]),
      .init(
        .monitorTrapFlag, [0x90, 0x90], [(.primaryControls, PrimaryControls.monitorTrapFlag)]),
      .init(.monitor, [0x0F, 0x01, 0xC8], [(.primaryControls, PrimaryControls.monitorExiting)]),
      .init(.pause, [0xF3, 0x90], [(.primaryControls, PrimaryControls.pauseExiting)]),
      .init(
        .gdtrOrIDTRAccess, [0x0F, 0x01, 0x00],
        [(.secondaryControls, SecondaryControls.descriptorTableExiting)]),
      .init(
        .ldtrOrTRAccess, [0x0F, 0x00, 0xC0],
        [(.secondaryControls, SecondaryControls.descriptorTableExiting)]),
      .init(.eptViolation, moveFrom6MiB, prepare: mapNothing),
      .init(.eptMisconfiguration, moveFrom4MiB) { $0.test.setRights(2, ofLargePage: 2) },
      .init(.invept, [0x66, 0x0F, 0x38, 0x80, 0x10]),
      .init(
        .rdtscp, [0x0F, 0x01, 0xF9],
        [
          (.primaryControls, PrimaryControls.rdtscExiting),
          (.secondaryControls, SecondaryControls.enableRDTSCP),
        ]),
      .init(
        .preemptionTimer, [0xEB, 0xFE], [(.pinBasedControls, PinControls.preemptionTimer)]
      ) { $0.processor.vmwrite(.preemptionTimerValue, 0) },
      .init(.invvpid, [0x66, 0x0F, 0x38, 0x81, 0x10]),
      .init(
        .wbinvd, [0x0F, 0x09], [(.secondaryControls, SecondaryControls.wbinvdExiting)]),
      .init(
        .xsetbv, [0x0F, 0x01, 0xD1],
        [(.guestCR4, UInt32(truncatingIfNeeded: CR4.osxsave.rawValue))]),
      .init(
        .rdrand, [0x0F, 0xC7, 0xF0], [(.secondaryControls, SecondaryControls.rdrandExiting)]),
      .init(
        .invpcid, [0x66, 0x0F, 0x38, 0x82, 0x00],
        [
          (.primaryControls, PrimaryControls.invlpgExiting),
          (.secondaryControls, SecondaryControls.enableINVPCID),
        ]),
      .init(
        .rdseed, [0x0F, 0xC7, 0xF8], [(.secondaryControls, SecondaryControls.rdseedExiting)]),
      .init(.initSignal, [0xEB, 0xFE]) { $0.processor.raiseINIT() },
      .init(.startupIPI, [0xEB, 0xFE]) { m in
        m.processor.vmwrite(.guestActivityState, UInt64(ActivityState.waitForSIPI))
        m.processor.startUp(0x12)
      },
      .init(
        .vmfunc, [0x0F, 0x01, 0xD4],
        [(.secondaryControls, SecondaryControls.enableVMFunctions)]),
      .init(.pmlFull, [0xF4], [(.secondaryControls, SecondaryControls.enablePML)]) { m in
        m.processor.vmwrite(
          .eptPointer, m.processor.vmread(.eptPointer) | EPTPointer.accessedDirty)
        m.processor.vmwrite(.pmlAddress, m.makePage().address)
        m.processor.vmwrite(.pmlIndex, 0xFFFF)
      },
    ] + virtualAPIC

  /// Guests with a virtual APIC, whose access page is at 2 MiB.
  private static let virtualAPIC: [VMXGuest] = [
    // MOV CR8 of a priority below the threshold.
    .init(.tprBelowThreshold, [0x44, 0x0F, 0x22, 0xC0]) { m in
      useVirtualAPIC(m, 0).store(0x80 as UInt32, at: 0x80)
      m.processor.vmwrite(.tprThreshold, 5)
      m.cpu.gpr[0] = 4
    },
    .init(.apicAccess, [0x8B, 0x04, 0x25, 0x30, 0x00, 0x20, 0x00]) { m in
      _ = useVirtualAPIC(m, SecondaryControls.virtualizeAPICAccesses)
    },
    .init(.apicWrite, [0x89, 0x04, 0x25, 0xF0, 0x00, 0x20, 0x00]) { m in
      _ = useVirtualAPIC(
        m,
        SecondaryControls.virtualizeAPICAccesses | SecondaryControls.apicRegisterVirtualization)
    },
    .init(.virtualizedEOI, [0x89, 0x04, 0x25, 0xB0, 0x00, 0x20, 0x00]) { m in
      useVirtualAPIC(
        m, SecondaryControls.virtualizeAPICAccesses | SecondaryControls.virtualInterruptDelivery
      ).store(1 << 0x11 as UInt32, at: 0x120)
      m.processor.vmwrite(.guestInterruptStatus, 0x5100)
      m.processor.vmwrite(.eoiExitBitmap1, 1 << 0x11)
    },
  ]

  private static func useVirtualAPIC(_ m: VMXMachine, _ secondary: UInt32) -> HostPage {
    let page = m.makePage()
    page.store(0 as UInt32, at: 0)
    let p = m.processor
    p.vmwrite(.virtualAPICAddress, page.address)
    p.vmwrite(.apicAccessAddress, UInt64(UInt(bitPattern: m.test.memory)) + 0x20_0000)
    p.vmwrite(
      .primaryControls, p.vmread(.primaryControls) | UInt64(PrimaryControls.useTPRShadow))
    p.vmwrite(.secondaryControls, p.vmread(.secondaryControls) | UInt64(secondary))
    return page
  }
}

extension HostPage {
  fileprivate func store(_ value: UInt32, at offset: Int) {
    base.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
  }
}

// MARK: SVM

extension ExitGuest<SVMMachine, SVMExitCode> {
  init(
    _ exit: SVMExitCode, _ code: [UInt8], _ intercept: SVMIntercepts = [],
    prepare: @escaping @Sendable (SVMMachine) -> Void = { _ in }
  ) {
    self.init(
      exit: exit, name: exit.name, code: code,
      prepare: { m in
        m.intercept(intercept)
        prepare(m)
      })
  }

  /// MOV RAX, CRn and back, MOV RAX, DRn and back. Registers that exist, and are not reserved.
  private static let registers: [SVMGuest] =
    [UInt8(0), 2, 3, 4, 8].flatMap { n -> [SVMGuest] in
      let prefix: [UInt8] = n >= 8 ? [0x44] : []
      let modRM = 0xC0 | (n & 7) << 3
      return [
        .init(.readCR(n), prefix + [0x0F, 0x20, modRM]) {
          $0.vmcb[.controlRegisterIntercepts] = 1 << UInt64(n)
        },
        .init(.writeCR(n), prefix + [0x0F, 0x22, modRM]) {
          $0.vmcb[.controlRegisterIntercepts] = 1 << (16 + UInt64(n))
          $0.vmcb[.rax] = n == 0 ? $0.vmcb[.cr0] : n == 4 ? $0.vmcb[.cr4] : 0
        },
      ]
    }
    + [UInt8(0), 1, 2, 3, 6, 7].flatMap { n -> [SVMGuest] in
      let modRM = 0xC0 | n << 3
      return [
        .init(.readDR(n), [0x0F, 0x21, modRM]) {
          $0.vmcb[.debugRegisterIntercepts] = 1 << UInt64(n)
        },
        .init(.writeDR(n), [0x0F, 0x23, modRM]) {
          $0.vmcb[.debugRegisterIntercepts] = 1 << (16 + UInt64(n))
          $0.vmcb[.rax] = 0
        },
      ]
    }

  /// An exception, intercepted.
  private static func exception(
    _ vector: UInt8, _ code: [UInt8], _ prepare: @escaping @Sendable (SVMMachine) -> Void = { _ in }
  ) -> SVMGuest {
    SVMGuest(.exception(vector), code) { m in
      m.vmcb[.exceptionIntercepts] = 1 << UInt64(vector)
      prepare(m)
    }
  }

  private static let exceptions: [SVMGuest] = [
    exception(0, [0x31, 0xC9, 0xF7, 0xF1]),  // DIV by 0
    exception(1, [0x90, 0x90]) { $0.vmcb[.rflags] |= RFLAGS.tf.rawValue },
    exception(3, [0xCC]),
    exception(6, [0x0F, 0x0B]),
    exception(7, [0x0F, 0x77]) { $0.vmcb[.cr0] |= CR0.ts.rawValue },  // EMMS
    exception(8, [0x0F, 0x0B]) { $0.vmcb[.idtrLimit] = 0 },
    exception(11, [0x8E, 0xD8]) { m in  // MOV DS, AX: a segment that is not present
      m.test.store(0x00CF_1300_0000_FFFF as UInt64, at: Int(m.vmcb[.gdtrBase]) + 0x28)
      m.vmcb[.rax] = 0x28
    },
    exception(12, [0x48, 0x8B, 0x45, 0x00]) { $0.cpu.gpr[5] = 1 << 60 },  // MOV RAX, [RBP]
    exception(13, [0x8E, 0xD8]) { $0.vmcb[.rax] = 0xFFF8 },
    exception(14, [0x8A, 0x04, 0x25, 0x34, 0x12, 0x00, 0x40]),
  ]

  private static let maps: [SVMGuest] = [
    .init(.port, [0xE6, 0x80], .ports) {
      $0.portMap.storeBytes(of: 1, toByteOffset: 0x80 / 8, as: UInt8.self)
    },
    .init(.msr, [0x0F, 0x32], .msrs) { $0.cpu.gpr[1] = 0x4B56_4D00 },
  ]

  private static let events: [SVMGuest] = [
    .init(.nmi, [0xEB, 0xFE], .nmi) { $0.processor.raiseNMI() },
    .init(.initSignal, [0xEB, 0xFE], .initSignal) { $0.processor.raiseINIT() },
    .init(.interrupt, [0xEB, 0xFE], .interrupt) { $0.processor.kick() },
    .init(.virtualInterrupt, [0xEB, 0xFE], .virtualInterrupt) { m in
      m.vmcb[.virtualInterrupt] =
        VirtualInterrupt.pendingBit | VirtualInterrupt.ignoresTPRBit
        | VirtualInterrupt.maskingBit
      m.vmcb[.rflags] |= RFLAGS.if.rawValue
    },
    .init(.selectiveCR0Write, [0x0F, 0x22, 0xC0], .selectiveCR0Write) {
      $0.vmcb[.rax] = $0.vmcb[.cr0] | CR0.am.rawValue
    },
    .init(.softwareInterrupt, [0xCD, 0x80], .softwareInterrupt),
    .init(.invlpg, [0x0F, 0x01, 0x38], .invlpg),
    .init(.rsm, [0x0F, 0xAA], .rsm),
    .init(.armedMWAIT, [0x0F, 0x01, 0xC8, 0x0F, 0x01, 0xC9], .armedMWAIT) {
      $0.vmcb[.rax] = 0x4000
      for register in 1...2 { $0.cpu.gpr[register] = 0 }
    },
    .init(.xsetbv, [0x0F, 0x01, 0xD1], .xsetbv) { m in
      m.vmcb[.cr4] |= CR4.osxsave.rawValue
      m.vmcb[.rax] = 1
      for register in 1...2 { m.cpu.gpr[register] = 0 }
    },
    .init(.invpcid, [0x66, 0x0F, 0x38, 0x82, 0x00]) {
      $0.vmcb[.intercepts5] = UInt64(SVMIntercept5.invpcid)
    },
    .init(.shutdown, [0x0F, 0x0B], .shutdown) { $0.vmcb[.idtrLimit] = 0 },
    .init(.taskSwitch, [0xEA, 0, 0, 0, 0, 0x28, 0], .taskSwitch) { m in
      m.vmcb[.efer] = EFER.svme.rawValue
      m.vmcb[.cr0] = CR0([.pe, .et]).rawValue
      m.vmcb[.attributes(of: .cs)] = 0xC9B
      m.test.store(0x0000_8900_3000_0067 as UInt64, at: Int(m.vmcb[.gdtrBase]) + 0x28)
    },
    .init(.nestedPageFault, [0x8A, 0x04, 0x25, 0x34, 0x12, 0x60, 0x00]) {
      $0.test.store(0x100_0087 as UInt64, at: 0x12000 + 3 * 8)
    },
    .init(.invalid, [0xF4]) { $0.vmcb[.asid] = 0 },
  ]

  static let all: [SVMGuest] =
    registers + exceptions + events + maps
    + SVMExitTests.simple.map { SVMGuest($0.code, $0.bytes, $0.intercept) }
}
