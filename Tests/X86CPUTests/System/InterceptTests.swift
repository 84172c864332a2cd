// SPDX-License-Identifier: Apache-2.0
//
// Intercepts that VT-x lacks, the order of exits and faults by vendor, and the permission maps of
// SVM; what VT-x's controls become; causes as VT-x's exit reasons.

import Support
import Testing
import X86
import X86CPU

extension TestMachine {
  /// A guest of SVM's, with these intercepts.
  fileprivate func enterSVM(_ set: InterceptSet = []) {
    cpu.s.pointee.intercepts.mode = .svm
    cpu.s.pointee.intercepts.set = set
    cpu.s.pointee.intercepts.portLayout = .none
    cpu.updateMode()
  }

  fileprivate var cause: ExitCause { cpu.s.pointee.exit.cause }
}

/// One instruction that exits by one bit.
private struct Intercepted: Sendable {
  var bytes: [UInt8]
  var intercept: InterceptSet
  var cause: ExitCause
}

@Suite struct InterceptTests {
  private static let plain = [
    Intercepted(bytes: [0x9C], intercept: .pushf, cause: .pushf),
    Intercepted(bytes: [0x9D], intercept: .popf, cause: .popf),
    Intercepted(bytes: [0x48, 0xCF], intercept: .iret, cause: .iret),
    Intercepted(bytes: [0xCD, 0x80], intercept: .softwareInterrupt, cause: .softwareInterrupt),
    Intercepted(bytes: [0xF1], intercept: .icebp, cause: .icebp),
    Intercepted(bytes: [0x0F, 0xAA], intercept: .rsm, cause: .rsm),
    Intercepted(bytes: [0x0F, 0xA2], intercept: .cpuid, cause: .cpuid),
    Intercepted(bytes: [0x0F, 0x31], intercept: .rdtsc, cause: .rdtsc),
    Intercepted(bytes: [0x0F, 0x01, 0xF9], intercept: .rdtscp, cause: .rdtscp),
    Intercepted(bytes: [0x0F, 0x08], intercept: .invd, cause: .invd),
    Intercepted(bytes: [0x0F, 0x01, 0x10], intercept: .lgdt, cause: .lgdt),
    Intercepted(bytes: [0x0F, 0x01, 0x08], intercept: .sidt, cause: .sidt),
    Intercepted(bytes: [0x0F, 0x00, 0xC8], intercept: .str, cause: .str),
  ]

  /// The instruction exits by its own bit and by no other; what the stack or the operands hold does
  /// not matter.
  @Test(arguments: plain) private func exitsByItsBit(_ row: Intercepted) throws {
    let m = TestMachine()
    m.setLongMode()
    m.cpu.gpr[4] = 1 << 62
    m.cpu.gpr[0] = 0x2000
    m.enterSVM(row.intercept)
    #expect(try m.execute(row.bytes) == .exit)
    #expect(m.cause == row.cause)
    #expect(m.cpu.s.pointee.exit.instructionLength == UInt8(row.bytes.count))
    m.cpu.s.pointee.exit.cause = .none
    m.enterSVM(InterceptSet(rawValue: ~row.intercept.rawValue & 0xFFFF_FFFF_FF00_0000))
    _ = try m.execute(row.bytes)
    #expect(m.cause != row.cause)
  }

  @Test func vectorOfASoftwareInterrupt() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterSVM(.softwareInterrupt)
    #expect(try m.execute([0xCD, 0x2E]) == .exit)
    #expect(m.cpu.s.pointee.exit.register == 0x2E)
    m.cpu.s.pointee.rip = 0x1000
    #expect(m.cpu.exitNextRIP == 0x1002)
  }

  /// INT1 has an intercept of its own with SVM; the one of #DB takes it with VT-x.
  @Test func debugTrapIsNoExceptionOfSVMs() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterSVM()
    m.cpu.s.pointee.intercepts.exceptions = 1 << 1
    // Without a table, its delivery ends in a triple fault.
    m.cpu.s.pointee.idtr.limit = 0
    #expect(try m.execute([0xF1]) == .exit)
    #expect(m.cause == .tripleFault)
    m.cpu.s.pointee.intercepts.mode = .vmx
    #expect(try m.execute([0xF1]) == .exit)
    #expect(m.cause == .exception)
  }

  @Test func controlRegistersByNumber() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterSVM()
    m.cpu.s.pointee.intercepts.crReads = 1 << 4
    m.cpu.s.pointee.intercepts.crWrites = 1 << 2
    // mov rbx, cr4 ; mov rbx, cr3 ; mov cr2, rbx
    #expect(try m.execute([0x0F, 0x20, 0xE3]) == .exit)
    let record = m.cpu.s.pointee.exit
    #expect(record.cause == .controlRegisterAccess && record.access == .read)
    #expect(record.register == 4 && record.general == 3)
    #expect(try m.execute([0x0F, 0x20, 0xDB]) == .next)
    #expect(try m.execute([0x0F, 0x22, 0xD3]) == .exit)
    #expect(m.cpu.s.pointee.exit.access == .write && m.cpu.s.pointee.exit.register == 2)
  }

  /// CLTS, LMSW and SMSW are writes and reads of CR0.
  @Test func machineStatusIsCR0() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterSVM()
    #expect(try m.execute([0x0F, 0x06]) == .reload)
    m.cpu.s.pointee.intercepts.crReads = 1
    m.cpu.s.pointee.intercepts.crWrites = 1
    #expect(try m.execute([0x0F, 0x06]) == .exit)
    #expect(m.cpu.s.pointee.exit.access == .clts)
    // The operand's page is not there: the exit comes first.
    m.cpu.gpr[0] = 1 << 40
    #expect(try m.execute([0x0F, 0x01, 0x30]) == .exit)
    #expect(m.cause == .controlRegisterAccess && m.cpu.s.pointee.exit.access == .lmsw)
    #expect(try m.execute([0x0F, 0x01, 0xE0]) == .exit)
    #expect(m.cpu.s.pointee.exit.access == .smsw)
  }

  /// TS and MP may change.
  @Test func selectiveWritesOfCR0() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterSVM(.selectiveCR0Write)
    m.cpu.gpr[0] = m.cpu.s.pointee.cr0 ^ CR0([.ts, .mp]).rawValue
    #expect(try m.execute([0x0F, 0x22, 0xC0]) == .reload)
    m.cpu.gpr[0] = m.cpu.s.pointee.cr0 ^ CR0.am.rawValue
    #expect(try m.execute([0x0F, 0x22, 0xC0]) == .exit)
    #expect(m.cause == .selectiveCR0Write)
    m.cpu.s.pointee.intercepts.crWrites = 1
    #expect(try m.execute([0x0F, 0x22, 0xC0]) == .exit)
    #expect(m.cause == .controlRegisterAccess)
  }

  /// With VT-x the exit comes before #GP for the value and before #GP for the privilege of MOV to a
  /// debug register; with SVM both faults come first.
  @Test func ordersOfTheVendors() throws {
    let m = TestMachine()
    m.setLongMode()
    m.enterNonRoot(primary: PrimaryControls.cr8LoadExiting | PrimaryControls.movDRExiting)
    m.cpu.gpr[0] = 0x100
    let movCR8: [UInt8] = [0x44, 0x0F, 0x22, 0xC0]
    let movDR7: [UInt8] = [0x0F, 0x23, 0xF8]
    #expect(try m.execute(movCR8) == .exit)
    m.cpu.s.pointee.intercepts.mode = .svm
    #expect(try m.execute(movCR8) == .fault(.generalProtection))
    m.cpu.gpr[0] = 8
    #expect(try m.execute(movCR8) == .exit)
    m.setLongMode(cpl: 3)
    #expect(try m.execute(movDR7) == .fault(.generalProtection))
    m.cpu.s.pointee.intercepts.mode = .vmx
    #expect(try m.execute(movDR7) == .exit)
    #expect(m.cause == .debugRegisterAccess && m.cpu.s.pointee.exit.register == 7)
  }

  @Test func waitingByArming() throws {
    let m = TestMachine()
    m.setLongMode()
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2]) = (0x2000, 0, 0)
    m.enterSVM(.armedMWAIT)
    #expect(try m.execute([0x0F, 0x01, 0xC9]) == .reload)
    #expect(try m.execute([0x0F, 0x01, 0xC8]) == .next)
    #expect(try m.execute([0x0F, 0x01, 0xC9]) == .exit)
    #expect(m.cause == .mwait && m.cpu.s.pointee.exit.details.contains(.isArmed))
  }

  // MARK: Maps of SVM

  @Test func portPermissionMap() throws {
    let m = TestMachine()
    m.setLongMode()
    let map = UnsafeMutablePointer<UInt8>.allocate(capacity: 12288)
    map.initialize(repeating: 0, count: 12288)
    defer { map.deallocate() }
    m.enterSVM()
    m.cpu.s.pointee.intercepts.portLayout = .svm
    m.cpu.s.pointee.intercepts.portBitmap = UInt64(UInt(bitPattern: map))
    map[0x8000 / 8] = 1
    m.cpu.gpr[2] = 0x7FFF
    // in al, dx ; in ax, dx
    #expect(try m.execute([0xEC]) == .reload)
    #expect(try m.execute([0x66, 0xED]) == .exit)
    #expect(m.cpu.s.pointee.exit.selector == 0x7FFF && m.cpu.s.pointee.exit.size == 2)
    // Behind the last port the map goes on.
    m.cpu.gpr[2] = 0xFFFF
    #expect(try m.execute([0x66, 0xED]) == .reload)
    map[8192] = 1
    #expect(try m.execute([0x66, 0xED]) == .exit)
  }

  @Test(arguments: [(UInt32(0x10), 0x10), (0xC000_0080, 0x2080), (0xC001_0015, 0x4015)])
  func msrPermissionMap(_ number: UInt32, _ place: Int) throws {
    let m = TestMachine()
    m.setLongMode()
    let map = UnsafeMutablePointer<UInt8>.allocate(capacity: 8192)
    map.initialize(repeating: 0xFF, count: 8192)
    defer { map.deallocate() }
    m.enterSVM()
    m.cpu.s.pointee.intercepts.msrLayout = .svm
    m.cpu.s.pointee.intercepts.msrBitmap = UInt64(UInt(bitPattern: map))
    m.cpu.gpr[1] = UInt64(number)
    #expect(try m.execute([0x0F, 0x32]) == .exit)
    map[place / 4] &= ~(1 << UInt8(place % 4 * 2))
    #expect(try m.execute([0x0F, 0x32]) != .exit)
    #expect(try m.execute([0x0F, 0x30]) == .exit)
    #expect(m.cause == .wrmsr)
    map[place / 4] &= ~(2 << UInt8(place % 4 * 2))
    m.cpu.s.pointee.exit.cause = .none
    _ = try m.execute([0x0F, 0x30])
    #expect(m.cause == .none)
    // A number that no part of the map has.
    m.cpu.gpr[1] = 0x4000_0000
    #expect(try m.execute([0x0F, 0x32]) == .exit)
  }

  // MARK: Translated code

  /// PUSHF is not translated without a look, so with its intercept code is not translated.
  @Test(arguments: [UInt32(0), 1]) func translatedCodeExitsToo(_ threshold: UInt32) {
    let m = TestMachine(threshold: threshold)
    m.setLongMode()
    // L: pushf ; pop rax ; dec ecx ; jnz L ; hlt
    m.load([0x9C, 0x58, 0xFF, 0xC9, 0x75, 0xFA, 0xF4], at: 0x1000)
    m.cpu.gpr[4] = 0x8000
    m.cpu.gpr[1] = 20
    #expect(m.run(from: 0x1000) == .hlt)
    m.enterSVM([.pushf, .hlt])
    m.cpu.gpr[1] = 20
    m.run(from: 0x1000)
    #expect(m.cause == .pushf && m.cpu.s.pointee.rip == 0x1000)
    m.enterSVM(.hlt)
    m.run(from: 0x1000)
    #expect(m.cause == .hlt)
    #expect(m.cpu.gpr[1] & 0xFFFF_FFFF == 0)
  }

  // MARK: VT-x

  private static let controls: [(UInt32, InterceptSet)] = [
    (PrimaryControls.interruptWindowExiting, .interruptWindow),
    (PrimaryControls.useTSCOffsetting, .offsetTSC),
    (PrimaryControls.hltExiting, .hlt), (PrimaryControls.invlpgExiting, [.invlpg, .invpcid]),
    (PrimaryControls.mwaitExiting, .mwait), (PrimaryControls.rdpmcExiting, .rdpmc),
    (PrimaryControls.rdtscExiting, [.rdtsc, .rdtscp]), (PrimaryControls.monitorExiting, .monitor),
    (PrimaryControls.nmiWindowExiting, .nmiWindow), (PrimaryControls.pauseExiting, .pause),
    (PrimaryControls.monitorTrapFlag, .monitorTrap),
  ]

  @Test func controlsBecomeIntercepts() {
    let m = TestMachine()
    for (control, intercept) in Self.controls {
      var controls = VMXControls()
      controls.primary = control
      m.cpu.vmxControls = controls
      #expect(m.cpu.s.pointee.intercepts.set == intercept)
    }
    var controls = VMXControls()
    controls.secondary = .max
    m.cpu.vmxControls = controls
    #expect(m.cpu.s.pointee.intercepts.set == [])
    controls.primary = PrimaryControls.secondaryControls
    m.cpu.vmxControls = controls
    #expect(
      m.cpu.s.pointee.intercepts.set == [
        .scaledTSC, .descriptorTables, .wbinvd, .pauseLoop, .rdrand, .rdseed, .busLock, .notify,
      ])
    controls = VMXControls()
    controls.pin = 0x16
    m.cpu.vmxControls = controls
    #expect(m.cpu.s.pointee.intercepts.set == [.cpuid, .invd, .xsetbv, .hypercall])
    #expect(m.cpu.s.pointee.intercepts.enabled == [])
    #expect(m.cpu.s.pointee.intercepts.msrLayout == .all)
  }

  /// Each reason belongs to one cause, but for those that the manual gives to several.
  @Test func reasonsOfCauses() {
    let m = TestMachine()
    var causes: [ExitReason: [ExitCause]] = [:]
    for cause in ExitCause.allCases {
      m.cpu.s.pointee.exit = ExitRecord(cause)
      causes[m.exitReason, default: []].append(cause)
    }
    causes[ExitReason(rawValue: 0xFFFF)] = nil
    let shared = causes.filter { $0.value.count > 1 }
    #expect(
      shared == [
        .exceptionOrNMI: [.exception, .nmi], .gdtrOrIDTRAccess: [.sgdt, .sidt, .lgdt, .lidt],
        .ldtrOrTRAccess: [.sldt, .str, .lldt, .ltr],
      ])
    #expect(causes.count == 58)
    #expect(causes[.hlt] == [.hlt] && causes[.eptViolation] == [.nestedFault])
  }
}
