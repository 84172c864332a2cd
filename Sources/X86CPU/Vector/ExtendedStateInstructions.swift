// SPDX-License-Identifier: Apache-2.0
//
// FXSAVE, FXRSTOR and the XSAVE family (SDM volume 1, "Managing State Using the XSAVE Feature Set";
// volume 2 for each instruction). They run on every context switch of a guest, so the usual case,
// an area in pages with host pointers, is plain copying.

import X86
import X86Decoder

enum ExtendedStateInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.fxsave] = .single { c, i in
      let c = CPU(c)
      return attempt(c) { () throws(GuestException) in try c.fxsave(Handlers.op(i)) }
    }
    t[.fxrstor] = .single { c, i in
      let c = CPU(c)
      return attempt(c) { () throws(GuestException) in try c.fxrstor(Handlers.op(i)) }
    }
    t[.xsave] = .single { c, i in save(.standard, c, i) }
    t[.xsaveopt] = .single { c, i in save(.optimized, c, i) }
    t[.xsavec] = .single { c, i in save(.compacted, c, i) }
    t[.xsaves] = .single { c, i in save(.supervisor, c, i) }
    t[.xrstor] = .single { c, i in restore(supervisor: false, c, i) }
    t[.xrstors] = .single { c, i in restore(supervisor: true, c, i) }
  }
}

private func save(_ form: XSaveForm, _ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  return attempt(c) { () throws(GuestException) in try c.xsave(form, Handlers.op(i)) }
}

private func restore(supervisor: Bool, _ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  return attempt(c) { () throws(GuestException) in
    try c.xrstor(supervisor: supervisor, Handlers.op(i))
  }
}

enum XSaveForm {
  case standard, optimized, compacted, supervisor

  var isCompacted: Bool { self == .compacted || self == .supervisor }
}

// MARK: FXSAVE and FXRSTOR

extension CPU {
  private func checkFXSR(
    _ i: MicroOpPointer, _ access: AccessKind
  ) throws(GuestException) -> UInt64 {
    if s.pointee.cr0 & (CR0.em.rawValue | CR0.ts.rawValue) != 0 { throw .deviceNotAvailable }
    let address = try linearAddress(i, size: 512, access)
    if address & 15 != 0 { throw .generalProtection }
    return address
  }

  /// EFER.FFXSR: kernels at CPL 0 in 64-bit mode skip the XMM registers.
  private var leavesOutXMM: Bool {
    is64Bit && cpl == 0 && s.pointee.efer & EFER.ffxsr.rawValue != 0
  }

  fileprivate func fxsave(_ i: MicroOpPointer) throws(GuestException) {
    let address = try checkFXSR(i, .write)
    let wide = i.pointee.operandSize == 8
    let size = leavesOutXMM ? LegacyArea.xmm : is64Bit ? LegacyArea.xmmEnd : LegacyArea.xmmEnd - 128
    if let area = try pointerForModify(address, size: size) {
      fillFXSAVE(area, wide: wide)
    } else {
      fillFXSAVE(bounce, wide: wide)
      try storeBytes(bounce, at: address, size: size)
    }
  }

  private func fillFXSAVE(_ area: UnsafeMutableRawPointer, wide: Bool) {
    saveX87(area, wide: wide)
    saveMXCSR(area)
    if !leavesOutXMM { saveXMM(area) }
  }

  fileprivate func fxrstor(_ i: MicroOpPointer) throws(GuestException) {
    let area = try pointerForRead(try checkFXSR(i, .read), size: 512)
    let control = area.loadUnaligned(fromByteOffset: LegacyArea.mxcsr, as: UInt32.self)
    if control & ~MXCSR.mask != 0 { throw .generalProtection }
    loadX87(area, wide: i.pointee.operandSize == 8)
    mxcsr = control
    if !leavesOutXMM { loadXMM(area) }
  }
}

// MARK: XSAVE, XSAVEOPT, XSAVEC, XSAVES

extension CPU {
  /// Checks before memory accesses, common to the family.
  private func checkXSAVE(supervisor: Bool, _ i: MicroOpPointer) throws(GuestException) -> UInt64 {
    if s.pointee.cr4 & CR4.osxsave.rawValue == 0 { throw .invalidOpcode }
    let requested = gpr[0] & 0xFFFF_FFFF | gpr[2] << 32
    if !supervisor {
      if s.pointee.cr0 & CR0.ts.rawValue != 0 { throw .deviceNotAvailable }
      return requested & s.pointee.xcr0
    }
    try requireEnabled(.xsaves)
    try requirePrivilege()
    return requested & (s.pointee.xcr0 | s.pointee.xss)
  }

  private func checkXSSExit(_ cause: ExitCause, _ i: MicroOpPointer) throws(GuestException) {
    let requested = gpr[0] & 0xFFFF_FFFF | gpr[2] << 32
    if requested & s.pointee.xss & s.pointee.intercepts.xssExits != 0 { throw exit(cause, i) }
    if s.pointee.cr0 & CR0.ts.rawValue != 0 { throw .deviceNotAvailable }
  }

  private func areaAddress(
    _ i: MicroOpPointer, _ size: Int, _ access: AccessKind
  ) throws(GuestException) -> UInt64 {
    let address = try linearAddress(i, size: size, access)
    if address & 63 != 0 { throw .generalProtection }
    return address
  }

  fileprivate func xsave(_ form: XSaveForm, _ i: MicroOpPointer) throws(GuestException) {
    let requested = try checkXSAVE(supervisor: form == .supervisor, i)
    if form == .supervisor { try checkXSSExit(.xsaves, i) }
    var used = inUse(requested)
    if form.isCompacted && mxcsr != MXCSR.initial { used |= requested & XCR0.sse.rawValue }
    let size = areaSize(requested, compacted: form.isCompacted)
    let address = try areaAddress(i, size, .write)
    let old =
      form.isCompacted
      ? 0
      : try load(
        address &+ UInt64(LegacyArea.xstateBV), as: UInt64.self)
    let image = XSaveImage(
      form: form, requested: requested, saved: form == .standard ? requested : used,
      stateBV: form.isCompacted ? used : old & ~requested | used,
      wide: i.pointee.operandSize == 8)
    if let area = try pointerForModify(address, size: size) {
      fill(area, image)
    } else {
      try xsaveThroughBuffer(address, size, image)
    }
  }

  /// For an area that crosses pages or has no host pointer: unwritten parts keep their content.
  private func xsaveThroughBuffer(
    _ address: UInt64, _ size: Int, _ image: XSaveImage
  ) throws(GuestException) {
    let reservation = try reserveWrite(address, size: size)
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
    defer { buffer.deallocate() }
    buffer.copyMemory(from: try pointerForRead(address, size: size), byteCount: size)
    fill(buffer, image)
    try commit(reservation, from: buffer)
  }

  private func fill(_ area: UnsafeMutableRawPointer, _ image: XSaveImage) {
    if image.saved & 1 != 0 { saveX87(area, wide: image.wide) }
    let compacted = image.form.isCompacted
    let wantsMXCSR =
      compacted
      ? image.saved & XCR0.sse.rawValue : image.requested & XCR0([.sse, .avx]).rawValue
    if wantsMXCSR != 0 { saveMXCSR(area) }
    if image.saved & XCR0.sse.rawValue != 0 { saveXMM(area) }
    var next = LegacyArea.headerEnd
    for component in StateComponents.extended
    where image.requested >> UInt64(component.number) & 1 != 0 {
      let place = compacted ? component.compactedOffset(&next) : Int(component.offset)
      if image.saved >> UInt64(component.number) & 1 != 0 {
        saveComponent(component.number, area + place)
      }
    }
    area.storeBytes(of: image.stateBV, toByteOffset: LegacyArea.xstateBV, as: UInt64.self)
    if compacted {
      area.storeBytes(
        of: image.requested | 1 << 63, toByteOffset: LegacyArea.xcompBV, as: UInt64.self)
    }
  }

  private func areaSize(_ mask: UInt64, compacted: Bool) -> Int {
    var end = LegacyArea.headerEnd
    for component in StateComponents.extended where mask >> UInt64(component.number) & 1 != 0 {
      if compacted {
        _ = component.compactedOffset(&end)
      } else {
        end = max(end, Int(component.offset + component.size))
      }
    }
    return end
  }
}

private struct XSaveImage {
  var form: XSaveForm
  var requested: UInt64
  var saved: UInt64
  var stateBV: UInt64
  var wide: Bool
}

extension ExtendedStateComponent {
  /// The component's offset if the previous ones end at `next`, which advances past it.
  fileprivate func compactedOffset(_ next: inout Int) -> Int {
    if isAligned { next = (next + 63) & ~63 }
    defer { next += Int(size) }
    return next
  }
}

// MARK: XRSTOR, XRSTORS

extension CPU {
  fileprivate func xrstor(supervisor: Bool, _ i: MicroOpPointer) throws(GuestException) {
    let requested = try checkXSAVE(supervisor: supervisor, i)
    if supervisor { try checkXSSExit(.xrstors, i) }
    let address = try areaAddress(i, LegacyArea.headerEnd, .read)
    let header = try snapshot(
      address &+ UInt64(LegacyArea.xstateBV), size: LegacyArea.headerEnd - LegacyArea.xstateBV)
    let stateBV = header.loadUnaligned(as: UInt64.self)
    let compBV = header.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
    let compacted = compBV >> 63 != 0
    try checkHeader(header, stateBV, compBV, supervisor: supervisor)
    let layout = compacted ? compBV & ~(1 << 63) : requested & stateBV
    let size = areaSize(layout, compacted: compacted)
    let area = try pointerForRead(address, size: size)
    let restored = requested & stateBV
    let wantsMXCSR =
      compacted
      ? restored & XCR0.sse.rawValue : requested & XCR0([.sse, .avx]).rawValue
    let control = area.loadUnaligned(fromByteOffset: LegacyArea.mxcsr, as: UInt32.self)
    if wantsMXCSR != 0 {
      if control & ~MXCSR.mask != 0 { throw .generalProtection }
      mxcsr = control
    } else if compacted && requested & XCR0.sse.rawValue != 0 {
      mxcsr = MXCSR.initial
    }
    restoreComponents(
      area, requested, restored, layout: compacted ? layout : nil,
      wide: i.pointee.operandSize == 8)
  }

  /// The #GP(0) checks of SDM volume 1, "Standard Form of XRSTOR" and "Compacted Form of XRSTOR".
  private func checkHeader(
    _ header: UnsafeRawPointer, _ stateBV: UInt64, _ compBV: UInt64, supervisor: Bool
  ) throws(GuestException) {
    let enabled = s.pointee.xcr0 | (supervisor ? s.pointee.xss : 0)
    let compacted = compBV >> 63 != 0
    if supervisor && !compacted { throw .generalProtection }
    if compacted {
      let components = compBV & ~(1 << 63)
      if components & ~enabled != 0 || stateBV & ~components != 0 { throw .generalProtection }
    } else if compBV != 0 || stateBV & ~enabled != 0 {
      throw .generalProtection
    }
    let last = compacted ? 64 : 24
    for offset in stride(from: 16, to: last, by: 8)
    where header.loadUnaligned(fromByteOffset: offset, as: UInt64.self) != 0 {
      throw .generalProtection
    }
  }

  /// `layout`: the components of a compacted area.
  private func restoreComponents(
    _ area: UnsafeRawPointer, _ requested: UInt64, _ restored: UInt64, layout: UInt64?, wide: Bool
  ) {
    if requested & 1 != 0 {
      if restored & 1 != 0 { loadX87(area, wide: wide) } else { initializeComponent(0) }
    }
    if requested & 2 != 0 {
      if restored & 2 != 0 { loadXMM(area) } else { initializeComponent(1) }
    }
    var next = LegacyArea.headerEnd
    for component in StateComponents.extended {
      let bit: UInt64 = 1 << UInt64(component.number)
      var place = Int(component.offset)
      if let layout, layout & bit != 0 { place = component.compactedOffset(&next) }
      if requested & bit == 0 { continue }
      if restored & bit != 0 {
        loadComponent(component.number, area + place)
      } else {
        initializeComponent(component.number)
      }
    }
  }
}
