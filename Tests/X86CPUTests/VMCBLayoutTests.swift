// SPDX-License-Identifier: Apache-2.0
//
// SVM's vocabulary against the manual's numbers (APM volume 2, appendix "VMCB Layout").

import Testing
import X86

@Suite struct VMCBLayoutTests {
  @Test func controlArea() {
    let places: [(VMCBField, UInt16)] = [
      (.controlRegisterIntercepts, 0x00), (.exceptionIntercepts, 0x08), (.intercepts3, 0x0C),
      (.pauseFilterCount, 0x3E), (.ioPermissionMap, 0x40), (.msrPermissionMap, 0x48),
      (.tscOffset, 0x50), (.asid, 0x58), (.tlbControl, 0x5C), (.virtualInterrupt, 0x60),
      (.interruptShadow, 0x68), (.exitCode, 0x70), (.exitInfo1, 0x78), (.exitInfo2, 0x80),
      (.exitInterruptInfo, 0x88), (.nestedControl, 0x90), (.eventInjection, 0xA8),
      (.nestedCR3, 0xB0), (.cleanBits, 0xC0), (.nextRIP, 0xC8),
    ]
    for (field, offset) in places { #expect(field.offset == offset) }
  }

  @Test func saveArea() {
    let places: [(VMCBField, UInt16)] = [
      (.selector(of: .es), 0x400), (.attributes(of: .cs), 0x412), (.limit(of: .ss), 0x424),
      (.base(of: .ds), 0x438), (.base(of: .gs), 0x458), (.gdtrLimit, 0x464),
      (.base(of: .ldtr), 0x478), (.idtrBase, 0x488), (.selector(of: .tr), 0x490), (.cpl, 0x4CB),
      (.efer, 0x4D0), (.cr4, 0x548), (.cr3, 0x550), (.cr0, 0x558), (.dr7, 0x560), (.dr6, 0x568),
      (.rflags, 0x570), (.rip, 0x578), (.rsp, 0x5D8), (.rax, 0x5F8), (.star, 0x600),
      (.kernelGSBase, 0x620), (.sysenterCS, 0x628), (.cr2, 0x640), (.guestPAT, 0x668),
      (.debugctl, 0x670),
    ]
    for (field, offset) in places { #expect(field.offset == offset) }
  }

  @Test func noTwoFieldsShareAByte() {
    var owners: [Int: String] = [:]
    for (name, field) in VMCBField.table {
      for byte in Int(field.offset)..<Int(field.offset) + Int(field.size) {
        #expect(owners[byte] == nil, "\(name) and \(owners[byte] ?? "") at \(byte)")
        owners[byte] = name
      }
      #expect(Int(field.offset) + Int(field.size) <= VMCBField.blockSize)
    }
  }

  @Test func exitCodes() {
    let codes: [(SVMExitCode, UInt64)] = [
      (.readCR(8), 0x08), (.writeCR(4), 0x14), (.readDR(7), 0x27), (.writeDR(0), 0x30),
      (.exception(14), 0x4E), (.interrupt, 0x60), (.virtualInterrupt, 0x64), (.cpuid, 0x72),
      (.iret, 0x74), (.hlt, 0x78), (.port, 0x7B), (.msr, 0x7C), (.shutdown, 0x7F),
      (.vmrun, 0x80), (.vmmcall, 0x81), (.rdtscp, 0x87), (.xsetbv, 0x8D), (.invpcid, 0xA2),
      (.nestedPageFault, 0x400), (.invalid, .max),
    ]
    for (code, number) in codes { #expect(code.rawValue == number) }
    #expect(SVMExitCode(intercept: .hlt) == .hlt && SVMExitCode(intercept: .xsetbv) == .xsetbv)
    #expect(SVMExitCode.exception(6).name == "VMEXIT_EXCP6" && SVMExitCode.hlt.name == "VMEXIT_HLT")
  }

  @Test func events() {
    let fault = GuestEvent(exception: 14, errorCode: 6, instructionLength: 0)
    #expect(SVMEvent(fault).rawValue == 0x6_8000_0B0E)
    for event in [
      GuestEvent(.externalInterrupt, vector: 0x30), .nmi, fault,
      GuestEvent(.softwareInterrupt, vector: 0x80, instructionLength: 2),
      GuestEvent(exception: 3, errorCode: nil, instructionLength: 1),
    ] {
      let back = GuestEvent(SVMEvent(event), instructionLength: event.instructionLength)
      #expect(back == event)
    }
    #expect(GuestEvent(SVMEvent(rawValue: 0x8000_0100), instructionLength: 0) == nil)
    #expect(GuestEvent(SVMEvent(rawValue: 0x0000_0030), instructionLength: 0) == nil)
  }

  @Test func information() {
    let port = SVMPortInfo(
      size: 2, addressSize: 4, isInput: true, isString: true, isRepeated: true, segment: .fs,
      port: 0x3F8)
    #expect(port.rawValue == 0x3F8_112D)
    #expect(port.size == 2 && port.addressSize == 4 && port.segment == .fs && port.port == 0x3F8)
    #expect(port.isInput && port.isString && port.isRepeated)
    let task = SVMTaskSwitchInfo(.jump, errorCode: 5, resumeFlag: true)
    #expect(task.rawValue == 1 << 48 | 1 << 44 | 1 << 38 | 5)
    #expect(task.source(interrupts: false) == .jump)
    #expect(SVMTaskSwitchInfo(rawValue: 0).source(interrupts: true) == .interrupt)
  }

  @Test func segmentAttributes() {
    #expect(SegmentAccessRights(rawValue: 0xA09B).vmcbAttributes == 0xA9B)
    #expect(SegmentAccessRights(vmcb: 0xC93).rawValue == 0xC093)
    // A segment that cannot be used has no bit for that: it is not present.
    #expect(SegmentAccessRights(vmcb: 0).isUnusable)
    #expect(SegmentAccessRights(rawValue: 0x1_C093).vmcbAttributes == 0xC13)
  }
}
