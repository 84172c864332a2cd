// SPDX-License-Identifier: Apache-2.0
//
// A machine for tests of vector instructions: 64-bit mode with every extension enabled; code at
// 0x1000, data at 0x4000.

import Support
import X86
import X86CPU

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

  /// Makes every exception a VM exit, as event delivery is not what is tested here.
  func catchExceptions() { c.vmxControls.exceptionBitmap = .max }

  /// The exception that ended the run, and where.
  func raised(_ vector: ExceptionVector, at rip: UInt64 = 0x1000) -> Bool {
    UInt8(truncatingIfNeeded: c.s.pointee.pendingException) == vector.rawValue
      && c.s.pointee.rip == rip
  }
}
