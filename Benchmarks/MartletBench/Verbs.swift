// SPDX-License-Identifier: Apache-2.0
//
// VT-x alone: a guest that makes VMCALLs in a loop, and a root that advances RIP and enters again.
// What a VM exit and entry cost with nothing in between.

import Host
import Support
import X86
import X86CPU

func measureVerbs() throws {
  let rounds = 1_000_000
  var best = Double.infinity
  let machine = try VMXMachine()
  machine.test.load([0x0F, 0x01, 0xC1, 0xEB, 0xFB], at: 0x1000)  // L: vmcall; jmp L
  let processor = machine.processor
  try processor.vmlaunch()
  for _ in 0..<5 {
    let begin = HostClock.threadCPU()
    for _ in 0..<rounds {
      let next = processor.vmread(.guestRIP) &+ processor.vmread(.exitInstructionLength)
      processor.vmwrite(.guestRIP, next)
      try processor.vmresume()
    }
    best = min(best, Double(HostClock.threadCPU() &- begin) / Double(rounds))
  }
  report("exit verbs vmcall \(rounded(best, 1))")
}
