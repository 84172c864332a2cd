// SPDX-License-Identifier: Apache-2.0

import Glibc
import Support
import X86
import X86CPU

/// A guest that makes VMCALLs in a loop, and a root that advances RIP and enters again: the cost of a
/// VM exit and entry with nothing in between.
func measureExitRoundTrip() throws {
  let m = try VMXMachine()
  m.test.load([0x0F, 0x01, 0xC1, 0xEB, 0xFB], at: 0x1000)  // L: vmcall; jmp L
  let p = m.processor
  try p.vmlaunch()
  let rounds = 5_000_000
  let before = clock()
  do {
    for _ in 0..<rounds {
      let next = p.vmread(.guestRIP) &+ p.vmread(.exitInstructionLength)
      p.vmwrite(.guestRIP, next)
      try p.vmresume()
    }
  }
  // Processor time: other load on the machine does not count.
  let seconds = Double(clock() - before) / Double(CLOCKS_PER_SEC)
  print("vmcall exit and entry", (seconds / Double(rounds) * 1e9).rounded(), "ns")
}
