// SPDX-License-Identifier: Apache-2.0
//
// Exit qualifications against the manual's bit numbers, and events and causes that have no vendor.

import Testing
import X86

@Suite struct ExitRecordTests {
  @Test func ioQualifications() {
    let plain = IOQualification(size: 1, isInput: false, port: 0x3F8)
    #expect(plain.rawValue == 0x3F8_0000)
    let full = IOQualification(
      size: 4, isInput: true, isString: true, isRepeated: true, isImmediate: true, port: 0xFFFF)
    #expect(full.rawValue == 0xFFFF_007B)
    #expect(full.size == 4 && full.isInput && full.isString && full.isRepeated)
    #expect(full.isImmediate && full.port == 0xFFFF)
    #expect(!plain.isInput && !plain.isString && !plain.isRepeated && plain.size == 1)
  }

  @Test func controlRegisterQualifications() {
    let toCR4 = ControlRegisterQualification(.movTo, register: 4, general: 15)
    #expect(toCR4.rawValue == 0xF04)
    let fromCR8 = ControlRegisterQualification(.movFrom, register: 8, general: 3)
    #expect(fromCR8.rawValue == 0x318)
    #expect(fromCR8.access == .movFrom && fromCR8.register == 8 && fromCR8.general == 3)
    #expect(ControlRegisterQualification(.clts).rawValue == 0x20)
    let lmsw = ControlRegisterQualification(lmsw: 0xABCD, fromMemory: true)
    #expect(lmsw.rawValue == 0xABCD_0070)
    #expect(lmsw.access == .lmsw && lmsw.isFromMemory && lmsw.source == 0xABCD)
  }

  @Test func otherQualifications() {
    let debug = DebugRegisterQualification(register: 7, isRead: true, general: 9)
    #expect(debug.rawValue == 0x917)
    #expect(debug.register == 7 && debug.isRead && debug.general == 9)
    let task = TaskSwitchQualification(selector: 0x28, source: .interrupt)
    #expect(task.rawValue == 0xC000_0028)
    #expect(task.selector == 0x28 && task.source == .interrupt)
    let violation: EPTViolationQualification = [
      .write, .rights(EPTEntry.read | EPTEntry.execute | EPTEntry.pageSize), .linearIsValid,
      .isTranslated,
    ]
    #expect(violation.rawValue == 0x1AA)
    #expect(NotifyQualification.nmiUnblocking.rawValue == 0x1000)
  }

  @Test func anyQualificationCanBeRead() {
    for value in [0, UInt64.max, 0x8000_0000_0000_0000, 0xAAAA_AAAA_AAAA_AAAA] {
      #expect((1...8).contains(IOQualification(rawValue: value).size))
      #expect(ControlRegisterQualification(rawValue: value).register < 16)
      #expect(DebugRegisterQualification(rawValue: value).general < 16)
      #expect(TaskSwitchQualification(rawValue: value).source.rawValue == value >> 30 & 3)
    }
  }

  static let kinds: [(GuestEvent.Kind, UInt32)] = [
    (.externalInterrupt, 0), (.nmi, 2), (.hardwareException, 3), (.softwareInterrupt, 4),
    (.privilegedSoftwareException, 5), (.softwareException, 6),
  ]

  @Test(arguments: kinds) func eventsInVMXFormat(kind: GuestEvent.Kind, type: UInt32) {
    for code in [nil, 0, 0xFFFF] as [UInt32?] {
      let event = GuestEvent(kind, vector: 0x42, errorCode: code)
      let info = InterruptionInfo(event)
      #expect(info.rawValue == 1 << 31 | (code == nil ? 0 : 1 << 11) | type << 8 | 0x42)
      #expect(GuestEvent(info, errorCode: code ?? 7, instructionLength: 0) == event)
    }
    let length = GuestEvent(
      InterruptionInfo(GuestEvent(kind, vector: 3)), errorCode: 0, instructionLength: 2)
    #expect(length?.instructionLength == (type >= 4 ? 2 : 0))
  }

  @Test func noEventOfTheGuests() {
    for raw in [0, 0x8000_0700, 0x8000_0100] as [UInt32] {
      let info = InterruptionInfo(rawValue: raw)
      #expect(GuestEvent(info, errorCode: 0, instructionLength: 0) == nil)
    }
  }

  @Test func causesFillATable() {
    #expect(GuestExit.Cause.allCases.count == GuestExit.Cause.count)
    #expect(GuestExit.Cause.allCases.map { Int($0.rawValue) } == Array(0..<GuestExit.Cause.count))
    // One is told by what it does, which other exits do as well.
    let done = InterceptedInstruction.controlRegisterWrite
    #expect(GuestExit.instruction(done).cause == .controlRegister)
    for instruction in InterceptedInstruction.allCases where instruction != done {
      #expect("\(GuestExit.instruction(instruction).cause)" == "\(instruction)")
    }
    let port = PortExit(number: 1, size: 1, isInput: true)
    #expect(GuestExit.port(port).cause == .port)
    #expect(GuestExit.handled(.controlRegister).cause == .controlRegister)
  }
}
