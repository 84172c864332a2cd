// SPDX-License-Identifier: Apache-2.0
extension OpcodeText {
  static let x87: StaticString = ""
  static let mmx: StaticString = ""
  static let sse: StaticString = ""
  static let sse0F38: StaticString = ""
  static let sse0F3A: StaticString = ""
  static let vex0F: StaticString = ""
  static let maskRegisters: StaticString = ""
  static let vex0F38: StaticString = ""
  static let vexFMA: StaticString = ""
  static let vex0F3A: StaticString = ""
  static let maskShifts: StaticString = ""
  static let evex0F: StaticString = ""
  static let evex0F38: StaticString = ""
  static let evexFMA: StaticString = ""
  static let evex0F3A: StaticString = ""
}
