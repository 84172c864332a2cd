// SPDX-License-Identifier: Apache-2.0
//
// A field's value in words: names of its bits, types of segments, events and reasons.

import X86
import X86CPU

enum FieldText {
  static func of(_ field: VMCSField, _ value: UInt64) -> String {
    let word = UInt32(truncatingIfNeeded: value)
    switch field {
    case .exitReason: return exitReason(word)
    case .vmInstructionError:
      return VMXInstructionError(rawValue: word).map { "\($0)" } ?? (value == 0 ? "none" : "")
    case .entryInterruptionInfo, .exitInterruptionInfo, .idtVectoringInfo:
      return event(InterruptionInfo(rawValue: word))
    case .guestActivityState:
      return ["active", "HLT", "shutdown", "wait-for-SIPI"].dropFirst(Int(word & 3)).first.flatMap {
        word < 4 ? $0 : nil
      } ?? "not supported"
    case .eptPointer: return eptPointer(value)
    default: break
    }
    guard let names = BitNames.of(field) else { return "" }
    // A mask has most bits set; a control's required bits are not worth listing.
    if field == .cr0Mask || field == .cr4Mask { return names.list(value) }
    if let fixed = required[field] { return names.text(value & ~UInt64(fixed)) }
    let isSegment = (0x4814...0x4822).contains(field.rawValue)
    return isSegment ? rights(value, names, system: value & 1 << 4 == 0) : names.text(value)
  }

  static func of(_ field: VMCBField, _ value: UInt64) -> String {
    switch field {
    case .exitCode: return SVMExitCode(rawValue: value).name
    case .eventInjection, .exitInterruptInfo: return event(SVMEvent(rawValue: value))
    case .tlbControl:
      let names: [UInt64: String] = [
        0: "nothing", 1: "flush all", 3: "flush this guest's",
        7: "flush this guest's non-global",
      ]
      return names[value] ?? "reserved"
    case .virtualInterrupt: return virtualInterrupt(value)
    default: break
    }
    guard let names = BitNames.of(field) else { return "" }
    let isSegment = SegmentRegister.allCases.contains {
      VMCBField.attributes(of: $0).offset == field.offset
    }
    return isSegment ? rights(value, names, system: value & 1 << 4 == 0) : names.text(value)
  }

  private static let required: [VMCSField: UInt32] = [
    .pinBasedControls: VMXCapabilities.pin.required,
    .primaryControls: VMXCapabilities.primary.required,
    .exitControls: VMXCapabilities.exit.required,
    .entryControls: VMXCapabilities.entry.required,
  ]

  // MARK: Kinds of fields

  /// Type, DPL and the other bits of a segment.
  private static func rights(_ value: UInt64, _ names: BitNames, system: Bool) -> String {
    let type = Int(value & 0xF)
    let kinds =
      system
      ? [
        "reserved", "available 16-bit TSS", "LDT", "busy 16-bit TSS", "16-bit call gate",
        "task gate", "16-bit interrupt gate", "16-bit trap gate", "reserved", "available TSS",
        "reserved", "busy TSS", "call gate", "reserved", "interrupt gate", "trap gate",
      ]
      : ["data", "data, expand-down", "code", "code, conforming"].flatMap { kind in
        let may = kind.hasPrefix("code") ? "readable" : "writable"
        return ["\(kind)", "\(kind), accessed", "\(kind), \(may)", "\(kind), \(may), accessed"]
      }
    let rest = names.text(value & ~0x6F)
    return "type \(type) (\(kinds[type])), DPL \(value >> 5 & 3)"
      + (rest.isEmpty ? "" : ", \(rest)")
  }

  private static func exitReason(_ word: UInt32) -> String {
    let name = ExitReason(rawValue: UInt16(truncatingIfNeeded: word)).name
    return word & ExitReason.entryFailureBit != 0 ? "VM-entry failure: \(name)" : name
  }

  private static func event(_ info: InterruptionInfo) -> String {
    guard info.isValid else { return "not valid" }
    let type = info.type.map { "\($0)" } ?? "type \(info.typeBits)"
    return "\(type), vector \(info.vector)" + (info.hasErrorCode ? ", with an error code" : "")
  }

  private static func event(_ event: SVMEvent) -> String {
    guard event.isValid else { return "not valid" }
    let type = event.type.map { "\($0)" } ?? "reserved type"
    return "\(type), vector \(event.vector)"
  }

  private static func eptPointer(_ value: UInt64) -> String {
    let type = [0: "uncacheable", 6: "write-back"][value & 7] ?? "memory type \(value & 7)"
    let flags = value & 1 << 6 != 0 ? ", accessed and dirty flags" : ""
    return "\(type), \((value >> 3 & 7) &+ 1) levels\(flags)"
  }

  private static func virtualInterrupt(_ value: UInt64) -> String {
    let word = VirtualInterrupt(rawValue: value)
    let bits = BitNames.virtualInterrupt.text(value & 0xFF00_FF00 | value & 1 << 20)
    return "V_TPR \(word.tpr), priority \(word.priority), vector \(word.vector)"
      + (bits.isEmpty ? "" : ", \(bits)")
  }
}
