// SPDX-License-Identifier: Apache-2.0
//
// LLDT, LTR, SLDT, STR; and the instructions that inspect descriptors without loading them: LAR,
// LSL, VERR, VERW, ARPL (SDM volume 3, "Pointer Validation").

import X86
import X86Decoder

enum DescriptorInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.sldt] = systemRule(
      register: { storeSystem($0, $1, .ldtr, memory: false) },
      memory: { storeSystem($0, $1, .ldtr, memory: true) })
    t[.str] = systemRule(
      register: { storeSystem($0, $1, .tr, memory: false) },
      memory: { storeSystem($0, $1, .tr, memory: true) })
    t[.lldt] = systemRule(
      register: { loadSystem($0, $1, .ldtr, memory: false) },
      memory: { loadSystem($0, $1, .ldtr, memory: true) })
    t[.ltr] = systemRule(
      register: { loadSystem($0, $1, .tr, memory: false) },
      memory: { loadSystem($0, $1, .tr, memory: true) })
    t[.lar] = byMemory(
      register: { inspect($0, $1, .lar, memory: false) },
      memory: { inspect($0, $1, .lar, memory: true) })
    t[.lsl] = byMemory(
      register: { inspect($0, $1, .lsl, memory: false) },
      memory: { inspect($0, $1, .lsl, memory: true) })
    t[.verr] = byMemory(
      register: { inspect($0, $1, .verr, memory: false) },
      memory: { inspect($0, $1, .verr, memory: true) })
    t[.verw] = byMemory(
      register: { inspect($0, $1, .verw, memory: false) },
      memory: { inspect($0, $1, .verw, memory: true) })
    t[.arpl] = byMemory(
      register: { adjustRPL($0, $1, memory: false) },
      memory: { adjustRPL($0, $1, memory: true) })
  }

  /// A handler for each kind of operand, with the operand's summary.
  private static func systemRule(
    register: @escaping Handler, memory: @escaping Handler
  ) -> LoweringRule {
    .custom { i, op, _ in
      op.pointee.immediate = UInt64(OperandSummary(i).rawValue)
      return i.memoryOperand == nil ? register : memory
    }
  }
}

// MARK: LDTR and TR

/// SLDT and STR.
@inline(__always) private func storeSystem(
  _ c: RawPointer, _ i: RawPointer, _ register: SegmentRegister, memory: Bool
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    if c.hasRealModeSegments { throw .invalidOpcode }
    if c.cpl != 0 && c.s.pointee.cr4 & CR4.umip.rawValue != 0 { throw .generalProtection }
    if c.intercepts(register == .ldtr ? .sldt : .str) {
      throw c.exitWithOperands(register == .ldtr ? .sldt : .str, i)
    }
    let selector = c.segment(register).pointee.selector
    if memory {
      try c.store(selector, at: c.linearAddress(i, size: 2, .write))
    } else {
      c.writeSized(UInt64(selector), to: i.pointee.dst, size: i.pointee.operandSize)
    }
  }
}

/// LLDT and LTR.
@inline(__always) private func loadSystem(
  _ c: RawPointer, _ i: RawPointer, _ register: SegmentRegister, memory: Bool
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptStep(c) { () throws(GuestException) in
    if c.hasRealModeSegments { throw .invalidOpcode }
    try c.requirePrivilege()
    if c.intercepts(register == .ldtr ? .lldt : .ltr) {
      throw c.exitWithOperands(register == .ldtr ? .lldt : .ltr, i)
    }
    let selector = try c.wordOperand(i, i.pointee.dst, memory: memory)
    if register == .ldtr {
      c.segment(.ldtr).pointee = try c.localTable(selector)
    } else {
      c.segment(.tr).pointee = try c.taskRegister(selector)
    }
    return c.reload(i)
  }
}

extension CPU {
  /// LDTR for `selector`; a bad one raises #GP, in a task switch #TS.
  func localTable(
    _ selector: UInt16, _ vector: ExceptionVector = .generalProtection
  ) throws(GuestException) -> SegmentState {
    if Selector.isNull(selector) { return nullSegment(selector) }
    if selector & Selector.local != 0 { throw .selector(vector, selector) }
    let found = try readDescriptor(selector, else: vector)
    guard !found.rights.isCodeOrData, found.rights.type == SystemDescriptorType.ldt else {
      throw .selector(vector, selector)
    }
    guard found.rights.isPresent else {
      throw .selector(vector == .invalidTSS ? vector : .segmentNotPresent, selector)
    }
    return try systemSegment(found, vector)
  }

  fileprivate func taskRegister(_ selector: UInt16) throws(GuestException) -> SegmentState {
    if Selector.isNull(selector) { throw .generalProtection }
    if selector & Selector.local != 0 { throw .selector(.generalProtection, selector) }
    let found = try readDescriptor(selector, else: .generalProtection)
    let type = found.rights.type
    guard !found.rights.isCodeOrData,
      type == SystemDescriptorType.tssAvailable
        || type == SystemDescriptorType.tss16Available && !isLongMode
    else { throw .selector(.generalProtection, selector) }
    guard found.rights.isPresent else { throw .selector(.segmentNotPresent, selector) }
    var state = try systemSegment(found, .generalProtection)
    guard try setBusy(found) else { throw .selector(.generalProtection, selector) }
    state.accessRights |= 2
    return state
  }

  private func systemSegment(
    _ found: FoundDescriptor, _ vector: ExceptionVector
  ) throws(GuestException) -> SegmentState {
    var state = found.segment(selector: found.selector)
    if isLongMode {
      state.base |= try readUpperHalf(found, else: vector) << 32
      if !isCanonicalBase(state.base) { throw .selector(vector, found.selector) }
    }
    return state
  }
}

// MARK: Looking at descriptors

private enum Inspection { case lar, lsl, verr, verw }

/// LAR, LSL, VERR, VERW: ZF says whether the descriptor is accessible.
@inline(__always) private func inspect(
  _ c: RawPointer, _ i: RawPointer, _ what: Inspection, memory: Bool
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    if c.hasRealModeSegments { throw .invalidOpcode }
    let unary = what == .verr || what == .verw
    let operand = unary ? i.pointee.dst : i.pointee.src
    let selector = try c.wordOperand(i, operand, memory: memory)
    let value = try c.inspectDescriptor(selector, what)
    let zf = RFLAGS.zf.rawValue
    c.arithmeticFlags = c.arithmeticFlags & ~zf | (value != nil ? zf : 0)
    if let value, !unary {
      c.writeSized(value, to: i.pointee.dst, size: i.pointee.operandSize)
    }
  }
}

extension CPU {
  /// The result of LAR or LSL (0 for VERR and VERW), or nil if the check fails.
  fileprivate func inspectDescriptor(
    _ selector: UInt16, _ what: Inspection
  ) throws(GuestException) -> UInt64? {
    if Selector.isNull(selector) { return nil }
    guard let address = descriptorAddress(selector, size: 8) else { return nil }
    let raw = try loadSystem(address, as: UInt64.self)
    let rights = SegmentDescriptor(rawValue: raw).accessRights
    if !rights.isCodeOrData {
      guard what == .lar || what == .lsl, isInspectable(rights.type, what) else { return nil }
      if isLongMode && descriptorAddress(selector, size: 16) == nil { return nil }
    }
    let conforming = rights.isCode && rights.isConformingOrExpandDown
    if !conforming && rights.dpl < max(cpl, Selector.rpl(selector)) { return nil }
    switch what {
    case .lar: return raw >> 32 & 0x00F0_FF00
    case .lsl: return UInt64(SegmentDescriptor(rawValue: raw).limit)
    case .verr: return !rights.isCode || rights.isReadableCodeOrWritableData ? 0 : nil
    case .verw: return !rights.isCode && rights.isReadableCodeOrWritableData ? 0 : nil
    }
  }

  /// The system types that LAR and LSL accept (tables in SDM volume 2).
  private func isInspectable(_ type: UInt8, _ what: Inspection) -> Bool {
    let gates: UInt16 = what == .lar ? 1 << 12 | (isLongMode ? 0 : 1 << 4 | 1 << 5) : 0
    let segments: UInt16 = 1 << 2 | 1 << 9 | 1 << 11 | (isLongMode ? 0 : 1 << 1 | 1 << 3)
    return (gates | segments) >> UInt16(type) & 1 != 0
  }
}

/// ARPL r/m16, r16.
@inline(__always) private func adjustRPL(
  _ c: RawPointer, _ i: RawPointer, memory: Bool
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    if c.hasRealModeSegments { throw .invalidOpcode }
    let rpl = i.pointee.src.load(as: UInt16.self) & Selector.rplMask
    let address = memory ? try c.linearAddress(i, size: 2, .write) : 0
    let value =
      memory ? try c.load(address, as: UInt16.self) : i.pointee.dst.load(as: UInt16.self)
    let raised = value & Selector.rplMask < rpl
    if raised {
      let result = value & ~Selector.rplMask | rpl
      if memory { try c.store(result, at: address) } else { c.write(result, to: i.pointee.dst) }
    }
    let zf = RFLAGS.zf.rawValue
    c.arithmeticFlags = c.arithmeticFlags & ~zf | (raised ? zf : 0)
  }
}
