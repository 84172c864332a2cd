// SPDX-License-Identifier: Apache-2.0
//
// Where the processor keeps each field of the VMCB whose state it holds.
//
// Control fields and exit information stay in the VMCB's memory. The guest's state is in CPUState
// while the VMCB is held ("lazy state"), like the fields of a current VMCS: `vmcbRead` and
// `vmcbWrite` access it there. It is written back to memory when an architectural VMRUN exits, when
// another VMCB is held, or on request (`vmcbWriteBack`).
//
//     VMCBLayout.locations[VMCBLayout.slot(.rip)]     // CPUState.rip, 8 bytes

import X86

/// Where a field's value is while its VMCB is held.
package enum VMCBFieldKind: UInt8 {
  /// In the VMCB's memory.
  case memory
  /// In CPUState, of this many bytes.
  case state2, state4, state8
  /// RFLAGS: in CPUState, arithmetic flags lazy.
  case rflags
  /// A segment's attributes: in CPUState, in the VMCS's format.
  case attributes
  /// CPL: of SS's attributes.
  case cpl
  /// The interrupt shadow: in the interruptibility state.
  case shadow
}

package struct VMCBLocation {
  /// Bytes from the start of CPUState.
  package var state: UInt16 = 0
  package var kind: VMCBFieldKind = .memory
  /// The clean bit by which VMRUN loads it.
  package var clean: VMCBClean = []
  package var offset: UInt16 = 0
  package var size: UInt8 = 0
}

package enum VMCBLayout {
  /// Every field begins at an even offset, except CPL, whose neighbour is not a field.
  @inline(__always) package static func slot(_ field: VMCBField) -> Int {
    Int(field.offset >> 1)
  }

  static let slotCount = Int(VMCBField.saveArea >> 1) + 0x180

  /// One location for each slot; never freed.
  nonisolated(unsafe) package static let locations: UnsafePointer<VMCBLocation> = {
    let table = UnsafeMutablePointer<VMCBLocation>.allocate(capacity: slotCount)
    table.initialize(repeating: VMCBLocation(), count: slotCount)
    for (_, field) in VMCBField.table {
      table[slot(field)] = VMCBLocation(
        clean: field.clean, offset: field.offset, size: field.size)
    }
    for row in registers + segments {
      table[slot(row.field)].kind = row.kind
      table[slot(row.field)].state = UInt16(row.state)
    }
    return UnsafePointer(table)
  }()

  /// State that VMRUN loads and the exit saves.
  static let runLocations = lazy.filter { !isOfLoadSave($0) }
  /// State that VMLOAD loads and VMSAVE saves.
  static let loadSaveLocations = lazy.filter(isOfLoadSave)

  private static let lazy: [VMCBLocation] =
    (0..<slotCount).map { locations[$0] }.filter { $0.kind != .memory }

  /// FS, GS, LDTR, TR, KernelGSBase, and the MSRs of system calls (APM volume 3, "VMLOAD").
  private static let ofLoadSave: Set<UInt16> = {
    var fields: [VMCBField] = [
      .star, .lstar, .cstar, .fmask, .kernelGSBase, .sysenterCS, .sysenterESP, .sysenterEIP,
    ]
    for register in [SegmentRegister.fs, .gs, .ldtr, .tr] {
      fields += [
        .selector(of: register), .attributes(of: register), .limit(of: register),
        .base(of: register),
      ]
    }
    return Set(fields.map(\.offset))
  }()

  private static func isOfLoadSave(_ location: VMCBLocation) -> Bool {
    ofLoadSave.contains(location.offset)
  }

  private struct Row {
    var field: VMCBField
    var kind: VMCBFieldKind
    var state: Int

    init(_ field: VMCBField, _ kind: VMCBFieldKind, _ path: PartialKeyPath<CPUState>) {
      self.init(field, kind, MemoryLayout<CPUState>.offset(of: path) ?? CPU.zeroOffset)
    }

    init(_ field: VMCBField, _ kind: VMCBFieldKind, _ state: Int) {
      (self.field, self.kind, self.state) = (field, kind, state)
    }
  }

  private static let registers: [Row] = [
    Row(.interruptShadow, .shadow, \.interruptibility), Row(.gdtrLimit, .state4, \.gdtr.limit),
    Row(.gdtrBase, .state8, \.gdtr.base), Row(.idtrLimit, .state4, \.idtr.limit),
    Row(.idtrBase, .state8, \.idtr.base), Row(.cpl, .cpl, \.cpl), Row(.efer, .state8, \.efer),
    Row(.cr4, .state8, \.cr4), Row(.cr3, .state8, \.cr3), Row(.cr0, .state8, \.cr0),
    Row(.dr7, .state8, \.dr7), Row(.dr6, .state8, \.dr6), Row(.rflags, .rflags, \.rflags),
    Row(.rip, .state8, \.rip), Row(.rsp, .state8, Int(GeneralRegister.rsp.rawValue) * 8),
    Row(.rax, .state8, Int(GeneralRegister.rax.rawValue) * 8), Row(.star, .state8, \.star),
    Row(.lstar, .state8, \.lstar), Row(.cstar, .state8, \.cstar), Row(.fmask, .state8, \.fmask),
    Row(.kernelGSBase, .state8, \.kernelGSBase), Row(.sysenterCS, .state8, \.sysenterCS),
    Row(.sysenterESP, .state8, \.sysenterESP), Row(.sysenterEIP, .state8, \.sysenterEIP),
    Row(.cr2, .state8, \.cr2), Row(.guestPAT, .state8, \.pat),
    Row(.debugctl, .state8, \.debugctl),
  ]

  private static let segments: [Row] = SegmentRegister.allCases.flatMap { register in
    let start = CPU.segmentsOffset + Int(register.rawValue) * MemoryLayout<SegmentState>.stride
    func row(
      _ field: VMCBField, _ kind: VMCBFieldKind, _ path: PartialKeyPath<SegmentState>
    ) -> Row {
      Row(field, kind, start + (MemoryLayout<SegmentState>.offset(of: path) ?? 0))
    }
    return [
      row(.selector(of: register), .state2, \.selector),
      row(.attributes(of: register), .attributes, \.accessRights),
      row(.limit(of: register), .state4, \.limit), row(.base(of: register), .state8, \.base),
    ]
  }
}
