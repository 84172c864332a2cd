// SPDX-License-Identifier: Apache-2.0

import Support
import X86
import X86CPU

/// Loops of machine code that end with HLT; ECX is the count.
let kernels: [(name: String, instructionsPerRound: Int, code: [UInt8])] = [
  (
    "alu", 7,
    [
      0x48, 0x01, 0xD8,  // add rax, rbx
      0x48, 0x31, 0xC2,  // xor rdx, rax
      0x48, 0x8D, 0x34, 0x90,  // lea rsi, [rax + rdx*4]
      0x48, 0x29, 0xF7,  // sub rdi, rsi
      0x48, 0x83, 0xE7, 0x7F,  // and rdi, 127
      0xFF, 0xC9,  // dec ecx
      0x75, 0xEB,  // jnz
      0xF4,
    ]
  ),
  (
    "memory", 7,
    [
      0x48, 0x8B, 0x04, 0xFD, 0x00, 0x00, 0x20, 0x00,  // mov rax, [rdi*8 + 0x200000]
      0x48, 0x01, 0xD8,  // add rax, rbx
      0x48, 0x89, 0x04, 0xFD, 0x00, 0x00, 0x30, 0x00,  // mov [rdi*8 + 0x300000], rax
      0x48, 0xFF, 0xC7,  // inc rdi
      0x48, 0x81, 0xE7, 0xFF, 0x0F, 0x00, 0x00,  // and rdi, 0xfff
      0xFF, 0xC9,  // dec ecx
      0x75, 0xDF,  // jnz
      0xF4,
    ]
  ),
  (
    "calls", 6,
    [
      0xE8, 0x05, 0x00, 0x00, 0x00,  // call f
      0xFF, 0xC9,  // dec ecx
      0x75, 0xF7,  // jnz
      0xF4,
      0x50,  // f: push rax
      0x58,  // pop rax
      0xC3,  // ret
    ]
  ),
]

for kernel in kernels {
  let m = TestMachine()
  m.setLongMode()
  m.load(kernel.code, at: 0x1000)
  let rounds = 20_000_000
  m.cpu.gpr[1] = UInt64(rounds)
  m.cpu.gpr[4] = 0x100000
  let clock = ContinuousClock()
  let before = m.cpu.s.pointee.retired
  let time = clock.measure { m.run(from: 0x1000) }
  let count = Double(m.cpu.s.pointee.retired - before)
  let seconds = Double(time.components.attoseconds) / 1e18 + Double(time.components.seconds)
  print(kernel.name, "rip", m.cpu.s.pointee.rip, "MIPS", (count / seconds / 1e6).rounded())
}
try measureExitRoundTrip()
try measureHypervisorRoundTrips()
