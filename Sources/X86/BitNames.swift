// SPDX-License-Identifier: Apache-2.0
//
// Names of the bits of control structures' fields, for reports. Each table is a list of bits with
// the manuals' names; a bit without a name is reserved or unknown here.
//
//     BitNames.cr0.text(0x8000_0031)       // "PE, ET, NE, PG"
//     BitNames.pin.name(of: 3)             // "NMI exiting"

public struct BitNames: Sendable {
  /// No names.
  public static let none = BitNames([])

  /// From bit 0 to 63; empty: no name.
  private let names: [String]

  init(_ rows: [(bit: Int, name: String)]) {
    var names = [String](repeating: "", count: 64)
    for (bit, name) in rows where names.indices.contains(bit) { names[bit] = name }
    self.names = names
  }

  /// Names from bit 0 on.
  init(from first: Int = 0, _ list: [String]) {
    self.init(list.enumerated().map { (first &+ $0.offset, $0.element) })
  }

  public func name(of bit: Int) -> String? {
    guard names.indices.contains(bit), !names[bit].isEmpty else { return nil }
    return names[bit]
  }

  /// The set bits, by name or number.
  public func text(_ value: UInt64) -> String {
    (0..<64).filter { value >> UInt64($0) & 1 != 0 }
      .map { name(of: $0) ?? "bit \($0)" }.joined(separator: ", ")
  }

  /// Bits as a list of numbers with their names: "bit 3 (NMI exiting)", "bits 63:32".
  public func list(_ bits: UInt64) -> String {
    var parts: [String] = []
    var bit = 0
    while bit < 64 {
      guard bits >> UInt64(bit) & 1 != 0 else {
        bit &+= 1
        continue
      }
      var last = bit
      while last < 63, bits >> UInt64(last &+ 1) & 1 != 0 { last &+= 1 }
      if last &- bit > 1 {
        parts.append("bits \(last):\(bit)")
      } else {
        parts += (bit...max(bit, last)).map { n in
          "bit \(n)" + (name(of: n).map { " (\($0))" } ?? "")
        }
      }
      bit = last &+ 1
    }
    return parts.joined(separator: ", ")
  }
}

// MARK: Registers

extension BitNames {
  public static let cr0 = BitNames([
    (0, "PE"), (1, "MP"), (2, "EM"), (3, "TS"), (4, "ET"), (5, "NE"), (16, "WP"), (18, "AM"),
    (29, "NW"), (30, "CD"), (31, "PG"),
  ])
  public static let cr4 = BitNames([
    "VME", "PVI", "TSD", "DE", "PSE", "PAE", "MCE", "PGE", "PCE", "OSFXSR", "OSXMMEXCPT", "UMIP",
    "LA57", "VMXE", "SMXE", "", "FSGSBASE", "PCIDE", "OSXSAVE", "KL", "SMEP", "SMAP", "PKE",
    "CET", "PKS", "UINTR",
  ])
  public static let efer = BitNames([
    (0, "SCE"), (8, "LME"), (10, "LMA"), (11, "NXE"), (12, "SVME"), (13, "LMSLE"), (14, "FFXSR"),
    (15, "TCE"),
  ])
  public static let rflags = BitNames([
    (0, "CF"), (1, "fixed 1"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"),
    (10, "DF"), (11, "OF"), (12, "IOPL bit 0"), (13, "IOPL bit 1"), (14, "NT"), (16, "RF"),
    (17, "VM"), (18, "AC"), (19, "VIF"), (20, "VIP"), (21, "ID"),
  ])
  public static let dr6 = BitNames([
    (0, "B0"), (1, "B1"), (2, "B2"), (3, "B3"), (11, "BLD"), (13, "BD"), (14, "BS"), (15, "BT"),
    (16, "RTM"),
  ])
  public static let dr7 = BitNames([
    (0, "L0"), (1, "G0"), (2, "L1"), (3, "G1"), (4, "L2"), (5, "G2"), (6, "L3"), (7, "G3"),
    (8, "LE"), (9, "GE"), (10, "fixed 1"), (11, "RTM"), (13, "GD"),
  ])
  public static let debugControl = BitNames([
    "LBR", "BTF", "BLD", "", "", "", "TR", "BTS", "BTINT", "BTS_OFF_OS", "BTS_OFF_USR",
    "FREEZE_LBRS_ON_PMI", "FREEZE_PERFMON_ON_PMI", "ENABLE_UNCORE_PMI", "FREEZE_WHILE_SMM", "RTM",
  ])
  public static let exceptions = BitNames([
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "vector 9", "#TS", "#NP", "#SS",
    "#GP", "#PF", "vector 15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
  ])
  /// Access rights in a VMCS's format.
  public static let accessRights = BitNames([
    (4, "S"), (7, "P"), (12, "AVL"), (13, "L"), (14, "D/B"), (15, "G"), (16, "unusable"),
  ])
  /// Attributes in a VMCB's format.
  public static let attributes = BitNames([
    (4, "S"), (7, "P"), (8, "AVL"), (9, "L"), (10, "D/B"), (11, "G"),
  ])
}

// MARK: VMCS

extension BitNames {
  public static let pin = BitNames([
    (0, "external-interrupt exiting"), (3, "NMI exiting"), (5, "virtual NMIs"),
    (6, "activate VMX-preemption timer"), (7, "process posted interrupts"),
  ])
  public static let primary = BitNames([
    (2, "interrupt-window exiting"), (3, "use TSC offsetting"), (7, "HLT exiting"),
    (9, "INVLPG exiting"), (10, "MWAIT exiting"), (11, "RDPMC exiting"), (12, "RDTSC exiting"),
    (15, "CR3-load exiting"), (16, "CR3-store exiting"), (17, "activate tertiary controls"),
    (19, "CR8-load exiting"), (20, "CR8-store exiting"), (21, "use TPR shadow"),
    (22, "NMI-window exiting"), (23, "MOV-DR exiting"), (24, "unconditional I/O exiting"),
    (25, "use I/O bitmaps"), (27, "monitor trap flag"), (28, "use MSR bitmaps"),
    (29, "MONITOR exiting"), (30, "PAUSE exiting"), (31, "activate secondary controls"),
  ])
  public static let secondary = BitNames([
    "virtualize APIC accesses", "enable EPT", "descriptor-table exiting", "enable RDTSCP",
    "virtualize x2APIC mode", "enable VPID", "WBINVD exiting", "unrestricted guest",
    "APIC-register virtualization", "virtual-interrupt delivery", "PAUSE-loop exiting",
    "RDRAND exiting", "enable INVPCID", "enable VM functions", "VMCS shadowing",
    "enable ENCLS exiting", "RDSEED exiting", "enable PML", "EPT-violation #VE",
    "conceal VMX from PT", "enable XSAVES/XRSTORS", "PASID translation",
    "mode-based execute control for EPT", "sub-page write permissions for EPT",
    "Intel PT uses guest physical addresses", "use TSC scaling", "enable user wait and pause",
    "enable PCONFIG", "enable ENCLV exiting", "", "VMM bus-lock detection", "instruction timeout",
  ])
  public static let exit = BitNames([
    (2, "save debug controls"), (9, "host address-space size"),
    (12, "load IA32_PERF_GLOBAL_CTRL"), (15, "acknowledge interrupt on exit"),
    (18, "save IA32_PAT"), (19, "load IA32_PAT"), (20, "save IA32_EFER"), (21, "load IA32_EFER"),
    (22, "save VMX-preemption timer value"), (23, "clear IA32_BNDCFGS"),
    (24, "conceal VMX from PT"), (25, "clear IA32_RTIT_CTL"), (26, "clear IA32_LBR_CTL"),
    (27, "clear UINV"), (28, "load CET state"), (29, "load PKRS"),
    (30, "save IA32_PERF_GLOBAL_CTRL"), (31, "activate secondary controls"),
  ])
  public static let entry = BitNames([
    (2, "load debug controls"), (9, "IA-32e mode guest"), (10, "entry to SMM"),
    (11, "deactivate dual-monitor treatment"), (13, "load IA32_PERF_GLOBAL_CTRL"),
    (14, "load IA32_PAT"), (15, "load IA32_EFER"), (16, "load IA32_BNDCFGS"),
    (17, "conceal VMX from PT"), (18, "load IA32_RTIT_CTL"), (19, "load UINV"),
    (20, "load CET state"), (21, "load guest IA32_LBR_CTL"), (22, "load PKRS"),
  ])
  public static let interruptibility = BitNames([
    "blocking by STI", "blocking by MOV SS", "blocking by SMI", "blocking by NMI",
    "enclave interruption",
  ])
  public static let pendingDebug = BitNames([
    (0, "B0"), (1, "B1"), (2, "B2"), (3, "B3"), (12, "enabled breakpoint"), (14, "BS"),
    (16, "RTM"),
  ])

  /// The bits of a VMCS's field, if it consists of bits.
  public static func of(_ field: VMCSField) -> BitNames? { vmcs[field] }

  private static let vmcs: [VMCSField: BitNames] = {
    var table: [VMCSField: BitNames] = [
      .pinBasedControls: pin, .primaryControls: primary, .secondaryControls: secondary,
      .exitControls: exit, .entryControls: entry, .exceptionBitmap: exceptions,
      .guestCR0: cr0, .hostCR0: cr0, .cr0Mask: cr0, .cr0ReadShadow: cr0,
      .guestCR4: cr4, .hostCR4: cr4, .cr4Mask: cr4, .cr4ReadShadow: cr4,
      .guestEFER: efer, .hostEFER: efer, .guestRFLAGS: rflags, .guestDR7: dr7,
      .guestDebugControl: debugControl, .guestInterruptibility: interruptibility,
      .guestPendingDebugExceptions: pendingDebug,
    ]
    for n in UInt32(0)..<8 {
      table[VMCSField(rawValue: VMCSField.guestESAccessRights.rawValue &+ n &* 2)] = accessRights
    }
    return table
  }()
}

// MARK: VMCB

extension BitNames {
  public static let controlRegisterIntercepts = BitNames(
    (0..<16).map { "reads of CR\($0)" } + (0..<16).map { "writes of CR\($0)" })
  public static let debugRegisterIntercepts = BitNames(
    (0..<16).map { "reads of DR\($0)" } + (0..<16).map { "writes of DR\($0)" })
  public static let intercepts3 = BitNames((0..<32).map { intercept(0x60 &+ $0) })
  public static let intercepts4 = BitNames(
    (0..<15).map { intercept(0x80 &+ $0) } + ["EFER write"]
      + (0..<16).map { "writes of CR\($0) (after)" })
  public static let intercepts5 = BitNames([
    "INVLPGB", "illegal INVLPGB", "INVPCID", "MCOMMIT", "TLBSYNC", "bus lock", "idle HLT",
  ])
  public static let virtualInterrupt = BitNames([
    (8, "V_IRQ"), (9, "VGIF"), (11, "V_NMI"), (12, "V_NMI_MASK"), (20, "V_IGN_TPR"),
    (24, "V_INTR_MASKING"), (25, "VGIF enabled"), (26, "V_NMI enabled"),
    (30, "x2AVIC enabled"), (31, "AVIC enabled"),
  ])
  public static let interruptShadow = BitNames(["INTERRUPT_SHADOW", "GUEST_INTERRUPT_MASK"])
  public static let nestedControl = BitNames([
    "NP_ENABLE", "SEV", "SEV-ES", "guest-mode execute trap", "SSS check",
    "virtual transparent "
      + "encryption", "read-only guest page tables", "INVLPGB/TLBSYNC",
  ])
  public static let virtualizationControl = BitNames([
    "LBR_VIRTUALIZATION_ENABLE", "virtual VMLOAD and VMSAVE", "IBS virtualization",
    "PMC virtualization",
  ])
  public static let cleanBits = BitNames([
    "intercepts", "permission maps", "ASID", "virtual interrupt", "nested paging",
    "control registers", "debug registers", "descriptor tables", "segments", "CR2", "LBR", "AVIC",
    "CET",
  ])

  /// The intercept with an exit code, without the code's prefix.
  private static func intercept(_ code: UInt64) -> String {
    String(SVMExitCode(rawValue: code).name.trimmingPrefix("VMEXIT_"))
  }

  /// The bits of a VMCB's field, if it consists of bits.
  public static func of(_ field: VMCBField) -> BitNames? { vmcb[field.offset] }

  private static let vmcb: [UInt16: BitNames] = {
    let rows: [(VMCBField, BitNames)] = [
      (.controlRegisterIntercepts, controlRegisterIntercepts),
      (.debugRegisterIntercepts, debugRegisterIntercepts), (.exceptionIntercepts, exceptions),
      (.intercepts3, intercepts3), (.intercepts4, intercepts4), (.intercepts5, intercepts5),
      (.virtualInterrupt, virtualInterrupt), (.interruptShadow, interruptShadow),
      (.nestedControl, nestedControl), (.virtualizationControl, virtualizationControl),
      (.cleanBits, cleanBits), (.cr0, cr0), (.cr4, cr4), (.efer, efer), (.rflags, rflags),
      (.dr6, dr6), (.dr7, dr7), (.debugctl, debugControl),
    ]
    var table = Dictionary(
      rows.map { ($0.0.offset, $0.1) }, uniquingKeysWith: { first, _ in first })
    for register in SegmentRegister.allCases {
      table[VMCBField.attributes(of: register).offset] = attributes
    }
    return table
  }()
}
