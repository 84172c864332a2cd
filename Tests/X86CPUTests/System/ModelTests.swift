// SPDX-License-Identifier: Apache-2.0
//
// What the processor says of itself by CPUID and MSRs: no more than the host can execute, and
// no two statements that disagree.

import Support
import Testing
import X86
import X86CPU
import X86Decoder

@Suite struct ModelTests {
  @Test func vendorAndBrand() {
    let leaf = CPUIDModel.leaf(0)
    #expect(leaf.eax == 0x1F)
    #expect(leaf.ebx == 0x756E_6547 && leaf.edx == 0x4965_6E69 && leaf.ecx == 0x6C65_746E)
    #expect(CPUIDModel.leaf(0x8000_0002).eax == 0x7472_614D)
  }

  @Test func offersOnlyWhatTheHostExecutes() {
    let host = HostCPUID.leaf(7)
    #expect(CPUIDModel.offers(.avx2) == (host.ebx & 1 << 5 != 0))
    #expect(CPUIDModel.offers(.avx512vbmi) == (host.ecx & 1 << 1 != 0))
    #expect(CPUIDModel.offers(.sse2))
    #expect(CPUIDModel.offers(.vmx) && !CPUIDModel.offers(.svm))
    #expect(!CPUIDModel.offers(.rtm) && !CPUIDModel.offers(.sse4a))
    #expect(CPUIDModel.offers(.lzcnt) && CPUIDModel.offers(.bmi2))
  }

  /// AMD's processor: its name, SVM in place of VT-x, and none of Intel's own leaves.
  @Test func theOtherVendorsSilicon() throws {
    let start = CPUIDModel.leaf(0x8000_0000, 0, .amd)
    #expect(start.ebx == 0x6874_7541 && start.ecx == 0x444D_4163 && start.edx == 0x6974_6E65)
    #expect(CPUIDModel.leaf(0, 0, .amd).ebx == start.ebx)
    #expect(CPUIDModel.offers(.svm, .amd) && !CPUIDModel.offers(.vmx, .amd))
    #expect(!CPUIDModel.offers(.skinit, .amd))
    #expect(CPUIDModel.leaf(1, 0, .amd).ecx & 1 << 5 == 0)
    #expect(CPUIDModel.leaf(0x8000_0001, 0, .amd).ecx & 1 << 2 != 0)
    for leaf in [2, 4, 0x15, 0x16, 0x1F] as [UInt32] {
      #expect(CPUIDModel.leaf(leaf, 0, .amd) == CPUIDLeaf())
    }
    let svm = CPUIDModel.leaf(0x8000_000A, 0, .amd)
    #expect(svm.edx == SVMCapabilities.features.rawValue && svm.ebx == SVMCapabilities.asidCount)
    #expect(CPUIDModel.leaf(0x8000_000A) == CPUIDLeaf())
    for (feature, _) in SVMCapabilities.absent { #expect(svm.edx & feature.rawValue == 0) }
    // A leaf beyond the last is nothing here, and the last basic one on Intel's.
    let m = TestMachine(silicon: .amd)
    #expect(m.cpu.cpuid(0x7FFF_FFFF, 0) == CPUIDLeaf())
    #expect(throws: GuestException.generalProtection) {
      try m.cpu.readMSR(MSR.vmxBasic.rawValue)
    }
  }

  @Test func extendedStateLayoutIsConsistent() {
    let area = CPUIDModel.leaf(0xD)
    #expect(area.eax & 3 == 3)
    #expect(area.eax & 1 << 9 != 0)
    var end: UInt32 = 576
    for component in ExtendedStateLayout.components {
      #expect(component.offset >= 576)
      end = max(end, component.offset + component.size)
      let leaf = CPUIDModel.leaf(0xD, UInt32(component.number))
      #expect(leaf.eax == component.size && leaf.ebx == component.offset)
    }
    #expect(area.ecx == end)
    #expect(ExtendedStateLayout.standardSize(3) == 576)
  }

  @Test func timeStampCounterLeafIsExact() {
    let leaf = CPUIDModel.leaf(0x15)
    let hertz = UInt64(leaf.ecx) * UInt64(leaf.ebx) / UInt64(leaf.eax)
    #expect(hertz / 1000 == HostTSC.kilohertz)
    #expect(HostTSC.kilohertz > 500_000 && HostTSC.kilohertz < 10_000_000)
  }

  @Test func cpuidInstruction() throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.s.pointee.cr4 |= CR4.osxsave.rawValue
    m.cpu.gpr[0] = 1
    #expect(try m.execute([0x0F, 0xA2]) == .next)
    #expect(m.cpu.gpr[1] & 1 << 27 != 0)
    #expect(m.cpu.gpr[0] == UInt64(CPUIDModel.signature()))
    m.enterNonRoot()
    #expect(try m.execute([0x0F, 0xA2]) == .exit)
    #expect(m.exitReason == .cpuid)
    #expect(m.cpu.exitFields.instructionLength == 2)
  }

  @Test func everyRuleHoldsItsResetValue() throws {
    let m = TestMachine()
    #expect(MSRModel.rules.map(\.number) == MSRModel.rules.map(\.number).sorted())
    #expect(Set(MSRModel.rules.map(\.number)).count == MSRModel.rules.count)
    for rule in MSRModel.rules where rule.number != MSR.timeStampCounter.rawValue {
      let value = try m.cpu.readMSR(rule.number)
      if case .readOnly = rule.check { continue }
      if case .constant = rule.storage { continue }
      try m.cpu.writeMSR(rule.number, value)
      #expect(try m.cpu.readMSR(rule.number) == value)
    }
    #expect(try m.cpu.readMSR(MSR.apicBase.rawValue) == 0xFEE0_0900)
    #expect(try m.cpu.readMSR(0x404) == .max)
  }

  @Test(arguments: [
    (MSR.lstar, UInt64(0x0100_0000_0000_0000)),
    (MSR.fsBase, UInt64(0xFE00_0000_0000_0000)),
    (MSR.pat, UInt64(2)),
    (MSR.fmask, UInt64(1) << 32),
    (MSR.efer, EFER.svme.rawValue),
    (MSR.mtrrCap, UInt64(0)),
    (MSR.mtrrDefType, UInt64(2)),
    (MSR(rawValue: 0x12345), UInt64(0)),
  ]) func badWrites(msr: MSR, value: UInt64) {
    let m = TestMachine()
    m.setLongMode()
    #expect(throws: GuestException.generalProtection) {
      try m.cpu.writeMSR(msr.rawValue, value)
    }
  }

  @Test func lmeIsFixedWhilePaging() {
    let m = TestMachine()
    m.setLongMode()
    #expect(throws: GuestException.generalProtection) {
      try m.cpu.writeMSR(MSR.efer.rawValue, EFER.sce.rawValue)
    }
  }

  @Test func msrBitmaps() throws {
    let m = TestMachine()
    m.setLongMode()
    let bitmap = UnsafeMutablePointer<UInt8>.allocate(capacity: 4096)
    bitmap.initialize(repeating: 0, count: 4096)
    defer { bitmap.deallocate() }
    m.enterNonRoot(primary: PrimaryControls.useMSRBitmaps)
    m.cpu.vmxControls.msrBitmap = UInt64(UInt(bitPattern: bitmap))
    let (rdmsr, wrmsr): ([UInt8], [UInt8]) = ([0x0F, 0x32], [0x0F, 0x30])
    m.cpu.gpr[1] = 0xC000_0100
    (m.cpu.gpr[0], m.cpu.gpr[2]) = (0x1234, 0xFFFF_8000)
    #expect(try m.execute(wrmsr) == .next)
    #expect(m.cpu.segment(.fs).pointee.base == 0xFFFF_8000_0000_1234)
    bitmap[3072 + 0x100 / 8] = 1
    #expect(try m.execute(wrmsr) == .exit)
    #expect(m.exitReason == .wrmsr)
    #expect(try m.execute(rdmsr) == .next)
    bitmap[0x10 / 8] = 1
    m.cpu.gpr[1] = 0x10
    #expect(try m.execute(rdmsr) == .exit)
    #expect(m.exitReason == .rdmsr)
    // Numbers outside both ranges exit always.
    m.cpu.gpr[1] = 0x4000
    #expect(try m.execute(rdmsr) == .exit)
    m.setLongMode(cpl: 3)
    #expect(try m.execute(rdmsr) == .fault(.generalProtection))
  }

  @Test func timeStampCounterIsOffsetAndScaled() throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.vmxControls.tscOffset = 1 << 60
    m.enterNonRoot(primary: PrimaryControls.useTSCOffsetting)
    let before = HostTSC.read()
    #expect(try m.execute([0x0F, 0x31]) == .next)
    let value = m.cpu.gpr[2] << 32 | m.cpu.gpr[0]
    #expect(value &- (1 << 60) >= before && value &- (1 << 60) <= HostTSC.read())
    m.cpu.vmxControls.tscOffset = 0
    m.cpu.vmxControls.tscMultiplier = 2 << 48
    m.enterNonRoot(secondary: SecondaryControls.useTSCScaling)
    let low = HostTSC.read()
    let scaled = m.cpu.guestTSC
    #expect(scaled >= low * 2 && scaled <= HostTSC.read() * 2)
  }
}
