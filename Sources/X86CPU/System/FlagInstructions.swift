// SPDX-License-Identifier: Apache-2.0
//
// PUSHF, POPF, CLI, STI, and the instructions that change one flag or move AH (SDM volume 3,
// "Sensitivity to IOPL" and "Virtual-8086 Mode Extensions").

import X86
import X86Decoder

enum FlagInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.pushf] = .single({ pushFlags($0, $1) })
    t[.popf] = .single({ popFlags($0, $1) })
    t[.cli] = .single({ clearInterruptFlag($0, $1) })
    t[.sti] = .single({ setInterruptFlag($0, $1) })
    t[.clc] = .single({ c, _ in setCarry(c, false) })
    t[.stc] = .single({ c, _ in setCarry(c, true) })
    t[.cmc] = .single({ c, _ in setCarry(c, !CPU(c).cf) })
    t[.cld] = .single({ c, _ in
      CPU(c).s.pointee.rflags &= ~RFLAGS.df.rawValue
      return Step.next
    })
    t[.std] = .single({ c, _ in
      CPU(c).s.pointee.rflags |= RFLAGS.df.rawValue
      return Step.next
    })
    t[.lahf] = .single({ c, _ in
      let flags = CPU(c).arithmeticFlags & 0xFF | RFLAGS.fixed.rawValue
      c.storeBytes(of: UInt8(truncatingIfNeeded: flags), toByteOffset: 1, as: UInt8.self)
      return Step.next
    })
    t[.sahf] = .single({ c, _ in
      let cpu = CPU(c)
      let loaded = UInt64(c.load(fromByteOffset: 1, as: UInt8.self))
      let overflow = cpu.of ? RFLAGS.of.rawValue : 0
      cpu.arithmeticFlags = loaded & RFLAGS.arithmetic.rawValue | overflow
      return Step.next
    })
  }
}

@inline(__always) private func setCarry(_ c: RawPointer, _ value: Bool) -> Int32 {
  CPU(c).setCarry(value)
  return Step.next
}

private func pushFlags(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  if c.intercepts(.pushf) { return c.raise(c.exit(.pushf, Handlers.op(i))) }
  let size = Handlers.op(i).pointee.operandSize
  return attempt(c) { () throws(GuestException) in
    var image = c.flags & ~RFLAGS([.vm, .rf]).rawValue
    if c.isProtected && c.isVirtual8086 && c.iopl < 3 {
      let extended = c.s.pointee.cr4 & CR4.vme.rawValue != 0 && size == 2
      if !extended { throw .generalProtection }
      image = c.virtualFlagsImage
    }
    var stack = StackFrame(c)
    try stack.push(image, size: size)
    stack.commit()
  }
}

private func popFlags(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  if c.intercepts(.popf) { return c.raise(c.exit(.popf, i)) }
  let size = i.pointee.operandSize
  return attemptStep(c) { () throws(GuestException) in
    let virtual = c.isProtected && c.isVirtual8086
    let extended = c.s.pointee.cr4 & CR4.vme.rawValue != 0 && size == 2
    if virtual && c.iopl < 3 && !extended { throw .generalProtection }
    var stack = StackFrame(c)
    let image = try stack.pop(size: size)
    if virtual && c.iopl < 3 {
      try c.loadVirtualFlags(image)
      stack.commit()
      return c.afterFlagsChange(i, reload: true)
    }
    stack.commit()
    let before = c.s.pointee.rflags
    var mask: RFLAGS = [.arithmetic, .tf, .df, .nt]
    if size > 2 { mask.formUnion([.ac, .id]) }
    if c.cpl <= c.iopl { mask.insert(.if) }
    if c.cpl == 0 { mask.formUnion(.iopl) }
    c.flags = c.flags & ~(mask.rawValue | RFLAGS.rf.rawValue) | image & mask.rawValue
    let sensitive: RFLAGS = [.tf, .if, .ac, .rf]
    let changed = (before ^ c.s.pointee.rflags) & sensitive.rawValue != 0
    return c.afterFlagsChange(i, reload: changed)
  }
}

private func clearInterruptFlag(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  if c.cpl <= c.iopl {
    c.s.pointee.rflags &= ~RFLAGS.if.rawValue
    return Step.next
  }
  guard c.hasVirtualInterruptFlag else { return c.raise(.generalProtection) }
  c.s.pointee.rflags &= ~RFLAGS.vif.rawValue
  return Step.next
}

private func setInterruptFlag(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  if c.cpl <= c.iopl {
    if c.s.pointee.rflags & RFLAGS.if.rawValue != 0 { return Step.next }
    c.s.pointee.rflags |= RFLAGS.if.rawValue
    c.blockInterrupts(Interruptibility.blockingBySTI)
    return c.reload(i)
  }
  guard c.hasVirtualInterruptFlag, c.s.pointee.rflags & RFLAGS.vip.rawValue == 0 else {
    return c.raise(.generalProtection)
  }
  c.s.pointee.rflags |= RFLAGS.vif.rawValue
  return Step.next
}

extension CPU {
  /// Whether CLI and STI at insufficient privilege work on VIF instead of faulting.
  fileprivate var hasVirtualInterruptFlag: Bool {
    let cr4 = s.pointee.cr4
    if isProtected && isVirtual8086 { return cr4 & CR4.vme.rawValue != 0 }
    return cr4 & CR4.pvi.rawValue != 0 && cpl == 3
  }

  /// POPF and IRET with 16 bits in virtual-8086 mode with extensions: IF goes to VIF.
  func loadVirtualFlags(_ image: UInt64) throws(GuestException) {
    let enables = image & RFLAGS.if.rawValue != 0
    if image & RFLAGS.tf.rawValue != 0 { throw .generalProtection }
    if enables && s.pointee.rflags & RFLAGS.vip.rawValue != 0 { throw .generalProtection }
    let mask = RFLAGS([.arithmetic, .tf, .df, .nt]).rawValue
    let kept = flags & ~(mask | RFLAGS.vif.rawValue | RFLAGS.rf.rawValue)
    flags = kept | image & mask | (enables ? RFLAGS.vif.rawValue : 0)
    updateSlow()
  }

  fileprivate func afterFlagsChange(_ i: MicroOpPointer, reload changed: Bool) -> Int32 {
    if !changed { return Step.next }
    updateMode()
    return reload(i)
  }
}
