// SPDX-License-Identifier: Apache-2.0
//
// Names of VMCS fields from the manual (SDM volume 3, appendix "Field Encoding in VMCS"), for
// reports and for VMCSs saved as text. Includes fields that this processor lacks, because a saved
// VMCS may be another's.
//
//     VMCSField.guestRIP.name              // "guest RIP"
//     VMCSField(named: "guest rip")        // .guestRIP

extension VMCSField {
  /// The field's name; its encoding if the manual has none.
  public var name: String {
    Self.names[self] ?? "field 0x" + String(rawValue, radix: 16, uppercase: true)
  }

  /// The field with a name; case is ignored.
  public init?(named name: String) {
    guard let field = Self.byName[name.lowercased()] else { return nil }
    self = field
  }

  private static let names = Dictionary(
    table.map { ($0.field, $0.name) }, uniquingKeysWith: { first, _ in first })
  private static let byName = Dictionary(
    table.map { ($0.name.lowercased(), $0.field) }, uniquingKeysWith: { first, _ in first })

  /// Every field with its name, area by area.
  public static let table: [(name: String, field: VMCSField)] =
    guestState + hostState + controls + exitInformation

  private static func row(_ encoding: UInt32, _ name: String) -> (name: String, field: VMCSField) {
    (name, VMCSField(rawValue: encoding))
  }

  /// The guest-state area.
  public static let guestState: [(name: String, field: VMCSField)] = [
    row(0x6800, "guest CR0"),
    row(0x6802, "guest CR3"),
    row(0x6804, "guest CR4"),
    row(0x681A, "guest DR7"),
    row(0x681C, "guest RSP"),
    row(0x681E, "guest RIP"),
    row(0x6820, "guest RFLAGS"),
    row(0x0800, "guest ES selector"),
    row(0x6806, "guest ES base"),
    row(0x4800, "guest ES limit"),
    row(0x4814, "guest ES access rights"),
    row(0x0802, "guest CS selector"),
    row(0x6808, "guest CS base"),
    row(0x4802, "guest CS limit"),
    row(0x4816, "guest CS access rights"),
    row(0x0804, "guest SS selector"),
    row(0x680A, "guest SS base"),
    row(0x4804, "guest SS limit"),
    row(0x4818, "guest SS access rights"),
    row(0x0806, "guest DS selector"),
    row(0x680C, "guest DS base"),
    row(0x4806, "guest DS limit"),
    row(0x481A, "guest DS access rights"),
    row(0x0808, "guest FS selector"),
    row(0x680E, "guest FS base"),
    row(0x4808, "guest FS limit"),
    row(0x481C, "guest FS access rights"),
    row(0x080A, "guest GS selector"),
    row(0x6810, "guest GS base"),
    row(0x480A, "guest GS limit"),
    row(0x481E, "guest GS access rights"),
    row(0x080C, "guest LDTR selector"),
    row(0x6812, "guest LDTR base"),
    row(0x480C, "guest LDTR limit"),
    row(0x4820, "guest LDTR access rights"),
    row(0x080E, "guest TR selector"),
    row(0x6814, "guest TR base"),
    row(0x480E, "guest TR limit"),
    row(0x4822, "guest TR access rights"),
    row(0x6816, "guest GDTR base"),
    row(0x4810, "guest GDTR limit"),
    row(0x6818, "guest IDTR base"),
    row(0x4812, "guest IDTR limit"),
    row(0x2802, "guest IA32_DEBUGCTL"),
    row(0x482A, "guest IA32_SYSENTER_CS"),
    row(0x6824, "guest IA32_SYSENTER_ESP"),
    row(0x6826, "guest IA32_SYSENTER_EIP"),
    row(0x2804, "guest IA32_PAT"),
    row(0x2806, "guest IA32_EFER"),
    row(0x2808, "guest IA32_PERF_GLOBAL_CTRL"),
    row(0x2812, "guest IA32_BNDCFGS"),
    row(0x2814, "guest IA32_RTIT_CTL"),
    row(0x2816, "guest IA32_LBR_CTL"),
    row(0x2818, "guest IA32_PKRS"),
    row(0x6828, "guest IA32_S_CET"),
    row(0x682A, "guest SSP"),
    row(0x682C, "guest IA32_INTERRUPT_SSP_TABLE_ADDR"),
    row(0x280A, "guest PDPTE0"),
    row(0x280C, "guest PDPTE1"),
    row(0x280E, "guest PDPTE2"),
    row(0x2810, "guest PDPTE3"),
    row(0x4826, "guest activity state"),
    row(0x4824, "guest interruptibility state"),
    row(0x6822, "guest pending debug exceptions"),
    row(0x2800, "VMCS link pointer"),
    row(0x482E, "VMX-preemption timer value"),
    row(0x0810, "guest interrupt status"),
    row(0x0812, "PML index"),
    row(0x0814, "guest UINV"),
    row(0x4828, "guest SMBASE"),
  ]

  /// The host-state area.
  public static let hostState: [(name: String, field: VMCSField)] = [
    row(0x6C00, "host CR0"),
    row(0x6C02, "host CR3"),
    row(0x6C04, "host CR4"),
    row(0x6C14, "host RSP"),
    row(0x6C16, "host RIP"),
    row(0x0C00, "host ES selector"),
    row(0x0C02, "host CS selector"),
    row(0x0C04, "host SS selector"),
    row(0x0C06, "host DS selector"),
    row(0x0C08, "host FS selector"),
    row(0x0C0A, "host GS selector"),
    row(0x0C0C, "host TR selector"),
    row(0x6C06, "host FS base"),
    row(0x6C08, "host GS base"),
    row(0x6C0A, "host TR base"),
    row(0x6C0C, "host GDTR base"),
    row(0x6C0E, "host IDTR base"),
    row(0x4C00, "host IA32_SYSENTER_CS"),
    row(0x6C10, "host IA32_SYSENTER_ESP"),
    row(0x6C12, "host IA32_SYSENTER_EIP"),
    row(0x2C00, "host IA32_PAT"),
    row(0x2C02, "host IA32_EFER"),
    row(0x2C04, "host IA32_PERF_GLOBAL_CTRL"),
    row(0x2C06, "host IA32_PKRS"),
    row(0x6C18, "host IA32_S_CET"),
    row(0x6C1A, "host SSP"),
    row(0x6C1C, "host IA32_INTERRUPT_SSP_TABLE_ADDR"),
  ]

  /// The VM-execution, VM-exit and VM-entry control fields.
  public static let controls: [(name: String, field: VMCSField)] = [
    row(0x4000, "pin-based VM-execution controls"),
    row(0x4002, "primary processor-based VM-execution controls"),
    row(0x401E, "secondary processor-based VM-execution controls"),
    row(0x2034, "tertiary processor-based VM-execution controls"),
    row(0x4004, "exception bitmap"),
    row(0x4006, "page-fault error-code mask"),
    row(0x4008, "page-fault error-code match"),
    row(0x2000, "address of I/O bitmap A"),
    row(0x2002, "address of I/O bitmap B"),
    row(0x2004, "address of MSR bitmaps"),
    row(0x2010, "TSC offset"),
    row(0x2032, "TSC multiplier"),
    row(0x6000, "CR0 guest/host mask"),
    row(0x6004, "CR0 read shadow"),
    row(0x6002, "CR4 guest/host mask"),
    row(0x6006, "CR4 read shadow"),
    row(0x400A, "CR3-target count"),
    row(0x6008, "CR3-target value 0"),
    row(0x600A, "CR3-target value 1"),
    row(0x600C, "CR3-target value 2"),
    row(0x600E, "CR3-target value 3"),
    row(0x2014, "APIC-access address"),
    row(0x2012, "virtual-APIC address"),
    row(0x401C, "TPR threshold"),
    row(0x201C, "EOI-exit bitmap 0"),
    row(0x201E, "EOI-exit bitmap 1"),
    row(0x2020, "EOI-exit bitmap 2"),
    row(0x2022, "EOI-exit bitmap 3"),
    row(0x0002, "posted-interrupt notification vector"),
    row(0x2016, "posted-interrupt descriptor address"),
    row(0x200C, "executive-VMCS pointer"),
    row(0x201A, "EPT pointer"),
    row(0x0000, "VPID"),
    row(0x4020, "PLE gap"),
    row(0x4022, "PLE window"),
    row(0x2018, "VM-function controls"),
    row(0x2024, "EPTP-list address"),
    row(0x0004, "EPTP index"),
    row(0x2026, "VMREAD-bitmap address"),
    row(0x2028, "VMWRITE-bitmap address"),
    row(0x202E, "ENCLS-exiting bitmap"),
    row(0x2036, "ENCLV-exiting bitmap"),
    row(0x203E, "PCONFIG-exiting bitmap"),
    row(0x200E, "PML address"),
    row(0x202A, "virtualization-exception information address"),
    row(0x202C, "XSS-exiting bitmap"),
    row(0x2030, "sub-page-permission-table pointer"),
    row(0x4024, "instruction-timeout control"),
    row(0x2038, "low PASID directory address"),
    row(0x203A, "high PASID directory address"),
    row(0x203C, "shared EPT pointer"),
    row(0x2040, "HLAT pointer"),
    row(0x0006, "HLAT prefix size"),
    row(0x2042, "PID-pointer table address"),
    row(0x0008, "last PID-pointer index"),
    row(0x204A, "IA32_SPEC_CTRL mask"),
    row(0x204C, "IA32_SPEC_CTRL shadow"),
    row(0x400C, "primary VM-exit controls"),
    row(0x2044, "secondary VM-exit controls"),
    row(0x400E, "VM-exit MSR-store count"),
    row(0x2006, "VM-exit MSR-store address"),
    row(0x4010, "VM-exit MSR-load count"),
    row(0x2008, "VM-exit MSR-load address"),
    row(0x4012, "VM-entry controls"),
    row(0x4014, "VM-entry MSR-load count"),
    row(0x200A, "VM-entry MSR-load address"),
    row(0x4016, "VM-entry interruption-information field"),
    row(0x4018, "VM-entry exception error code"),
    row(0x401A, "VM-entry instruction length"),
  ]

  /// The VM-exit information fields.
  public static let exitInformation: [(name: String, field: VMCSField)] = [
    row(0x4400, "VM-instruction error"),
    row(0x4402, "exit reason"),
    row(0x6400, "exit qualification"),
    row(0x640A, "guest-linear address"),
    row(0x2400, "guest-physical address"),
    row(0x4404, "VM-exit interruption information"),
    row(0x4406, "VM-exit interruption error code"),
    row(0x4408, "IDT-vectoring information field"),
    row(0x440A, "IDT-vectoring error code"),
    row(0x440C, "VM-exit instruction length"),
    row(0x440E, "VM-exit instruction information"),
    row(0x6402, "I/O RCX"),
    row(0x6404, "I/O RSI"),
    row(0x6406, "I/O RDI"),
    row(0x6408, "I/O RIP"),
  ]
}
