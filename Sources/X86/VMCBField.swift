// SPDX-License-Identifier: Apache-2.0
//
// The fields of a VMCB, SVM's control block: offset in its 4 KiB, size, and the clean bit that says
// that it has not changed (APM volume 2, appendix "VMCB Layout" and "VMCB Clean Field"). This is
// the one definition of the layout.
//
//     0x000  control area          0x400  state-save area
//
//     VMCBField.rip == VMCBField(0x578, 8)
//     VMCBField.selector(of: .cs).clean == .segments

/// A field of a VMCB.
public struct VMCBField: Hashable, Sendable {
  /// From the VMCB's start.
  public var offset: UInt16
  /// 1, 2, 4 or 8 bytes.
  public var size: UInt8
  /// The part of the VMCB that is no longer clean when the field changes; empty: the processor
  /// reads it in every VMRUN.
  public var clean: VMCBClean

  @inlinable public init(_ offset: UInt16, _ size: UInt8, _ clean: VMCBClean = []) {
    self.offset = offset
    self.size = size
    self.clean = clean
  }

  /// Size of a VMCB.
  @inlinable public static var blockSize: Int { 4096 }
  @inlinable public static var saveArea: UInt16 { 0x400 }

  /// A field of the state-save area.
  @inlinable static func save(
    _ offset: UInt16, _ size: UInt8 = 8, _ clean: VMCBClean = []
  ) -> Self {
    Self(saveArea + offset, size, clean)
  }
}

/// Parts of a VMCB that have a clean bit: 1 says that software has not changed them since the
/// processor last ran this VMCB (APM volume 2, "VMCB Clean Bits").
public struct VMCBClean: OptionSet, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Intercepts, TSC offset, PAUSE filter.
  @inlinable public static var intercepts: Self { Self(rawValue: 1 << 0) }
  /// Addresses of the permission maps.
  @inlinable public static var permissionMaps: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var asid: Self { Self(rawValue: 1 << 2) }
  /// Virtual interrupts and the virtual TPR.
  @inlinable public static var virtualInterrupt: Self { Self(rawValue: 1 << 3) }
  /// Nested paging and the guest's PAT.
  @inlinable public static var nestedPaging: Self { Self(rawValue: 1 << 4) }
  /// CR0, CR3, CR4, EFER.
  @inlinable public static var controlRegisters: Self { Self(rawValue: 1 << 5) }
  /// DR6, DR7.
  @inlinable public static var debugRegisters: Self { Self(rawValue: 1 << 6) }
  /// GDTR, IDTR.
  @inlinable public static var descriptorTables: Self { Self(rawValue: 1 << 7) }
  /// CS, DS, SS, ES, CPL.
  @inlinable public static var segments: Self { Self(rawValue: 1 << 8) }
  @inlinable public static var cr2: Self { Self(rawValue: 1 << 9) }
  @inlinable public static var lastBranch: Self { Self(rawValue: 1 << 10) }
  @inlinable public static var avic: Self { Self(rawValue: 1 << 11) }
  @inlinable public static var all: Self { Self(rawValue: 0xFFF) }
}

// MARK: Control area

extension VMCBField {
  // The six words of intercepts (`SVMIntercepts`), two in each field.
  @inlinable public static var controlRegisterIntercepts: Self { Self(0x000, 4, .intercepts) }
  @inlinable public static var debugRegisterIntercepts: Self { Self(0x004, 4, .intercepts) }
  @inlinable public static var exceptionIntercepts: Self { Self(0x008, 4, .intercepts) }
  @inlinable public static var intercepts3: Self { Self(0x00C, 4, .intercepts) }
  @inlinable public static var intercepts4: Self { Self(0x010, 4, .intercepts) }
  @inlinable public static var intercepts5: Self { Self(0x014, 4, .intercepts) }
  @inlinable public static var pauseFilterThreshold: Self { Self(0x03C, 2, .intercepts) }
  @inlinable public static var pauseFilterCount: Self { Self(0x03E, 2, .intercepts) }
  @inlinable public static var ioPermissionMap: Self { Self(0x040, 8, .permissionMaps) }
  @inlinable public static var msrPermissionMap: Self { Self(0x048, 8, .permissionMaps) }
  @inlinable public static var tscOffset: Self { Self(0x050, 8, .intercepts) }
  @inlinable public static var asid: Self { Self(0x058, 4, .asid) }
  @inlinable public static var tlbControl: Self { Self(0x05C, 1) }
  @inlinable public static var virtualInterrupt: Self { Self(0x060, 8, .virtualInterrupt) }
  @inlinable public static var interruptShadow: Self { Self(0x068, 8) }
  @inlinable public static var exitCode: Self { Self(0x070, 8) }
  @inlinable public static var exitInfo1: Self { Self(0x078, 8) }
  @inlinable public static var exitInfo2: Self { Self(0x080, 8) }
  @inlinable public static var exitInterruptInfo: Self { Self(0x088, 8) }
  @inlinable public static var nestedControl: Self { Self(0x090, 8, .nestedPaging) }
  @inlinable public static var avicBar: Self { Self(0x098, 8, .avic) }
  @inlinable public static var eventInjection: Self { Self(0x0A8, 8) }
  @inlinable public static var nestedCR3: Self { Self(0x0B0, 8, .nestedPaging) }
  @inlinable public static var virtualizationControl: Self { Self(0x0B8, 8, .lastBranch) }
  @inlinable public static var cleanBits: Self { Self(0x0C0, 4) }
  @inlinable public static var nextRIP: Self { Self(0x0C8, 8) }
  /// The number of instruction bytes that follow; 0: none were fetched.
  @inlinable public static var fetchedByteCount: Self { Self(0x0D0, 1) }
  @inlinable public static var avicBackingPage: Self { Self(0x0E0, 8, .avic) }
  @inlinable public static var avicLogicalTable: Self { Self(0x0F0, 8, .avic) }
  @inlinable public static var avicPhysicalTable: Self { Self(0x0F8, 8, .avic) }
}

// MARK: State-save area

extension VMCBField {
  /// Offset of the 16 bytes of a segment register: ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR.
  @inlinable static func segmentOffset(_ register: SegmentRegister) -> UInt16 {
    switch register {
    case .ldtr: saveArea + 0x70
    case .tr: saveArea + 0x90
    default: saveArea + UInt16(register.rawValue) * 16
    }
  }

  /// VMLOAD loads FS, GS, LDTR and TR, which have no clean bit.
  @inlinable static func segmentClean(_ register: SegmentRegister) -> VMCBClean {
    register.rawValue < SegmentRegister.fs.rawValue ? .segments : []
  }

  @inlinable public static func selector(of register: SegmentRegister) -> Self {
    Self(segmentOffset(register), 2, segmentClean(register))
  }
  @inlinable public static func attributes(of register: SegmentRegister) -> Self {
    Self(segmentOffset(register) + 2, 2, segmentClean(register))
  }
  @inlinable public static func limit(of register: SegmentRegister) -> Self {
    Self(segmentOffset(register) + 4, 4, segmentClean(register))
  }
  @inlinable public static func base(of register: SegmentRegister) -> Self {
    Self(segmentOffset(register) + 8, 8, segmentClean(register))
  }

  @inlinable public static var gdtrLimit: Self { .save(0x064, 4, .descriptorTables) }
  @inlinable public static var gdtrBase: Self { .save(0x068, 8, .descriptorTables) }
  @inlinable public static var idtrLimit: Self { .save(0x084, 4, .descriptorTables) }
  @inlinable public static var idtrBase: Self { .save(0x088, 8, .descriptorTables) }
  @inlinable public static var cpl: Self { .save(0x0CB, 1, .segments) }
  @inlinable public static var efer: Self { .save(0x0D0, 8, .controlRegisters) }
  @inlinable public static var cr4: Self { .save(0x148, 8, .controlRegisters) }
  @inlinable public static var cr3: Self { .save(0x150, 8, .controlRegisters) }
  @inlinable public static var cr0: Self { .save(0x158, 8, .controlRegisters) }
  @inlinable public static var dr7: Self { .save(0x160, 8, .debugRegisters) }
  @inlinable public static var dr6: Self { .save(0x168, 8, .debugRegisters) }
  @inlinable public static var rflags: Self { .save(0x170) }
  @inlinable public static var rip: Self { .save(0x178) }
  @inlinable public static var rsp: Self { .save(0x1D8) }
  @inlinable public static var rax: Self { .save(0x1F8) }
  @inlinable public static var star: Self { .save(0x200) }
  @inlinable public static var lstar: Self { .save(0x208) }
  @inlinable public static var cstar: Self { .save(0x210) }
  @inlinable public static var fmask: Self { .save(0x218) }
  @inlinable public static var kernelGSBase: Self { .save(0x220) }
  @inlinable public static var sysenterCS: Self { .save(0x228) }
  @inlinable public static var sysenterESP: Self { .save(0x230) }
  @inlinable public static var sysenterEIP: Self { .save(0x238) }
  @inlinable public static var cr2: Self { .save(0x240, 8, .cr2) }
  @inlinable public static var guestPAT: Self { .save(0x268, 8, .nestedPaging) }
  @inlinable public static var debugctl: Self { .save(0x270, 8, .lastBranch) }
}

// MARK: Table

extension VMCBField {
  /// Every field, with its name in reports.
  public static let table: [(name: String, field: VMCBField)] =
    controls + segments + [
      ("GDTR limit", .gdtrLimit), ("GDTR base", .gdtrBase), ("IDTR limit", .idtrLimit),
      ("IDTR base", .idtrBase), ("CPL", .cpl), ("EFER", .efer), ("CR4", .cr4), ("CR3", .cr3),
      ("CR0", .cr0), ("DR7", .dr7), ("DR6", .dr6), ("RFLAGS", .rflags), ("RIP", .rip),
      ("RSP", .rsp), ("RAX", .rax), ("STAR", .star), ("LSTAR", .lstar), ("CSTAR", .cstar),
      ("SFMASK", .fmask), ("KernelGSBase", .kernelGSBase), ("SYSENTER_CS", .sysenterCS),
      ("SYSENTER_ESP", .sysenterESP), ("SYSENTER_EIP", .sysenterEIP), ("CR2", .cr2),
      ("G_PAT", .guestPAT), ("DBGCTL", .debugctl),
    ]

  private static let controls: [(name: String, field: VMCBField)] = [
    ("intercepts of control registers", .controlRegisterIntercepts),
    ("intercepts of debug registers", .debugRegisterIntercepts),
    ("intercepts of exceptions", .exceptionIntercepts), ("intercepts, vector 3", .intercepts3),
    ("intercepts, vector 4", .intercepts4), ("intercepts, vector 5", .intercepts5),
    ("PAUSE filter threshold", .pauseFilterThreshold), ("PAUSE filter count", .pauseFilterCount),
    ("IOPM_BASE_PA", .ioPermissionMap), ("MSRPM_BASE_PA", .msrPermissionMap),
    ("TSC_OFFSET", .tscOffset), ("guest ASID", .asid), ("TLB_CONTROL", .tlbControl),
    ("virtual interrupt", .virtualInterrupt), ("interrupt shadow", .interruptShadow),
    ("EXITCODE", .exitCode), ("EXITINFO1", .exitInfo1), ("EXITINFO2", .exitInfo2),
    ("EXITINTINFO", .exitInterruptInfo), ("nested control", .nestedControl),
    ("AVIC APIC_BAR", .avicBar), ("EVENTINJ", .eventInjection), ("N_CR3", .nestedCR3),
    ("virtualization control", .virtualizationControl), ("VMCB clean bits", .cleanBits),
    ("nRIP", .nextRIP), ("number of bytes fetched", .fetchedByteCount),
    ("AVIC backing page", .avicBackingPage), ("AVIC logical table", .avicLogicalTable),
    ("AVIC physical table", .avicPhysicalTable),
  ]

  private static let segments: [(name: String, field: VMCBField)] =
    SegmentRegister.allCases.flatMap { register in
      let name = "\(register)".uppercased()
      return [
        ("\(name) selector", VMCBField.selector(of: register)),
        ("\(name) attributes", .attributes(of: register)), ("\(name) limit", .limit(of: register)),
        ("\(name) base", .base(of: register)),
      ]
    }
}
