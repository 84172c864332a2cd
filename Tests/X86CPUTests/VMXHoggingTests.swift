// SPDX-License-Identifier: Apache-2.0
//
// VM exits for bus locks and for chains of faults without an event window.

import Support
import Testing
import X86
import X86CPU

#if canImport(Glibc)
  import Glibc
#endif

@Suite struct VMXHoggingTests {
  let m: VMXMachine
  var p: PhysicalCPU { m.processor }

  init() throws { m = try VMXMachine() }

  private func detectBusLocks() {
    p.vmwrite(
      .secondaryControls,
      p.vmread(.secondaryControls) | UInt64(SecondaryControls.busLockDetection))
  }

  struct Row: Sendable, CustomTestStringConvertible {
    var testDescription: String
    var bytes: [UInt8]
    var address: UInt64
    var locks: Bool
  }

  /// With RBX as the address, RCX 0x101 bits or a number.
  static let rows: [Row] = [
    Row(
      testDescription: "lock inc dword", bytes: [0xF0, 0xFF, 0x03], address: 0x503D, locks: true),
    Row(testDescription: "in a line", bytes: [0xF0, 0xFF, 0x03], address: 0x5039, locks: false),
    Row(testDescription: "aligned", bytes: [0xF0, 0xFF, 0x03], address: 0x503C, locks: false),
    Row(testDescription: "inc without LOCK", bytes: [0xFF, 0x03], address: 0x503D, locks: false),
    Row(testDescription: "xchg", bytes: [0x48, 0x87, 0x03], address: 0x5039, locks: true),
    Row(
      testDescription: "xadd", bytes: [0xF0, 0x66, 0x0F, 0xC1, 0x03], address: 0x503F, locks: true),
    Row(
      testDescription: "cmpxchg8b", bytes: [0xF0, 0x0F, 0xC7, 0x0B], address: 0x503A, locks: true),
    Row(
      testDescription: "across pages", bytes: [0xF0, 0xFF, 0x03], address: 0x5FFE, locks: true),
    // The string's bit 0x101 is 0x20 bytes on.
    Row(
      testDescription: "bts", bytes: [0xF0, 0x48, 0x0F, 0xAB, 0x0B], address: 0x501C, locks: true),
    Row(
      testDescription: "bts elsewhere", bytes: [0xF0, 0x48, 0x0F, 0xAB, 0x0B], address: 0x503C,
      locks: false),
  ]

  @Test(arguments: rows) func busLock(_ row: Row) throws {
    for isOn in [false, true] {
      if isOn { detectBusLocks() }
      m.test.load(row.bytes + [0xF4], at: 0x1000)
      m.cpu.gpr[1] = 0x101
      m.cpu.gpr[3] = row.address
      p.vmwrite(.guestRIP, 0x1000)
      let end = 0x1000 + UInt64(row.bytes.count)
      if isOn && row.locks {
        #expect(try p.vmresume() == .busLock)
        #expect(p.vmread(.exitReason) == 74 | 1 << 26)
        #expect(p.vmread(.guestRIP) == end)
      }
      #expect(try (isOn ? p.vmresume() : p.vmlaunch()) == .hlt)
      #expect(p.vmread(.guestRIP) == end)
      #expect(p.vmread(.exitReason) == 12)
    }
  }

  @Test func aTraceTrapIsPending() throws {
    detectBusLocks()
    m.test.load([0xF0, 0xFF, 0x03, 0xF4], at: 0x1000)
    m.cpu.gpr[3] = 0x503D
    p.vmwrite(.guestRFLAGS, 0x102)
    #expect(try p.vmlaunch() == .busLock)
    #expect(p.vmread(.guestPendingDebugExceptions) & 1 << 14 != 0)
    #expect(p.vmread(.guestRIP) == 0x1003)
  }

  /// While instructions are counted, too.
  @Test func aBusLockIsCounted() throws {
    detectBusLocks()
    m.test.load([0x90, 0xF0, 0xFF, 0x03, 0x90, 0xF4], at: 0x1000)
    m.cpu.gpr[3] = 0x503D
    p.startCounting(instructions: true, EventLimits())
    #expect(try p.vmlaunch() == .busLock)
    #expect(p.vmread(.guestRIP) == 0x1004)
    #expect(try p.vmresume() == .hlt)
    p.stopCounting()
  }

  @Test func aFaultIsNoBusLock() throws {
    detectBusLocks()
    p.vmwrite(.exceptionBitmap, 1 << 14)
    m.test.load([0xF0, 0xFF, 0x03, 0xF4], at: 0x1000)
    m.cpu.gpr[3] = 0x7FFF_FFFD
    #expect(try p.vmlaunch() == .exceptionOrNMI)
    #expect(p.vmread(.guestRIP) == 0x1000)
  }

  /// 32-bit code at CPL 3 whose alignment check's handler has a stack that is not aligned.
  private func setAlignmentTrap() {
    m.test.store(UInt64(0x00CF_FB00_0000_FFFF), at: 0x2018)
    m.test.store(UInt64(0x00CF_F300_0000_FFFF), at: 0x2020)
    m.test.store(UInt64(0x0000_8E00_001B_1100), at: 0x3000 + 17 * 8)
    m.test.load([0x50, 0xF4], at: 0x1000)
    m.test.load([0xF4], at: 0x1100)
    p.vmwrite(.guestIDTRBase, 0x3000)
    p.vmwrite(.guestCR0, CR0([.pe, .ne, .et, .am]).rawValue)
    p.vmwrite(.guestEFER, 0)
    p.vmwrite(.entryControls, p.vmread(.entryControls) & ~UInt64(EntryControls.ia32eModeGuest))
    for register in [SegmentRegister.cs, .ss, .ds, .es, .fs, .gs] {
      let n = UInt32(register.rawValue) * 2
      p.vmwrite(
        VMCSField(rawValue: VMCSField.guestESSelector.rawValue + n),
        register == .cs ? 0x1B : 0x23)
      p.vmwrite(
        VMCSField(rawValue: VMCSField.guestESAccessRights.rawValue + n),
        register == .cs ? 0xC0FB : 0xC0F3)
    }
    p.vmwrite(.guestRSP, 0x8001)
    p.vmwrite(.guestRFLAGS, RFLAGS.ac.rawValue | 2)
  }

  @Test func endlessFaultsAreNotified() throws {
    setAlignmentTrap()
    p.vmwrite(
      .secondaryControls, p.vmread(.secondaryControls) | UInt64(SecondaryControls.notifyExiting))
    p.vmwrite(.notifyWindow, 100_000)
    for _ in 0..<2 {
      #expect(try (p.vmread(.exitReason) == 0 ? p.vmlaunch() : p.vmresume()) == .notify)
      #expect(p.vmread(.exitQualification) == 0)
      #expect(p.vmread(.guestRIP) == 0x1000)
      let event = InterruptionInfo(.hardwareException, vector: 17, hasErrorCode: true)
      #expect(p.vmread(.idtVectoringInfo) == UInt64(event.rawValue))
    }
    // With an aligned stack the event, injected again, reaches its handler.
    p.vmwrite(.guestRSP, 0x8000)
    p.vmwrite(.entryInterruptionInfo, p.vmread(.idtVectoringInfo))
    p.vmwrite(.exceptionBitmap, 1 << 13)  // HLT at CPL 3
    #expect(try p.vmresume() == .exceptionOrNMI)
    #expect(p.vmread(.guestRIP) == 0x1100)
  }

  private func kickSoon() -> pthread_t {
    var thread = pthread_t()
    let processor = Unmanaged.passUnretained(p).toOpaque()
    pthread_create(
      &thread, nil,
      { argument in
        usleep(20_000)
        Unmanaged<PhysicalCPU>.fromOpaque(argument!).takeUnretainedValue().kick()
        return nil
      }, processor)
    return thread
  }

  @Test func endlessFaultsHearAKick() throws {
    setAlignmentTrap()
    let thread = kickSoon()
    #expect(try p.vmlaunch() == .externalInterrupt)
    #expect(p.vmread(.idtVectoringInfo) & 0xFF == 17)
    pthread_join(thread, nil)
  }

  /// A debug exception whose delivery meets the breakpoint that raised it.
  @Test func endlessDebugExceptionsHearAKick() throws {
    m.test.store(UInt64(0x00AF_9B00_0000_FFFF), at: 0x2008)
    m.test.store(UInt64(0x00CF_9300_0000_FFFF), at: 0x2010)
    // Vector 1: interrupt stack 1, at 0x9000; jmp $
    m.test.store(UInt64(0x8E01_0008_1100), at: 0x3010)
    m.test.store(UInt64(0x9000), at: 0x24)
    m.test.load([0xEB, 0xFE], at: 0x1100)
    m.test.load([0x48, 0x89, 0x03, 0xF4], at: 0x1000)  // mov [rbx], rax
    p.vmwrite(.guestIDTRBase, 0x3000)
    p.vmwrite(.guestIDTRLimit, 0xFFF)
    m.cpu.gpr[3] = 0x8FF8
    m.cpu.s.pointee.dr[0] = 0x8FF8
    p.vmwrite(.guestDR7, 0x400 | 1 | 1 << 16 | 2 << 18)
    let thread = kickSoon()
    #expect(try p.vmlaunch() == .externalInterrupt)
    #expect(p.vmread(.guestRIP) == 0x1100)
    pthread_join(thread, nil)
  }
}
