// SPDX-License-Identifier: Apache-2.0
//
// What AMD's processors do otherwise than Intel's, each case with both vendors' rules: APM and
// SDM are the oracle. And where addresses end.

import Support
import Testing
import X86
import X86CPU

@Suite struct VendorRulesTests {
  private static let vendors: [VendorRules] = [.intel, .amd]

  private func machine(_ rules: VendorRules, cpl: UInt8 = 0, threshold: UInt32? = nil)
    -> TestMachine
  {
    let m = TestMachine(threshold: threshold)
    m.setLongSystem(cpl: cpl)
    m.setHandlers(long: true)
    m.cpu.s.pointee.rules = rules
    m.cpu.s.pointee.star = UInt64(Tables.code0) << 32 | UInt64(Tables.compatible3) << 48
    m.cpu.s.pointee.lstar = 0x2000
    m.cpu.s.pointee.cstar = 0x3800
    m.load([0xF4], at: 0x2000)
    m.load([0xF4], at: 0x3800)
    return m
  }

  private func setCompatible(_ m: TestMachine) {
    m.cpu.segment(.cs).pointee.accessRights = 0xC0FB
    m.cpu.segment(.cs).pointee.selector = Tables.compatible3
    m.cpu.updateMode()
  }

  @Test func rulesFollowCPUID() {
    let amd: UInt32 = 0x6874_7541
    #expect(VendorRules(vendor: amd, features: 0, moreFeatures: 0) == .amd)
    #expect(VendorRules(vendor: 0x6F67_7948, features: 0, moreFeatures: 0) == .amd)
    #expect(VendorRules(vendor: 0x756E_6547, features: 16, moreFeatures: 64) == .intel)
    #expect(VendorRules(vendor: 0, features: 0, moreFeatures: 0) == .intel)
    let more = VendorRules(vendor: amd, features: 16, moreFeatures: 64)
    #expect(more.contains(.lockedCR8) && !more.contains(.nullKeepsBase))
  }

  @Test(arguments: vendors, [0, 1] as [UInt32])
  func syscallFromCompatibilityMode(_ rules: VendorRules, _ threshold: UInt32) {
    let m = machine(rules, cpl: 3, threshold: threshold)
    setCompatible(m)
    m.load([0x90, 0x0F, 0x05], at: 0x1000)
    #expect(m.run(from: 0x1000) == .hlt)
    if rules == .intel {
      #expect(m.stoppedIn == 6)
    } else {
      #expect(m.cpu.s.pointee.rip == 0x3800)
      #expect(m.cpu.gpr[1] == 0x1003)
      #expect(m.cpu.is64Bit && m.cpu.cpl == 0)
    }
  }

  @Test(arguments: vendors) func syscallInLegacyMode(_ rules: VendorRules) {
    let m = TestMachine()
    m.setProtectedSystem(cpl: 3)
    m.setHandlers(long: false)
    m.cpu.s.pointee.rules = rules
    m.cpu.s.pointee.efer = EFER.sce.rawValue
    m.cpu.s.pointee.star = UInt64(Tables.code0) << 32 | 0x2000
    m.load([0x0F, 0x05], at: 0x1000)
    // sysret
    m.load([0x0F, 0x07], at: 0x2000)
    m.load([0xF4], at: 0x1002)
    m.cpu.s.pointee.star |= UInt64(Tables.code3) << 48
    #expect(m.run(from: 0x1000) == .hlt)
    // At CPL 3 again, HLT is #GP.
    #expect(m.stoppedIn == (rules == .intel ? 6 : 13))
    if rules == .amd { #expect(m.stacked(1, as: UInt32.self) == 0x1002) }
  }

  @Test(arguments: vendors, [[0x0F, 0x34], [0x0F, 0x35]] as [[UInt8]])
  func sysenterInLongMode(_ rules: VendorRules, _ code: [UInt8]) throws {
    let m = machine(rules)
    m.cpu.s.pointee.sysenterCS = UInt64(Tables.code0)
    #expect(try (m.execute(code) == .fault(.invalidOpcode)) == (rules == .amd))
  }

  @Test(arguments: vendors) func sysretToNowhere(_ rules: VendorRules) {
    let m = machine(rules)
    m.load([0x48, 0x0F, 0x07], at: 0x1000)
    m.cpu.gpr[1] = 1 << 63
    m.cpu.gpr[11] = 2
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(1, as: UInt64.self) == (rules == .amd ? 1 << 63 : 0x1000))
    #expect(m.stacked(2, as: UInt64.self) & 3 == (rules == .amd ? 3 : 0))
  }

  @Test(arguments: vendors, [0, 1] as [UInt32])
  func sysretAndTheStackSegment(_ rules: VendorRules, _ threshold: UInt32) {
    let m = machine(rules, threshold: threshold)
    m.load([0x90, 0x48, 0x0F, 0x07], at: 0x1000)
    m.load([0xF4], at: 0x2100)
    m.cpu.gpr[1] = 0x2100
    m.cpu.gpr[11] = 2
    m.cpu.segment(.ss).pointee = m.cpu.nullStack(cpl: 0)
    m.cpu.updateMode()
    m.cpu.vmxControls.exceptionBitmap = 1 << 13
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.s.pointee.rip == 0x2100 && m.cpu.cpl == 3)
    #expect(m.cpu.segment(.ss).pointee.rights.isUnusable == (rules == .amd))
  }

  @Test(arguments: vendors) func loadsOfNull(_ rules: VendorRules) throws {
    for register: UInt8 in [0, 3, 4, 5] {
      let m = machine(rules)
      let segment = m.cpu.segment(SegmentRegister(rawValue: register)!)
      segment.pointee.base = 0x1234_5678_9000
      m.cpu.gpr[0] = 0
      #expect(try m.execute([0x8E, 0xC0 | register << 3]) == .reload)
      #expect(segment.pointee.base == (rules == .amd ? 0x1234_5678_9000 : 0))
      #expect(segment.pointee.rights.isUnusable)
    }
  }

  /// IRET and RETF to an outer ring.
  @Test(arguments: vendors, [[0x48, 0xCF], [0x48, 0xCB]] as [[UInt8]])
  func segmentsMadeNullKeepTheirBases(_ rules: VendorRules, _ code: [UInt8]) throws {
    let m = machine(rules)
    let isIRET = code[1] == 0xCF
    var frame: [UInt64] = [0x2000, UInt64(Tables.code3)]
    if isIRET { frame.append(2) }
    frame += [0x8000, UInt64(Tables.data3)]
    for (n, value) in frame.enumerated() { m.store(value, at: 0x7000 + n * 8) }
    m.cpu.gpr[4] = 0x7000
    m.cpu.segment(.fs).pointee.base = 0x1234_5678_9000
    m.cpu.segment(.gs).pointee.base = 0x7FFF_0000_0000
    #expect(try m.execute(code) == .reload)
    #expect(m.cpu.cpl == 3)
    #expect(m.cpu.segment(.fs).pointee.base == 0x1234_5678_9000)
    #expect(m.cpu.segment(.gs).pointee.base == 0x7FFF_0000_0000)
    #expect(m.cpu.segment(.fs).pointee.selector == 0)
    #expect(m.cpu.segment(.fs).pointee.rights.isUnusable)
  }

  @Test(arguments: vendors) func breakpointBehindMovSS(_ rules: VendorRules) {
    let m = machine(rules)
    m.cpu.s.pointee.dr[0] = 0x1002
    m.cpu.s.pointee.dr7 = 0x401
    m.cpu.updateMode()
    m.cpu.gpr[0] = UInt64(Tables.data0)
    m.load([0x8E, 0xD0, 0xF8, 0xCC], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == (rules == .amd ? 1 : 3))
  }

  @Test func lockedCR0IsCR8() throws {
    let write: [UInt8] = [0xF0, 0x0F, 0x22, 0xC0]
    for rules: VendorRules in [.intel, .amd, [.amd, .lockedCR8]] {
      let m = machine(rules)
      let has = rules.contains(.lockedCR8)
      m.cpu.gpr[0] = 16
      #expect(try m.execute(write) == .fault(has ? .generalProtection : .invalidOpcode))
      m.cpu.gpr[0] = 5
      #expect(try m.execute(write) == (has ? .reload : .fault(.invalidOpcode)))
      #expect(m.cpu.s.pointee.cr8 == (has ? 5 : 0))
      #expect(try m.execute([0xF0, 0x0F, 0x20, 0xC3]) == (has ? .next : .fault(.invalidOpcode)))
      if has { #expect(m.cpu.gpr[3] == 5) }
    }
  }
}

/// Where addresses end.
@Suite struct CanonicalEndTests {
  @Test(
    arguments: [
      [0x48, 0x8B, 0x03], [0x48, 0x89, 0x03], [0x48, 0x01, 0x03], [0x0F, 0x10, 0x03],
      [0x0F, 0x11, 0x03], [0xDB, 0x2B],
    ] as [[UInt8]])
  func accessAcrossTheEnd(_ code: [UInt8]) {
    let m = TestMachine()
    m.setLongSystem()
    m.setHandlers(long: true)
    m.cpu.gpr[3] = 0x7FFF_FFFF_FFFC
    m.load(code, at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
  }

  /// Bases of LDTR and TR have the width of the processor, whatever CR4.LA57 says.
  @Test(arguments: [[0x0F, 0x00, 0xD0], [0x0F, 0x00, 0xD8]] as [[UInt8]])
  func basesOfSystemSegments(_ code: [UInt8]) throws {
    let m = TestMachine()
    m.setLongSystem()
    let type: UInt64 = code[2] == 0xD0 ? 0x82 : 0x89
    m.setDescriptor(Tables.spare, descriptor(limit: 0xFFF, rights: type))
    m.cpu.gpr[0] = UInt64(Tables.spare)
    m.store(UInt64(0x0040_0000), at: Tables.gdt + Int(Tables.spare) + 8)
    #expect(try m.execute(code) == .reload)
    m.setDescriptor(Tables.spare, descriptor(limit: 0xFFF, rights: type))
    m.store(UInt64(0x0100_0000), at: Tables.gdt + Int(Tables.spare) + 8)
    #expect(
      try m.execute(code) == .fault(.selector(.generalProtection, Tables.spare)))
  }
}
