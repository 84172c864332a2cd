// SPDX-License-Identifier: Apache-2.0
//
// MOV to and from control and debug registers, LMSW and XSETBV: what faults, what is masked,
// and what exits, as the SDM has it.

import Support
import Testing
import X86
import X86CPU

private let movCR0RAX: [UInt8] = [0x0F, 0x22, 0xC0]
private let movRAXCR0: [UInt8] = [0x0F, 0x20, 0xC0]
private let movCR3RAX: [UInt8] = [0x0F, 0x22, 0xD8]
private let movCR4RAX: [UInt8] = [0x0F, 0x22, 0xE0]
private let movRAXCR4: [UInt8] = [0x0F, 0x20, 0xE0]
private let movDR7RAX: [UInt8] = [0x0F, 0x23, 0xF8]
private let movRAXDR5: [UInt8] = [0x0F, 0x21, 0xE8]

@Suite struct ControlRegisterTests {
  @Test func needsPrivilege() throws {
    let m = TestMachine()
    m.setLongMode(cpl: 3)
    for bytes in [movCR0RAX, movRAXCR0, movCR3RAX, movCR4RAX, movDR7RAX, [0x0F, 0x06]] {
      #expect(try m.execute(bytes) == .fault(.generalProtection))
    }
  }

  @Test func protectedModeToLongMode() throws {
    let m = TestMachine()
    m.setProtectedMode()
    m.cpu.gpr[0] = CR4.pae.rawValue
    #expect(try m.execute(movCR4RAX) == .reload)
    m.cpu.gpr[0] = 0x10000
    #expect(try m.execute(movCR3RAX) == .reload)
    try m.cpu.writeMSR(MSR.efer.rawValue, EFER.lme.rawValue)
    #expect(!m.cpu.isLongMode)
    m.cpu.gpr[0] = 0x8000_0001
    #expect(try m.execute(movCR0RAX) == .reload)
    #expect(m.cpu.isLongMode)
    #expect(!m.cpu.is64Bit)
    // PAE must stay while in IA-32e mode; paging may go, and LMA with it.
    m.cpu.gpr[0] = 0
    #expect(try m.execute(movCR4RAX) == .fault(.generalProtection))
    m.cpu.gpr[0] = 1
    #expect(try m.execute(movCR0RAX) == .reload)
    #expect(!m.cpu.isLongMode)
  }

  @Test(arguments: [
    (CR0.pg.rawValue, "PG without PE"),
    (CR0.pe.rawValue | CR0.nw.rawValue, "NW without CD"),
    (1 << 32 | CR0.pe.rawValue | CR0.pg.rawValue, "upper half"),
    (CR0.pe.rawValue, "paging off in 64-bit mode"),
  ]) func badCR0(value: UInt64, why: String) throws {
    let m = TestMachine()
    m.setLongMode()
    let before = m.cpu.s.pointee.cr0
    m.cpu.gpr[0] = value
    #expect(try m.execute(movCR0RAX) == .fault(.generalProtection), "\(why)")
    #expect(m.cpu.s.pointee.cr0 == before)
  }

  @Test func loadsPDPTEs() throws {
    let m = TestMachine()
    m.setProtectedMode()
    for n in 0..<4 { m.store(UInt64(0x5000 + n * 0x1000) | 1, at: 0x4020 + n * 8) }
    m.cpu.s.pointee.cr4 = CR4.pae.rawValue
    m.cpu.s.pointee.cr3 = 0x4020
    m.cpu.gpr[0] = 0x8000_0011
    #expect(try m.execute(movCR0RAX) == .reload)
    #expect(m.cpu.s.pointee.pdptrs[3] == 0x8001)
    // A reserved bit of a present entry: nothing changes.
    m.store(UInt64(0x5000) | 3, at: 0x4040)
    m.cpu.gpr[0] = 0x4040
    #expect(try m.execute(movCR3RAX) == .fault(.generalProtection))
    #expect(m.cpu.s.pointee.cr3 == 0x4020)
    #expect(m.cpu.s.pointee.pdptrs[0] == 0x5001)
  }

  @Test func pcid() throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.s.pointee.cr3 |= 8
    m.cpu.gpr[0] = m.cpu.s.pointee.cr4 | CR4.pcide.rawValue
    #expect(try m.execute(movCR4RAX) == .fault(.generalProtection))
    m.cpu.s.pointee.cr3 = 0x10000
    #expect(try m.execute(movCR4RAX) == .reload)
    m.cpu.gpr[0] = 1 << 63 | 0x10005
    #expect(try m.execute(movCR3RAX) == .reload)
    #expect(m.cpu.s.pointee.cr3 == 0x10005)
    // Without PCIDE bit 63 is reserved.
    m.cpu.s.pointee.cr4 &= ~CR4.pcide.rawValue
    #expect(try m.execute(movCR3RAX) == .fault(.generalProtection))
  }

  @Test func masksAndShadows() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterNonRoot()
    m.cpu.s.pointee.cr4 |= CR4.vmxe.rawValue
    m.cpu.vmxControls.cr4Mask = CR4.vmxe.rawValue
    m.cpu.vmxControls.cr0Mask = CR0.ne.rawValue | CR0.ts.rawValue
    m.cpu.vmxControls.cr0Shadow = CR0.ts.rawValue
    #expect(try m.execute(movRAXCR4) == .next)
    #expect(m.cpu.gpr[0] & CR4.vmxe.rawValue == 0)
    m.cpu.gpr[0] |= CR4.pge.rawValue
    #expect(try m.execute(movCR4RAX) == .reload)
    #expect(m.cpu.s.pointee.cr4 & CR4.vmxe.rawValue != 0)
    #expect(m.cpu.s.pointee.cr4 & CR4.pge.rawValue != 0)
    m.cpu.gpr[0] |= CR4.vmxe.rawValue
    #expect(try m.execute(movCR4RAX) == .exit)
    #expect(m.exitReason == .controlRegisterAccess)
    #expect(m.cpu.exitFields.qualification == 4)
    // CLTS: the shadow has TS, so it exits; without it, nothing happens.
    #expect(try m.execute([0x0F, 0x06]) == .exit)
    #expect(m.cpu.exitFields.qualification == 2 << 4)
    m.cpu.vmxControls.cr0Shadow = 0
    m.cpu.s.pointee.cr0 |= CR0.ts.rawValue
    #expect(try m.execute([0x0F, 0x06]) == .next)
    #expect(m.cpu.s.pointee.cr0 & CR0.ts.rawValue != 0)
  }

  @Test func lmswExits() throws {
    let m = TestMachine()
    m.setProtectedMode()
    m.enterNonRoot()
    m.cpu.vmxControls.cr0Mask = 1
    m.cpu.vmxControls.cr0Shadow = 0
    m.store(UInt16(0x1235), at: 0x2000)
    // lmsw [0x2000]
    #expect(try m.execute([0x0F, 0x01, 0x35, 0, 0x20, 0, 0]) == .exit)
    let qualification: UInt64 = 0x1235 << 16 | 1 << 6 | 3 << 4
    #expect(m.cpu.exitFields.qualification == qualification)
    #expect(m.cpu.exitFields.guestLinear == 0x2000)
  }

  @Test func cr3Targets() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterNonRoot(primary: PrimaryControls.cr3LoadExiting)
    m.cpu.vmxControls.cr3Targets[0] = 0x10000
    m.cpu.vmxControls.cr3TargetCount = 1
    m.cpu.gpr[3] = 0x10000
    #expect(try m.execute([0x0F, 0x22, 0xDB]) == .reload)
    m.cpu.gpr[3] = 0x20000
    #expect(try m.execute([0x0F, 0x22, 0xDB]) == .exit)
    #expect(m.cpu.exitFields.qualification == 3 | 3 << 8)
  }

  @Test func cr8() throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.gpr[0] = 9
    #expect(try m.execute([0x44, 0x0F, 0x22, 0xC0]) == .reload)
    #expect(m.cpu.s.pointee.cr8 == 9)
    m.cpu.gpr[0] = 16
    #expect(try m.execute([0x44, 0x0F, 0x22, 0xC0]) == .fault(.generalProtection))
    #expect(try m.execute([0x44, 0x0F, 0x20, 0xC0]) == .next)
    #expect(m.cpu.gpr[0] == 9)
  }

  @Test func debugRegisters() throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.gpr[0] = 0xFFFF_FFFF
    #expect(try m.execute(movDR7RAX) == .reload)
    #expect(m.cpu.s.pointee.dr7 == 0xFFFF_27FF)
    #expect(m.cpu.s.pointee.slow & SlowReason.breakpoints != 0)
    // General detect.
    #expect(try m.execute(movRAXDR5) == .fault(.debug(.bd)))
    m.cpu.s.pointee.dr7 = 0x400
    m.cpu.s.pointee.cr4 |= CR4.de.rawValue
    #expect(try m.execute(movRAXDR5) == .fault(.invalidOpcode))
    m.cpu.s.pointee.cr4 &= ~CR4.de.rawValue
    #expect(try m.execute(movRAXDR5) == .next)
    #expect(m.cpu.gpr[0] == 0x400)
    m.cpu.gpr[0] = 1 << 32
    #expect(try m.execute(movDR7RAX) == .fault(.generalProtection))
    // The exit comes before the privilege check.
    m.setLongMode(cpl: 3)
    m.enterNonRoot(primary: PrimaryControls.movDRExiting)
    #expect(try m.execute(movRAXDR5) == .exit)
    #expect(m.cpu.exitFields.qualification == 5 | 1 << 4)
  }

  @Test func xcr0() throws {
    let m = TestMachine()
    m.setLongMode()
    #expect(try m.execute([0x0F, 0x01, 0xD1]) == .fault(.invalidOpcode))
    m.cpu.s.pointee.cr4 |= CR4.osxsave.rawValue
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2]) = (3, 0, 0)
    #expect(try m.execute([0x0F, 0x01, 0xD1]) == .reload)
    #expect(m.cpu.s.pointee.xcr0 == 3)
    for bad: UInt64 in [2, 5, 0x23, 1 << 3 | 3] {
      m.cpu.gpr[0] = bad
      #expect(try m.execute([0x0F, 0x01, 0xD1]) == .fault(.generalProtection))
    }
    #expect(try m.execute([0x0F, 0x01, 0xD0]) == .next)
    #expect(m.cpu.gpr[0] == 3)
    m.enterNonRoot()
    #expect(try m.execute([0x0F, 0x01, 0xD1]) == .exit)
    #expect(m.exitReason == .xsetbv)
  }
}
