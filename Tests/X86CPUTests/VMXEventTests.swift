// SPDX-License-Identifier: Apache-2.0
//
// Guests that run by VM entries: exits of VMX instructions, event injection, windows, timer,
// monitor trap flag, activity states, MSR areas.

import Support
import Testing
import X86
import X86CPU

@Suite struct VMXEventTests {
  let m: VMXMachine
  var p: PhysicalCPU { m.processor }

  static let handler = 0x1100

  /// A 64-bit guest with a GDT at 0x2000 and an IDT at 0x3000 whose gates lead to a HLT.
  init() throws {
    m = try VMXMachine()
    m.test.store(UInt64(0x00AF_9B00_0000_FFFF), at: 0x2008)
    m.test.store(UInt64(0x00CF_9300_0000_FFFF), at: 0x2010)
    for vector in 0..<256 {
      m.test.store(UInt64(0x8E00_0008_0000 | Self.handler), at: 0x3000 + vector * 16)
    }
    m.test.load([0xF4], at: Self.handler)
    p.vmwrite(.guestIDTRBase, 0x3000)
    p.vmwrite(.guestIDTRLimit, 0xFFF)
  }

  private func inject(
    _ type: InterruptionInfo.EventType, _ vector: UInt8, code: UInt32? = nil, length: UInt64 = 0
  ) {
    let info = InterruptionInfo(type, vector: vector, hasErrorCode: code != nil)
    p.vmwrite(.entryInterruptionInfo, UInt64(info.rawValue))
    p.vmwrite(.entryExceptionErrorCode, UInt64(code ?? 0))
    p.vmwrite(.entryInstructionLength, length)
  }

  // MARK: Instructions

  @Test func vmcallExitsAndTheGuestGoesOn() throws {
    m.test.load([0x0F, 0x01, 0xC1, 0xF4], at: 0x1000)
    #expect(try p.vmlaunch() == .vmcall)
    #expect(p.vmread(.guestRIP) == 0x1000)
    #expect(p.vmread(.exitInstructionLength) == 3)
    p.vmwrite(.guestRIP, 0x1003)
    #expect(try p.vmresume() == .hlt)
    #expect(p.vmread(.guestRIP) == 0x1003)
    #expect(p.vmread(.guestActivityState) == 0)
  }

  typealias InstructionRow = (
    bytes: [UInt8], reason: ExitReason, qualification: UInt64, info: UInt64
  )
  static let instructions: [InstructionRow] =
    [
      ([0x0F, 0x78, 0xD8], .vmread, 0, 3 << 28 | 1 << 10),
      ([0x0F, 0x79, 0xD8], .vmwrite, 0, 3 << 28 | 1 << 10),
      ([0x0F, 0xC7, 0x70, 0x08], .vmptrld, 8, 2 << 7 | 3 << 15 | 1 << 22),
      (
        [0x66, 0x0F, 0xC7, 0x74, 0x8B, 0xF0], .vmclear, ~15,
        2 | 2 << 7 | 3 << 15 | 1 << 18 | 3 << 23
      ),
      ([0xF3, 0x0F, 0xC7, 0x30], .vmxon, 0, 2 << 7 | 3 << 15 | 1 << 22),
      ([0x0F, 0xC7, 0x38], .vmptrst, 0, 2 << 7 | 3 << 15 | 1 << 22),
      ([0x66, 0x0F, 0x38, 0x80, 0x10], .invept, 0, 2 << 28 | 2 << 7 | 3 << 15 | 1 << 22),
      ([0x66, 0x0F, 0x38, 0x81, 0x10], .invvpid, 0, 2 << 28 | 2 << 7 | 3 << 15 | 1 << 22),
      ([0x0F, 0x01, 0xC2], .vmlaunch, 0, 0),
      ([0x0F, 0x01, 0xC3], .vmresume, 0, 0),
      ([0x0F, 0x01, 0xC4], .vmxoff, 0, 0),
    ]

  @Test(arguments: 0..<instructions.count) func vmxInstructionExits(_ n: Int) throws {
    let row = Self.instructions[n]
    m.test.load(row.bytes, at: 0x1000)
    #expect(try p.vmlaunch() == row.reason)
    #expect(p.vmread(.exitQualification) == row.qualification)
    #expect(p.vmread(.exitInstructionInfo) == row.info)
    #expect(p.vmread(.exitInstructionLength) == UInt64(row.bytes.count))
  }

  @Test(arguments: [[0x0F, 0x01, 0xD4], [0x0F, 0x37], [0x0F, 0x01, 0xD8], [0x0F, 0x01, 0xD9]])
  func whatIsNotOfferedIsUndefined(_ bytes: [UInt8]) throws {
    m.test.load(bytes, at: 0x1000)
    p.vmwrite(.exceptionBitmap, 1 << 6)
    #expect(try p.vmlaunch() == .exceptionOrNMI)
    #expect(p.vmread(.exitInterruptionInfo) == 0x8000_0306)
  }

  // MARK: Injection

  @Test func anInterruptIsInjected() throws {
    p.vmwrite(.guestRFLAGS, 0x202)
    inject(.externalInterrupt, 0x20)
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
    #expect(p.vmread(.guestRSP) == 0x8000 - 40)
    #expect(m.test.read(0x8000 - 40, as: UInt64.self) == 0x1000)
    #expect(m.test.read(0x8000 - 24, as: UInt64.self) == 0x202)
    #expect(p.vmread(.guestRFLAGS) == 2)
    #expect(p.vmread(.entryInterruptionInfo) == 0x20)
  }

  @Test func aSoftwareInterruptReturnsBehindItsInstruction() throws {
    inject(.softwareInterrupt, 0x80, length: 2)
    m.test.store(UInt64(0xEE00_0008_0000 | Self.handler), at: 0x3000 + 0x80 * 16)
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.test.read(0x8000 - 40, as: UInt64.self) == 0x1002)
  }

  @Test func anErrorCodeIsPushed() throws {
    inject(.hardwareException, 13, code: 0x1234)
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.test.read(0x8000 - 48, as: UInt64.self) == 0x1234)
  }

  @Test func anNMIBlocksNMIs() throws {
    inject(.nmi, 2)
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestInterruptibility) == UInt64(Interruptibility.blockingByNMI))
  }

  @Test func anExitDuringInjectionSaysWhatWasInjected() throws {
    p.vmwrite(.guestRFLAGS, 0x202)
    p.vmwrite(.guestIDTRLimit, 0xFF)
    p.vmwrite(.exceptionBitmap, 1 << 13)
    inject(.externalInterrupt, 0x20)
    #expect(try p.vmlaunch() == .exceptionOrNMI)
    #expect(p.vmread(.exitInterruptionInfo) == 0x8000_0B0D)
    #expect(p.vmread(.exitInterruptionErrorCode) == 0x20 * 8 + 3)
    #expect(p.vmread(.idtVectoringInfo) == 0x8000_0020)
    #expect(p.vmread(.guestRIP) == 0x1000)
    #expect(p.vmread(.entryInterruptionInfo) == 0x20)
  }

  @Test func injectionWithoutAnIDTIsATripleFault() throws {
    p.vmwrite(.guestIDTRLimit, 0)
    inject(.hardwareException, 6)
    #expect(try p.vmlaunch() == .tripleFault)
  }

  @Test func aPendingDebugExceptionComesFirst() throws {
    p.vmwrite(.guestPendingDebugExceptions, PendingDebug.singleStep)
    p.vmwrite(.exceptionBitmap, 1 << 1)
    #expect(try p.vmlaunch() == .exceptionOrNMI)
    #expect(p.vmread(.exitQualification) == 1 << 14)
    #expect(p.vmread(.exitInterruptionInfo) == 0x8000_0301)
    #expect(p.vmread(.guestRIP) == 0x1000)
  }

  // MARK: Windows, timer, monitor trap flag

  private func setPrimary(_ bits: UInt32) {
    p.vmwrite(.primaryControls, p.vmread(.primaryControls) | UInt64(bits))
  }

  @Test func theInterruptWindowOpensAfterTheShadowOfSTI() throws {
    m.test.load([0xFB, 0x90, 0xF4], at: 0x1000)
    setPrimary(PrimaryControls.interruptWindowExiting)
    #expect(try p.vmlaunch() == .interruptWindow)
    #expect(p.vmread(.guestRIP) == 0x1002)
    #expect(p.vmread(.guestInterruptibility) == 0)
  }

  @Test func theNMIWindowWaitsForIRET() throws {
    // iretq with a frame that leads to hlt at 0x1002
    m.test.load([0x48, 0xCF, 0xF4], at: 0x1000)
    for (n, value) in [UInt64(0x1002), 8, 2, 0x8000, 0x10].enumerated() {
      m.test.store(value, at: 0x7000 + n * 8)
    }
    p.vmwrite(.guestRSP, 0x7000)
    p.vmwrite(.guestInterruptibility, UInt64(Interruptibility.blockingByNMI))
    setPrimary(PrimaryControls.nmiWindowExiting)
    #expect(try p.vmlaunch() == .nmiWindow)
    #expect(p.vmread(.guestRIP) == 0x1002)
    #expect(p.vmread(.guestInterruptibility) == 0)
  }

  @Test func theMonitorTrapFlagStopsAfterEachInstruction() throws {
    m.test.load([0x90, 0x90, 0xF4], at: 0x1000)
    setPrimary(PrimaryControls.monitorTrapFlag)
    #expect(try p.vmlaunch() == .monitorTrapFlag)
    #expect(p.vmread(.guestRIP) == 0x1001)
    #expect(try p.vmresume() == .monitorTrapFlag)
    #expect(p.vmread(.guestRIP) == 0x1002)
    inject(.hardwareException, 6)
    #expect(try p.vmresume() == .monitorTrapFlag)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
    inject(.otherEvent, 0)
    #expect(try p.vmresume() == .monitorTrapFlag)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
  }

  @Test func theTimerRunsOut() throws {
    m.test.load([0xF4], at: 0x1000)
    p.vmwrite(
      .pinBasedControls, p.vmread(.pinBasedControls) | UInt64(PinControls.preemptionTimer))
    p.vmwrite(.preemptionTimerValue, 0)
    #expect(try p.vmlaunch() == .preemptionTimer)
    #expect(p.vmread(.guestRIP) == 0x1000)
    p.vmwrite(.exitControls, p.vmread(.exitControls) | UInt64(ExitControls.savePreemptionTimer))
    p.vmwrite(.preemptionTimerValue, 0xFFFF_FFFF)
    #expect(try p.vmresume() == .hlt)
    let left = p.vmread(.preemptionTimerValue)
    #expect(left < 0xFFFF_FFFF && left > 0x1000_0000)
  }

  /// A loop that nobody looks at, in the interpreter and in translated code.
  @Test(arguments: [nil, 1] as [UInt32?]) func theTimerEndsALoop(_ threshold: UInt32?) throws {
    let m = try VMXMachine(threshold: threshold)
    let p = m.processor
    m.test.load([0x48, 0xFF, 0xC0, 0xEB, 0xFB], at: 0x1000)  // inc rax; jmp
    p.vmwrite(
      .pinBasedControls, p.vmread(.pinBasedControls) | UInt64(PinControls.preemptionTimer))
    p.vmwrite(.preemptionTimerValue, 100_000)  // of 32 ticks: a millisecond or two
    let start = HostTSC.read()
    #expect(try p.vmlaunch() == .preemptionTimer)
    // Without somebody who wakes it the loop would not end.
    #expect(HostTSC.read() &- start >= 3_200_000)
  }

  // MARK: Activity

  @Test func aHaltedGuestWaitsForAKickOrAnInterrupt() throws {
    p.vmwrite(.guestActivityState, UInt64(ActivityState.hlt))
    p.kick()
    #expect(try p.vmlaunch() == .externalInterrupt)
    #expect(p.vmread(.guestActivityState) == UInt64(ActivityState.hlt))
    #expect(p.vmread(.guestRIP) == 0x1000)
    p.vmwrite(.guestRFLAGS, 0x202)
    inject(.externalInterrupt, 0x20)
    #expect(try p.vmresume() == .hlt)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
    #expect(p.vmread(.guestActivityState) == UInt64(ActivityState.active))
  }

  // MARK: Registers that entry and exit move

  @Test func switchedRegistersAreLoadedAndSaved() throws {
    m.test.load([0xF4], at: 0x1000)
    p.vmwrite(.guestPAT, 0x0606_0606_0606_0606)
    p.vmwrite(.guestDR7, 0x401)
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.cpu.s.pointee.pat == 0x0606_0606_0606_0606)
    #expect(m.cpu.s.pointee.dr7 == 0x401)
    m.cpu.s.pointee.pat = 0x0007_0406_0007_0406
    #expect(try p.vmresume() == .hlt)
    #expect(m.cpu.s.pointee.pat == 0x0606_0606_0606_0606)
    // Without the control, root's PAT is the guest's.
    p.vmwrite(.entryControls, p.vmread(.entryControls) & ~UInt64(EntryControls.loadPAT))
    #expect(try p.vmresume() == .hlt)
    #expect(m.cpu.s.pointee.pat == 0x0007_0406_0007_0406)
    #expect(p.vmread(.guestPAT) == 0x0007_0406_0007_0406)
  }

  @Test func msrAreasAreLoadedAndStored() throws {
    m.test.load([0xF4], at: 0x1000)
    let load = m.makePage()
    let store = m.makePage()
    func set(_ page: HostPage, _ n: Int, _ msr: MSR, _ value: UInt64) {
      page.base.storeBytes(of: UInt64(msr.rawValue), toByteOffset: n * 16, as: UInt64.self)
      page.base.storeBytes(of: value, toByteOffset: n * 16 + 8, as: UInt64.self)
    }
    set(load, 0, .star, 0x1234_5678_0000_0000)
    set(load, 1, .kernelGSBase, 0x7FFF_0000)
    set(store, 0, .star, 0)
    p.vmwrite(.entryMSRLoadAddress, load.address)
    p.vmwrite(.entryMSRLoadCount, 2)
    p.vmwrite(.exitMSRStoreAddress, store.address)
    p.vmwrite(.exitMSRStoreCount, 1)
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.cpu.s.pointee.kernelGSBase == 0x7FFF_0000)
    #expect(store.base.load(fromByteOffset: 8, as: UInt64.self) == 0x1234_5678_0000_0000)
    set(load, 1, .fsBase, 0)
    #expect(try p.vmresume() == .msrLoading)
    #expect(p.vmread(.exitReason) == 0x8000_0022)
    #expect(p.vmread(.exitQualification) == 2)
    set(load, 1, .kernelGSBase, 1 << 60)
    #expect(try p.vmresume() == .msrLoading)
    set(store, 0, .gsBase, 0)
    set(load, 1, .kernelGSBase, 0)
    #expect(throws: VMXError.abort(.savingGuestMSRs)) { try p.vmresume() }
    #expect(!p.isInVMXOperation)
    #expect(m.vmcs.base.load(fromByteOffset: 4, as: UInt32.self) == 1)
  }

  // MARK: Traps before interrupts

  /// POPF sets IF; the trace trap behind it comes before an interrupt that it lets in, and has a
  /// data breakpoint's bit too.
  @Test(arguments: [false, true]) func traceTrapComesFirst(_ hasBreakpoint: Bool) throws {
    m.test.load([0x9D, 0x90, 0xF4], at: 0x1000)  // popf; nop; hlt
    m.test.store(UInt64(0x302), at: 0x8000)
    p.vmwrite(.guestRFLAGS, 0x102)
    p.vmwrite(.exceptionBitmap, 1 << 1)
    p.vmwrite(
      .primaryControls,
      p.vmread(.primaryControls) | UInt64(PrimaryControls.interruptWindowExiting))
    if hasBreakpoint {
      m.cpu.s.pointee.dr[0] = 0x8000
      p.vmwrite(.guestDR7, 0x400 | 1 | 3 << 16 | 2 << 18)
    }
    #expect(try p.vmlaunch() == .exceptionOrNMI)
    #expect(p.vmread(.exitQualification) == (hasBreakpoint ? 1 << 14 | 1 : 1 << 14))
    #expect(p.vmread(.guestRIP) == 0x1001)
    #expect(try p.vmresume() == .interruptWindow)
    #expect(p.vmread(.guestRIP) == 0x1001)
  }
}
