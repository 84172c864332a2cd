// SPDX-License-Identifier: Apache-2.0
//
// Accesses through the window (X86CPU, LinearWindow; docs/windows.md). What is checked is that the
// upper half of the address is the window's; the access has GS and an address of 32 bits, so it is
// in the window whatever its address is, also where the host guesses. A failed check, and a fault
// that the window has no answer for, lead to a copy of the instructions that looks the TLB up.

import X86
import X86CPU
import X86Decoder

/// What a translation may know of the window.
struct WindowView {
  /// The upper half of the window's addresses.
  var upper: UInt32
  /// The guest's registers where the first block is entered.
  var registers: InlineArray<16, UInt64>

  /// Whether a register is likely to hold an address in the window: it does, or no address at all.
  func isLikely(_ register: UInt8) -> Bool {
    guard register < 16 else { return true }
    let value = registers[Int(register)]
    return value >> 32 == UInt64(upper) || value >> 47 != 0 && upper != 0 || value < 1 << 16
  }
}

extension BlockTranslation {
  /// Whether the access of `n` asks the window.
  func usesWindow(_ n: Int) -> Bool {
    guard let window else { return false }
    let i = instructions[n]
    if i.segment == .fs || i.segment == .gs || i.addressSize != 8 { return false }
    if i.base == Instruction.ripRegister { return linearPage >> 32 == UInt64(window.upper) }
    if i.base == GeneralRegister.rsp.rawValue { return false }
    return window.isLikely(i.base) && window.isLikely(i.index)
  }

  /// The same for a group, which has one check.
  func usesWindow(group g: Int) -> Bool {
    window != nil && !groups[g].isStack && usesWindow(groups[g].leader)
  }

  /// The memory operand of `n`, which has its own check.
  func accessWindow(_ n: Int) -> Place {
    clobberFlags(n)
    let slow = segment(from: n, last: n)
    let place = windowPlace(n)
    checkWindow(place.base ?? .r13, slow)
    return place
  }

  /// An address whose base is to be checked. Small displacements need no addition.
  private func windowPlace(_ n: Int) -> Place {
    let i = instructions[n]
    let reach = Int64(LinearWindow.edge) * Int64(Page.size) / 2
    if i.index == Instruction.noRegister, i.base != Instruction.ripRegister,
      i.base != Instruction.noRegister, abs(i.displacement) < reach,
      let base = RegisterMap.host(i.base)
    {
      return .window(base, Int32(truncatingIfNeeded: i.displacement))
    }
    linearAddress(n)
    return .window(.r13)
  }

  /// Goes to `slow` if the upper half of an address is not the window's. Clobbers R14 and flags.
  func checkWindow(_ register: HostRegister, _ slow: Label) {
    a.rorx(.r14, register, 32)
    a.arithmetic32(.cmp, .r14, .state(StateOffset.windowHigh))
    a.jump(if: Self.notEqual, slow)
    faultSites.append(FaultSite(position: a.position, target: slow))
  }
}
