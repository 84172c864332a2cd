// SPDX-License-Identifier: Apache-2.0
//
// Accesses through the window (X86CPU, LinearWindow; docs/windows.md). What is checked is that the
// upper half of the address is the window's; the access has GS and an address of 32 bits, so it is
// in the window whatever its address is, also where the host guesses. A failed check, and a fault
// that the window has no answer for, lead to a copy of the instructions that looks the TLB up.

import X86
import X86CPU
import X86Decoder

/// What a translation may know of the windows.
struct WindowView {
  let cpu: CPU

  /// The window that an access is likely to be in, by what its base holds where the first block is
  /// entered, or else its index; nil: none. Of an unknown address it is the first window.
  func window(base: UInt8, index: UInt8) -> Int? {
    for register in [base, index] where register < 16 {
      let value = cpu.gpr[Int(register)]
      if value >> 16 != 0 && value >> 47 == 0 { return cpu.findWindow(value) }
    }
    return 0
  }
}

extension BlockTranslation {
  /// The window that the access of `n` asks; nil: none.
  func windowNumber(_ n: Int) -> Int? {
    guard let window, !isCompact else { return nil }
    let i = instructions[n]
    if i.segment == .fs || i.segment == .gs || i.addressSize != 8 { return nil }
    if i.base == Instruction.ripRegister { return window.cpu.findWindow(linearPage) }
    if i.base == GeneralRegister.rsp.rawValue { return nil }
    return window.window(base: i.base, index: i.index)
  }

  /// The same for a group, which has one check.
  func windowNumber(group g: Int) -> Int? {
    window == nil || groups[g].isStack ? nil : windowNumber(groups[g].leader)
  }

  /// The memory operand of `n`, which has its own check.
  func accessWindow(_ n: Int, _ number: Int) -> Place {
    clobberFlags(n)
    let slow = segment(from: n, last: n)
    if number == 0, let place = simplePlace(n), let base = place.base {
      checkWindow(0, base, slow)
      return place
    }
    linearAddress(n)
    return checkWindow(number, .r13, slow)
  }

  /// An address in the first window that needs no addition before the check.
  private func simplePlace(_ n: Int) -> Place? {
    let i = instructions[n]
    let reach = Int64(LinearWindow.edge) * Int64(Page.size) / 2
    guard i.index == Instruction.noRegister, i.base != Instruction.ripRegister,
      i.base != Instruction.noRegister, (-reach..<reach).contains(i.displacement),
      let base = RegisterMap.host(i.base)
    else { return nil }
    return .window(base, Int32(truncatingIfNeeded: i.displacement))
  }

  /// Goes to `slow` if the upper half of an address is not the window's. Clobbers R14 and flags,
  /// and R13, if the window is not the first.
  ///
  /// - Returns: the place of the address.
  @discardableResult
  func checkWindow(_ number: Int, _ register: HostRegister, _ slow: Label) -> Place {
    a.rorx(.r14, register, 32)
    a.arithmetic32(.cmp, .r14, .state(StateOffset.windowHigh + number * 4))
    a.jump(if: Self.notEqual, slow)
    faultSites.append(FaultSite(position: a.position, target: slow))
    if number == 0 { return .window(register) }
    a.load32(.r13, .register(register))
    a.arithmetic(.add, .r13, .state(StateOffset.windowBase(number)))
    return .memory(.r13)
  }
}
