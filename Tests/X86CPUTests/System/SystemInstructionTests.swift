// SPDX-License-Identifier: Apache-2.0
//
// System instructions, one by one: system calls, descriptor tables, ports, waiting, caches.
// Results, faults and exit qualifications are the SDM's.

import Support
import Testing
import X86
import X86CPU

@Suite struct SystemCallTests {
  @Test func syscallAndSysret() throws {
    let m = TestMachine()
    m.setLongMode(cpl: 3)
    let s = m.cpu.s
    s.pointee.star = 0x0023_0010 << 32
    s.pointee.lstar = 0xFFFF_FFFF_8000_0000
    s.pointee.fmask = RFLAGS.if.rawValue | RFLAGS.tf.rawValue
    m.cpu.flags = RFLAGS.if.rawValue | RFLAGS.zf.rawValue | 2
    #expect(try m.execute([0x0F, 0x05]) == .reload)
    #expect(m.cpu.cpl == 0)
    #expect(s.pointee.rip == 0xFFFF_FFFF_8000_0000)
    #expect(m.cpu.gpr[1] == 0x1002)
    #expect(m.cpu.gpr[11] == 0x242)
    #expect(m.cpu.flags == 0x42)
    #expect(m.cpu.segment(.cs).pointee.selector == 0x10)
    #expect(m.cpu.segment(.ss).pointee.selector == 0x18)
    m.cpu.gpr[1] = 0x0080_0000_0000_0000
    #expect(try m.execute([0x48, 0x0F, 0x07]) == .fault(.generalProtection))
    m.cpu.gpr[1] = 0x4000
    #expect(try m.execute([0x48, 0x0F, 0x07]) == .reload)
    #expect(m.cpu.cpl == 3)
    #expect(m.cpu.is64Bit)
    #expect(s.pointee.rip == 0x4000)
    #expect(m.cpu.segment(.cs).pointee.selector == 0x33)
    #expect(m.cpu.segment(.ss).pointee.selector == 0x2B)
    #expect(m.cpu.flags == 0x242)
    let (key, bank) = (s.pointee.modeKey, s.pointee.tlb)
    m.cpu.updateMode()
    #expect(key == s.pointee.modeKey && bank == s.pointee.tlb)
  }

  @Test func sysretToCompatibilityMode() throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.s.pointee.star = 0x0023_0010 << 32
    m.cpu.gpr[1] = 0x1_0000_4000
    #expect(try m.execute([0x0F, 0x07]) == .reload)
    #expect(!m.cpu.is64Bit && m.cpu.cpl == 3)
    #expect(m.cpu.s.pointee.rip == 0x4000)
    #expect(try m.execute([0x0F, 0x05]) == .fault(.invalidOpcode))
  }

  @Test func sysenterAndSysexit() throws {
    let m = TestMachine()
    m.setLongMode(cpl: 3)
    #expect(try m.execute([0x0F, 0x34]) == .fault(.generalProtection))
    m.cpu.s.pointee.sysenterCS = 0x10
    m.cpu.s.pointee.sysenterEIP = 0x5000
    m.cpu.s.pointee.sysenterESP = 0x6000
    m.cpu.flags = RFLAGS.if.rawValue
    #expect(try m.execute([0x0F, 0x34]) == .reload)
    #expect(m.cpu.cpl == 0 && m.cpu.is64Bit)
    #expect(m.cpu.s.pointee.rip == 0x5000 && m.cpu.gpr[4] == 0x6000)
    #expect(m.cpu.flags & RFLAGS.if.rawValue == 0)
    (m.cpu.gpr[1], m.cpu.gpr[2]) = (0x7000, 0x8000)
    #expect(try m.execute([0x48, 0x0F, 0x35]) == .reload)
    #expect(m.cpu.cpl == 3 && m.cpu.is64Bit)
    #expect(m.cpu.s.pointee.rip == 0x8000 && m.cpu.gpr[4] == 0x7000)
    #expect(m.cpu.segment(.cs).pointee.selector == 0x33)
  }

  @Test func bases() throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.s.pointee.kernelGSBase = 0x1234
    m.cpu.segment(.gs).pointee.base = 0x5678
    #expect(try m.execute([0x0F, 0x01, 0xF8]) == .next)
    #expect(m.cpu.segment(.gs).pointee.base == 0x1234)
    // rdgsbase rax: #UD until CR4.FSGSBASE
    let rdgsbase: [UInt8] = [0xF3, 0x48, 0x0F, 0xAE, 0xC8]
    #expect(try m.execute(rdgsbase) == .fault(.invalidOpcode))
    m.cpu.s.pointee.cr4 |= CR4.fsgsbase.rawValue
    #expect(try m.execute(rdgsbase) == .next)
    #expect(m.cpu.gpr[0] == 0x1234)
    m.cpu.gpr[0] = 1 << 60
    #expect(try m.execute([0xF3, 0x48, 0x0F, 0xAE, 0xD0]) == .fault(.generalProtection))
  }
}

@Suite struct DescriptorTableTests {
  @Test func loadAndStore() throws {
    let m = TestMachine()
    m.setLongMode()
    m.store(UInt16(0x7F), at: 0x2000)
    m.store(UInt64(0xFFFF_8000_1234_5678), at: 0x2002)
    m.cpu.gpr[0] = 0x2000
    m.cpu.gpr[3] = 0x3000
    #expect(try m.execute([0x0F, 0x01, 0x10]) == .next)
    #expect(m.cpu.s.pointee.gdtr.base == 0xFFFF_8000_1234_5678)
    #expect(m.cpu.s.pointee.gdtr.limit == 0x7F)
    #expect(try m.execute([0x0F, 0x01, 0x03]) == .next)
    #expect(m.read(0x3000, as: UInt16.self) == 0x7F)
    #expect(m.read(0x3002, as: UInt64.self) == 0xFFFF_8000_1234_5678)
    m.store(UInt64(1) << 60, at: 0x2002)
    #expect(try m.execute([0x0F, 0x01, 0x18]) == .fault(.generalProtection))
  }

  @Test func wordOperandSizeLoads24Bits() throws {
    let m = TestMachine()
    m.setProtectedMode()
    m.store(UInt16(0x7F), at: 0x2000)
    m.store(UInt32(0x1234_5678), at: 0x2002)
    m.cpu.gpr[0] = 0x2000
    #expect(try m.execute([0x66, 0x0F, 0x01, 0x10]) == .next)
    #expect(m.cpu.s.pointee.gdtr.base == 0x34_5678)
    #expect(try m.execute([0x0F, 0x01, 0x10]) == .next)
    #expect(m.cpu.s.pointee.gdtr.base == 0x1234_5678)
  }

  @Test func exitInformation() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterNonRoot(secondary: SecondaryControls.descriptorTableExiting)
    // lgdt [rbx + r9*4 + 0x10], with a 32-bit address size
    #expect(try m.execute([0x67, 0x42, 0x0F, 0x01, 0x54, 0x8B, 0x10]) == .exit)
    #expect(m.exitReason == .gdtrOrIDTRAccess)
    #expect(m.cpu.exitFields.qualification == 0x10)
    let information = m.cpu.exitFields.instructionInfo
    #expect(information & 3 == 2)
    #expect(information >> 7 & 7 == 1)
    #expect(information >> 15 & 7 == 3)
    #expect(information >> 18 & 0x1F == 9)
    #expect(information >> 23 & 0x1F == 3)
    #expect(information >> 28 & 3 == 2)
  }

  @Test func umip() throws {
    let m = TestMachine()
    m.setLongMode(cpl: 3)
    m.cpu.s.pointee.cr4 |= CR4.umip.rawValue
    m.cpu.gpr[0] = 0x3000
    #expect(try m.execute([0x0F, 0x01, 0x00]) == .fault(.generalProtection))
    #expect(try m.execute([0x0F, 0x01, 0xE0]) == .fault(.generalProtection))
  }
}

@Suite struct PortTests {
  private final class Ports: EmulationContext {
    var answers: [UInt64] = []
    var written: [UInt64] = []
    var room = 0
    func readMMIO(_ address: UInt64, size: Int) -> UInt64? { nil }
    func writeMMIO(_ address: UInt64, size: Int, value: UInt64) -> Bool { false }
    func readPort(_ port: UInt16, size: Int) -> UInt64? {
      answers.isEmpty ? nil : answers.removeFirst()
    }
    func writePort(_ port: UInt16, size: Int, value: UInt64) -> Bool {
      if room == 0 { return false }
      room -= 1
      written.append(value)
      return true
    }
  }

  @Test func exits() throws {
    let m = TestMachine()
    m.setLongMode()
    // in al, 0x60; out dx, eax
    #expect(try m.execute([0xE4, 0x60]) == .exit)
    #expect(m.cpu.exitFields.qualification == 0x60 << 16 | 1 << 6 | 1 << 3)
    m.cpu.gpr[2] = 0xCF8
    #expect(try m.execute([0xEF]) == .exit)
    #expect(m.cpu.exitFields.qualification == 0xCF8 << 16 | 3)
    #expect(try m.execute([0xE4, 0xF0]) == .exit)
    #expect(m.cpu.exitFields.qualification == 0xF0 << 16 | 1 << 6 | 1 << 3)
  }

  @Test func bitmaps() throws {
    let m = TestMachine()
    m.setLongMode()
    let maps = UnsafeMutablePointer<UInt8>.allocate(capacity: 8192)
    maps.initialize(repeating: 0, count: 8192)
    defer { maps.deallocate() }
    m.cpu.vmxControls.ioBitmapA = UInt64(UInt(bitPattern: maps))
    m.cpu.vmxControls.ioBitmapB = UInt64(UInt(bitPattern: maps)) + 4096
    m.cpu.vmxControls.primary |= PrimaryControls.useIOBitmaps
    maps[4096] = 1
    m.cpu.gpr[2] = 0x7FFE
    m.cpu.gpr[0] = .max
    // in ax, dx; in eax, dx
    #expect(try m.execute([0x66, 0xED]) == .reload)
    #expect(try m.execute([0xED]) == .exit)
    m.cpu.gpr[2] = 0xFFFF
    #expect(try m.execute([0x66, 0xED]) == .exit)
  }

  @Test func permissionBitmap() throws {
    let m = TestMachine()
    m.setLongMode(cpl: 3)
    m.cpu.segment(.tr).pointee = SegmentState(
      base: 0x4000, limit: 0x80 + 64, accessRights: 0x8B, selector: 0x40)
    m.store(UInt16(0x80), at: 0x4066)
    m.store(UInt8(0x02), at: 0x4080 + 0x60 / 8)
    #expect(try m.execute([0xE4, 0x60]) == .exit)
    #expect(try m.execute([0xE4, 0x61]) == .fault(.generalProtection))
    #expect(try m.execute([0x66, 0xE5, 0x60]) == .fault(.generalProtection))
    m.cpu.s.pointee.rflags |= RFLAGS.iopl.rawValue
    #expect(try m.execute([0xE4, 0x61]) == .exit)
  }

  @Test func stringExitInformation() throws {
    let m = TestMachine()
    m.setLongMode()
    (m.cpu.gpr[1], m.cpu.gpr[2], m.cpu.gpr[6]) = (5, 0x3F8, 0x2000)
    m.cpu.segment(.fs).pointee.base = 0x100
    // rep fs outsb
    #expect(try m.execute([0xF3, 0x64, 0x6E]) == .exit)
    #expect(m.cpu.exitFields.qualification == 0x3F8 << 16 | 1 << 5 | 1 << 4)
    #expect(m.cpu.exitFields.guestLinear == 0x2100)
    #expect(m.cpu.exitFields.instructionInfo == 2 << 7 | 4 << 15)
  }

  @Test func repeatedOutputStopsAndResumes() {
    let m = TestMachine()
    m.setLongMode()
    m.load([0xF3, 0x6E], at: 0x1000)
    m.load([1, 2, 3, 4, 5], at: 0x2000)
    (m.cpu.gpr[1], m.cpu.gpr[2], m.cpu.gpr[6]) = (5, 0x3F8, 0x2000)
    m.cpu.s.pointee.rip = 0x1000
    let ports = Ports()
    ports.room = 3
    guard case .stopped = m.processor.emulate(ports) else {
      Issue.record("not stopped")
      return
    }
    #expect(m.cpu.gpr[1] == 2 && m.cpu.gpr[6] == 0x2003)
    #expect(m.cpu.s.pointee.rip == 0x1000)
    ports.room = 9
    guard case .completed = m.processor.emulate(ports) else {
      Issue.record("not completed")
      return
    }
    #expect(ports.written == [1, 2, 3, 4, 5])
    #expect(m.cpu.gpr[1] == 0 && m.cpu.s.pointee.rip == 0x1002)
  }

  @Test func repeatedInput() {
    let m = TestMachine()
    m.setLongMode()
    // std; rep insw
    m.load([0xF3, 0x66, 0x6D], at: 0x1000)
    (m.cpu.gpr[1], m.cpu.gpr[2], m.cpu.gpr[7]) = (2, 0x1F0, 0x2002)
    m.cpu.s.pointee.rflags |= RFLAGS.df.rawValue
    m.cpu.s.pointee.rip = 0x1000
    let ports = Ports()
    ports.answers = [0x1111, 0x2222]
    guard case .completed = m.processor.emulate(ports) else {
      Issue.record("not completed")
      return
    }
    #expect(m.read(0x2000, as: UInt32.self) == 0x1111_2222)
    #expect(m.cpu.gpr[7] == 0x1FFE)
  }

  @Test func breakpoint() throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.vmxControls.primary &= ~PrimaryControls.unconditionalIOExiting
    m.cpu.s.pointee.cr4 |= CR4.de.rawValue
    m.cpu.s.pointee.dr[1] = 0x60
    m.cpu.s.pointee.dr7 = 0x400 | 1 << 2 | 2 << 20
    #expect(try m.execute([0xE4, 0x61]) == .reload)
    #expect(m.cpu.s.pointee.pendingDebug == 0)
    #expect(try m.execute([0xE4, 0x60]) == .reload)
    #expect(m.cpu.s.pointee.pendingDebug == 2 | 1 << 12)
  }
}

@Suite struct WaitingAndCacheTests {
  @Test func halt() throws {
    let m = TestMachine()
    m.setLongMode()
    #expect(try m.execute([0xF4]) == .exit)
    m.cpu.vmxControls.primary &= ~PrimaryControls.hltExiting
    #expect(try m.execute([0xF4]) == .reload)
    #expect(m.cpu.s.pointee.activity == ActivityState.hlt)
    #expect(m.cpu.s.pointee.rip == 0x1001)
    m.setLongMode(cpl: 3)
    #expect(try m.execute([0xF4]) == .fault(.generalProtection))
  }

  @Test func pauseLoop() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterNonRoot(secondary: SecondaryControls.pauseLoopExiting)
    m.cpu.vmxControls.pleGap = .max
    m.cpu.vmxControls.pleWindow = 1000
    var outcome = TestMachine.Outcome.next
    var count = 0
    while outcome == .next && count < 1_000_000 {
      outcome = try m.execute([0xF3, 0x90])
      count += 1
    }
    #expect(outcome == .exit && m.exitReason == .pause)
    #expect(count > 1)
  }

  @Test func controls() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterNonRoot(
      primary: PrimaryControls.invlpgExiting | PrimaryControls.rdtscExiting
        | PrimaryControls.rdpmcExiting | PrimaryControls.monitorExiting
        | PrimaryControls.mwaitExiting,
      secondary: SecondaryControls.wbinvdExiting | SecondaryControls.rdrandExiting
        | SecondaryControls.rdseedExiting | SecondaryControls.enableINVPCID
        | SecondaryControls.enableRDTSCP)
    m.cpu.gpr[0] = 0x1234
    let cases: [([UInt8], ExitReason)] = [
      ([0x0F, 0x08], .invd), ([0x0F, 0x09], .wbinvd), ([0x0F, 0x01, 0x38], .invlpg),
      ([0x66, 0x0F, 0x38, 0x82, 0x08], .invpcid), ([0x0F, 0x31], .rdtsc),
      ([0x0F, 0x01, 0xF9], .rdtscp), ([0x0F, 0x33], .rdpmc), ([0x0F, 0x01, 0xC8], .monitor),
      ([0x0F, 0x01, 0xC9], .mwait), ([0x48, 0x0F, 0xC7, 0xF1], .rdrand),
      ([0x0F, 0xC7, 0xFA], .rdseed),
    ]
    for (bytes, reason) in cases {
      #expect(try m.execute(bytes) == .exit)
      #expect(m.exitReason == reason)
    }
    #expect(m.cpu.exitFields.instructionInfo == 2 << 3 | 1 << 11)
    #expect(try m.execute([0x0F, 0x01, 0x38]) == .exit)
    #expect(m.cpu.exitFields.qualification == 0x1234)
  }

  @Test func invpcidChecks() throws {
    let m = TestMachine()
    m.setLongMode()
    let bytes: [UInt8] = [0x66, 0x0F, 0x38, 0x82, 0x08]
    m.cpu.gpr[0] = 0x2000
    for type: UInt64 in 0...3 {
      m.cpu.gpr[1] = type
      #expect(try m.execute(bytes) == .reload)
    }
    m.cpu.gpr[1] = 4
    #expect(try m.execute(bytes) == .fault(.generalProtection))
    m.store(UInt64(5), at: 0x2000)
    m.cpu.gpr[1] = 1
    #expect(try m.execute(bytes) == .fault(.generalProtection))
    m.enterNonRoot()
    #expect(try m.execute(bytes) == .fault(.invalidOpcode))
  }

  @Test func randomNumbersDiffer() throws {
    let m = TestMachine()
    m.setLongMode()
    #expect(try m.execute([0x48, 0x0F, 0xC7, 0xF0]) == .next)
    #expect(try m.execute([0x48, 0x0F, 0xC7, 0xF1]) == .next)
    #expect(m.cpu.gpr[0] != m.cpu.gpr[1])
    #expect(m.cpu.flags & RFLAGS.arithmetic.rawValue == RFLAGS.cf.rawValue)
  }

  @Test func timeStampDisable() throws {
    let m = TestMachine()
    m.setLongMode(cpl: 3)
    #expect(try m.execute([0x0F, 0x31]) == .next)
    m.cpu.s.pointee.cr4 |= CR4.tsd.rawValue
    #expect(try m.execute([0x0F, 0x31]) == .fault(.generalProtection))
  }
}
