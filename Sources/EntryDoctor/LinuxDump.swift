// SPDX-License-Identifier: Apache-2.0
//
// Linux's dump of a VMCS after a failed entry. A line has several values; a name may depend on the
// text before it ("CS: sel=... attr=..."), and on the part of the dump. Values are hexadecimal,
// with or without 0x. Some fields are missing, such as the VMCS link pointer; rules about those are
// not checked.

import X86

enum LinuxDump {
  private static let parts = [
    "*** Guest State ***": "guest", "*** Host State ***": "host",
    "*** Control State ***": "control",
  ]

  static func isOne(_ text: String) -> Bool { text.contains("*** Guest State ***") }

  static func fields(_ text: String) -> [VMCSField: UInt64] {
    var fields: [VMCSField: UInt64] = [:]
    var part = ""
    var prefix = ""
    for line in text.split(separator: "\n") {
      if let start = parts.first(where: { line.contains($0.key) }) {
        part = start.value
        continue
      }
      // A line that begins with a blank continues the previous one.
      let content = withoutStamp(line)
      if content.first?.isWhitespace != true { prefix = "" }
      for (key, value) in values(content, &prefix) {
        guard let field = table["\(part) \(key)"] else { continue }
        fields[field] = value & VMCSFile.mask(field)
      }
    }
    return fields
  }

  /// Removes what dmesg and its readers prepend to a line.
  private static func withoutStamp(_ line: Substring) -> Substring {
    var rest = line
    if let end = rest.firstRange(of: "kvm_intel: ") { return rest[end.upperBound...] }
    if rest.first == "[", let end = rest.firstRange(of: "] ") { rest = rest[end.upperBound...] }
    return rest
  }

  /// "CS:   sel=0x10, attr=0x9b" is [("CS: sel", 0x10), ("CS: attr", 0x9b)].
  private static func values(
    _ line: Substring, _ prefix: inout String
  ) -> [(key: String, value: UInt64)] {
    var found: [(key: String, value: UInt64)] = []
    var rest = line
    while let sign = rest.firstIndex(of: "=") {
      var key = words(rest[..<sign])
      rest = rest[rest.index(after: sign)...].drop { $0 == " " }
      let token = rest.prefix { !$0.isWhitespace && $0 != "," }
      rest = rest[token.endIndex...]
      // A segment and its offset, or a prefix for the key that follows it.
      if let mark = key.firstRange(of: ": ") {
        prefix = String(key[..<mark.lowerBound])
        key = String(key[mark.upperBound...])
      }
      let name = prefix.isEmpty ? key : "\(prefix): \(key)"
      let numbers = token.split(separator: ":").map(number)
      if key == "CS:RIP", numbers.count == 2 {
        if let selector = numbers[0] { found.append(("CS", selector)) }
        if let offset = numbers[1] { found.append(("EIP", offset)) }
      } else if let value = numbers.first ?? nil {
        found.append((name, value))
      }
    }
    return found
  }

  /// Words separated by single blanks, without commas and remarks.
  private static func words(_ text: Substring) -> String {
    text.split { $0.isWhitespace || $0 == "," }.filter { !$0.hasPrefix("(") }
      .joined(separator: " ")
  }

  private static func number(_ text: Substring) -> UInt64? {
    UInt64(text.hasPrefix("0x") ? text.dropFirst(2) : text, radix: 16)
  }

  private static let table: [String: VMCSField] = {
    var table: [String: VMCSField] = [
      "guest CR0: actual": .guestCR0, "guest CR0: shadow": .cr0ReadShadow,
      "guest CR0: gh_mask": .cr0Mask, "guest CR4: actual": .guestCR4,
      "guest CR4: shadow": .cr4ReadShadow, "guest CR4: gh_mask": .cr4Mask,
      "guest CR3": .guestCR3, "guest PDPTR0": .guestPDPTE0, "guest PDPTR1": .guestPDPTE1,
      "guest PDPTR2": .guestPDPTE2, "guest PDPTR3": .guestPDPTE3, "guest RSP": .guestRSP,
      "guest RIP": .guestRIP, "guest RFLAGS": .guestRFLAGS, "guest DR7": .guestDR7,
      "guest Sysenter RSP": .guestSysenterESP, "guest CS": .guestSysenterCS,
      "guest EIP": .guestSysenterEIP, "guest EFER": .guestEFER, "guest PAT": .guestPAT,
      "guest DebugCtl": .guestDebugControl,
      "guest DebugExceptions": .guestPendingDebugExceptions,
      "guest PerfGlobCtl": .guestPerfGlobalControl,
      "guest Interruptibility": .guestInterruptibility,
      "guest ActivityState": .guestActivityState, "guest InterruptStatus": .guestInterruptStatus,
      "host RIP": .hostRIP, "host RSP": .hostRSP, "host CS": .hostCSSelector,
      "host SS": .hostSSSelector, "host DS": .hostDSSelector, "host ES": .hostESSelector,
      "host FS": .hostFSSelector, "host GS": .hostGSSelector, "host TR": .hostTRSelector,
      "host FSBase": .hostFSBase, "host GSBase": .hostGSBase, "host TRBase": .hostTRBase,
      "host GDTBase": .hostGDTRBase, "host IDTBase": .hostIDTRBase, "host CR0": .hostCR0,
      "host CR3": .hostCR3, "host CR4": .hostCR4, "host Sysenter RSP": .hostSysenterESP,
      "host EIP": .hostSysenterEIP, "host EFER": .hostEFER, "host PAT": .hostPAT,
      "host PerfGlobCtl": .hostPerfGlobalControl,
      "control PinBased": .pinBasedControls, "control CPUBased": .primaryControls,
      "control SecondaryExec": .secondaryControls, "control EntryControls": .entryControls,
      "control ExitControls": .exitControls, "control ExceptionBitmap": .exceptionBitmap,
      "control PFECmask": .pageFaultErrorCodeMask, "control PFECmatch": .pageFaultErrorCodeMatch,
      "control VMEntry: intr_info": .entryInterruptionInfo,
      "control VMEntry: errcode": .entryExceptionErrorCode,
      "control VMEntry: ilen": .entryInstructionLength,
      "control VMExit: intr_info": .exitInterruptionInfo,
      "control VMExit: errcode": .exitInterruptionErrorCode,
      "control VMExit: ilen": .exitInstructionLength,
      "control VMExit: reason": .exitReason, "control VMExit: qualification": .exitQualification,
      "control IDTVectoring: info": .idtVectoringInfo,
      "control IDTVectoring: errcode": .idtVectoringErrorCode,
      "control TSC Offset": .tscOffset, "control TSC Multiplier": .tscMultiplier,
      "control TPR Threshold": .tprThreshold, "control APIC-access addr": .apicAccessAddress,
      "control virt-APIC addr": .virtualAPICAddress,
      "control PostedIntrVec": .postedInterruptVector, "control EPT pointer": .eptPointer,
      "control PLE Gap": .pleGap, "control Window": .pleWindow,
      "control Virtual processor ID": .vpid,
    ]
    for (n, name) in ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"].enumerated() {
      let step = UInt32(truncatingIfNeeded: n) &* 2
      let columns: [(String, VMCSField)] = [
        ("sel", .guestESSelector), ("attr", .guestESAccessRights), ("limit", .guestESLimit),
        ("base", .guestESBase),
      ]
      for (column, first) in columns {
        table["guest \(name): \(column)"] = VMCSField(rawValue: first.rawValue &+ step)
      }
    }
    table["guest GDTR: limit"] = .guestGDTRLimit
    table["guest GDTR: base"] = .guestGDTRBase
    table["guest IDTR: limit"] = .guestIDTRLimit
    table["guest IDTR: base"] = .guestIDTRBase
    return table
  }()
}
