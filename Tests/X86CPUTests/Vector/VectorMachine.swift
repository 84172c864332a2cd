// SPDX-License-Identifier: Apache-2.0

import Support
import X86
import X86CPU

/// A machine in 64-bit mode with every vector extension enabled; code at 0x1000, data at 0x4000.
final class VectorMachine {
  let machine = TestMachine()
  var c: CPU { machine.cpu }

  init() {
    machine.setLongMode()
    c.s.pointee.cr4 |= CR4.osxsave.rawValue
    c.s.pointee.xcr0 = XCR0([.x87, .sse, .avx, .avx512]).rawValue
    c.updateMode()
  }

  /// Runs the code and the HLT after it; returns the exit reason.
  @discardableResult func run(_ code: [UInt8]) -> ExitReason {
    machine.load(code + [0xF4], at: 0x1000)
    return machine.run(from: 0x1000)
  }

  /// A 64-bit part of a vector register.
  subscript(zmm register: Int, part: Int) -> UInt64 {
    get { c.vector.pointee.zmm[register * 8 + part] }
    set { c.vector.pointee.zmm[register * 8 + part] = newValue }
  }

  /// Handler for exception `vector`: a HLT of its own, reached through an IDT at 0x3000.
  func catchException(_ vector: Int) {
    let target = UInt64(0x2000 + vector * 16)
    machine.load([0xF4], at: Int(target))
    machine.store(target & 0xFFFF | 0x8 << 16 | 0x8E00 << 32, at: 0x3000 + vector * 16)
    machine.store(UInt64(0), at: 0x3008 + vector * 16)
    c.s.pointee.idtr.base = 0x3000
    c.s.pointee.idtr.limit = 0xFFF
    c.s.pointee.gdtr.base = 0x2F00
    c.s.pointee.gdtr.limit = 0xFF
    machine.store(UInt64(0x00AF_9B00_0000_FFFF), at: 0x2F08)
    machine.store(UInt64(0x00CF_9300_0000_FFFF), at: 0x2F10)
    c.gpr[4] = 0x8000
  }
}
