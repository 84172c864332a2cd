// SPDX-License-Identifier: Apache-2.0
//
// What comes first where an instruction of a guest of SVM both faults and exits (APM volume 2,
// "Instruction Intercepts").

import Support
import Testing
import X86
import X86CPU

@Suite struct SVMInterceptOrderTests {
  /// An instruction that is intercepted and would raise an exception, which is intercepted too.
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var code: [UInt8]
    var exit: SVMExitCode
    var prepare: @Sendable (SVMMachine) -> Void
    var testDescription: String { name }

    init(
      _ name: String, _ code: [UInt8], _ exit: SVMExitCode,
      _ prepare: @escaping @Sendable (SVMMachine) -> Void = { _ in }
    ) {
      (self.name, self.code, self.exit, self.prepare) = (name, code, exit, prepare)
    }
  }

  static let gp = SVMExitCode.exception(13)
  /// At CPL 3.
  @Sendable static func user(_ m: SVMMachine) {
    m.vmcb[.cpl] = 3
    m.vmcb[.selector(of: .cs)] = 0xB
    m.vmcb[.selector(of: .ss)] = 0x13
  }

  static let cases: [Case] = [
    Case("XSETBV's intercept is before #GP of RCX", [0x0F, 0x01, 0xD1], .xsetbv) { m in
      m.vmcb[.cr4] |= CR4.osxsave.rawValue
      m.cpu.gpr[1] = 5
    },
    Case("XSETBV's intercept is before #GP of CPL", [0x0F, 0x01, 0xD1], .xsetbv) { m in
      m.vmcb[.cr4] |= CR4.osxsave.rawValue
      user(m)
    },
    Case("XSETBV's #UD is before its intercept", [0x0F, 0x01, 0xD1], .exception(6)),
    Case("MONITOR's #GP is before its intercept", [0x0F, 0x01, 0xC8], gp) { $0.cpu.gpr[1] = 1 },
    Case("MONITOR's #PF is before its intercept", [0x0F, 0x01, 0xC8], .exception(14)) {
      $0.vmcb[.rax] = 0x4000_0000
    },
    Case("MWAIT's #GP is before its intercept", [0x0F, 0x01, 0xC9], gp) { $0.cpu.gpr[1] = 4 },
    Case(
      "MWAIT: the conditional intercept is the first", [0x0F, 0x01, 0xC8, 0x0F, 0x01, 0xC9],
      .armedMWAIT
    ) { m in
      m.intercept(.monitor, false)
      m.vmcb[.rax] = 0x4000
    },
    Case("MWAIT that is not armed", [0x0F, 0x01, 0xC9], .mwait),
    Case("VMRUN's #GP of rAX is before its intercept", [0x0F, 0x01, 0xD8], gp) {
      $0.vmcb[.rax] = 0x3010
    },
    Case("VMLOAD's #GP of rAX is before its intercept", [0x0F, 0x01, 0xDA], gp) {
      $0.vmcb[.rax] = 1 << 60
    },
    Case("VMSAVE's #GP of rAX is before its intercept", [0x0F, 0x01, 0xDB], gp) {
      $0.vmcb[.rax] = 1
    },
    Case("HLT's #GP is before its intercept", [0xF4], gp, user),
    Case("INVD's #GP is before its intercept", [0x0F, 0x08], gp, user),
    Case("WBINVD's #GP is before its intercept", [0x0F, 0x09], gp, user),
    Case("INVLPG's #GP is before its intercept", [0x0F, 0x01, 0x38], gp, user),
    Case("CLGI's #GP is before its intercept", [0x0F, 0x01, 0xDD], gp, user),
    Case("LGDT's #GP is before its intercept", [0x0F, 0x01, 0x10], gp, user),
    Case("LGDT's intercept is before memory", [0x0F, 0x01, 0x10], .gdtrWrite) {
      $0.vmcb[.rax] = 0x4000_0000
    },
    Case("RDTSC's #GP is before its intercept", [0x0F, 0x31], gp) { m in
      m.vmcb[.cr4] |= CR4.tsd.rawValue
      user(m)
    },
    Case("RDMSR's #GP of CPL is before its intercept", [0x0F, 0x32], gp, user),
    Case("IRET's intercept is before everything", [0x48, 0xCF], .iret) {
      $0.vmcb[.rsp] = 0x4000_0000
    },
    Case("POPF's intercept is before memory", [0x9D], .popf) { $0.vmcb[.rsp] = 0x4000_0000 },
    Case("PUSHF's intercept is before memory", [0x9C], .pushf) { $0.vmcb[.rsp] = 0x4000_0000 },
    Case("INT n's intercept is before its gate", [0xCD, 0x21], .softwareInterrupt) {
      $0.vmcb[.idtrLimit] = 0
    },
    Case("MOV to CR4: reserved bits are before the intercept", [0x0F, 0x22, 0xE0], gp) {
      $0.vmcb[.rax] = 1 << 40
    },
    Case("MOV to CR0: illegal combinations are before the intercept", [0x0F, 0x22, 0xC0], gp) {
      $0.vmcb[.rax] = CR0.pg.rawValue
    },
    Case("MOV to DR4 with CR4.DE: #UD is before the intercept", [0x0F, 0x23, 0xE0], .exception(6)) {
      $0.vmcb[.cr4] |= CR4.de.rawValue
    },
    // LMSW [RAX].
    Case("LMSW's intercept is before memory", [0x0F, 0x01, 0x30], .writeCR(0)) {
      $0.vmcb[.rax] = 0x4000_0000
    },
    Case("LMSW: the selective intercept takes any value", [0x0F, 0x01, 0xF0], .selectiveCR0Write) {
      m in
      m.vmcb[.controlRegisterIntercepts] = 0
      m.vmcb[.rax] = m.vmcb[.cr0] & 0xF
    },
    Case(
      "MOV to CR0: the other intercept is before the selective one", [0x0F, 0x22, 0xC0],
      .writeCR(0)
    ) { $0.vmcb[.rax] = $0.vmcb[.cr0] | CR0.am.rawValue },
  ]

  @Test(arguments: cases.indices) func first(_ n: Int) throws {
    let one = Self.cases[n]
    let m = try SVMMachine()
    m.intercept(SVMIntercepts(rawValue: .max).subtracting([.interrupt, .ports, .msrs]))
    m.vmcb[.exceptionIntercepts] = 1 << 6 | 1 << 13 | 1 << 14
    m.vmcb[.controlRegisterIntercepts] = 1 << 16 | 1 << 20
    m.vmcb[.debugRegisterIntercepts] = 0xFFFF_FFFF
    for register in 1...2 { m.cpu.gpr[register] = 0 }
    m.vmcb[.rax] = 0x3000
    m.test.load(one.code, at: 0x1000)
    one.prepare(m)
    let exit = try m.run()
    #expect(exit == one.exit, "\(one.name): \(exit.name)")
  }
}
