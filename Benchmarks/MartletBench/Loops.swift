// SPDX-License-Identifier: Apache-2.0
//
// The processor alone, without a hypervisor: loops of machine code in 64-bit mode with paging,
// whose instructions the processor itself counts.

import Host
import Support
import SystemPackage
import X86
import X86CPU

/// A loop that ends with HLT. ECX is the count; RDI is 0; RDX and RBX are odd numbers.
struct CodeLoop {
  let name: String
  let rounds: UInt64
  let code: [UInt8]
}

/// Prints MIPS of each loop.
func measureLoops() throws {
  for loop in codeLoops {
    guard let mips = loop.millionsPerSecond() else {
      throw BenchError("the loop \(loop.name) did not reach its end")
    }
    report("mips \(loop.name) \(rounded(mips, 1))")
    guard let translated = loop.millionsPerSecond(threshold: 32) else {
      throw BenchError("the loop \(loop.name), translated, did not reach its end")
    }
    report("translated \(loop.name) \(rounded(translated, 1))")
  }
}

extension CodeLoop {
  private static let batches = 5
  private static let start: UInt64 = 0x1000

  /// The best of several batches, by the thread's CPU time: other load on the machine only adds.
  /// Nil when the code ends elsewhere than at its HLT. A threshold other than 0 is the
  /// translator's.
  func millionsPerSecond(threshold: UInt32 = 0) -> Double? {
    let machine = TestMachine(threshold: threshold)
    machine.setLongMode()
    machine.load(code, at: Int(Self.start))
    let state = machine.cpu.s
    var best = 0.0
    for _ in 0..<Self.batches {
      (machine.cpu.gpr[1], machine.cpu.gpr[4], machine.cpu.gpr[7]) = (rounds, 0x10_0000, 0)
      (machine.cpu.gpr[2], machine.cpu.gpr[3]) = (88_172_645_463_325_253, 11)
      let retired = state.pointee.retired
      let begin = HostClock.threadCPU()
      let reason = machine.run(from: Self.start)
      let time = HostClock.threadCPU() &- begin
      guard reason == .hlt, machine.cpu.gpr[1] == 0, time > 0 else { return nil }
      best = max(best, Double(state.pointee.retired &- retired) / Double(time) * 1e3)
    }
    return best
  }
}

/// Prints a line at once, so that what was measured is there even if the next hangs.
func report(_ line: String) {
  _ = try? FileDescriptor.standardOutput.writeAll((line + "\n").utf8)
}

/// With a given number of decimal digits, for people.
func rounded(_ value: Double, _ digits: Int) -> Double {
  let scale = (0..<digits).reduce(1.0) { scale, _ in scale * 10 }
  return (value * scale).rounded() / scale
}

/// What ends the program, as a sentence.
struct BenchError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

let codeLoops: [CodeLoop] = [
  CodeLoop(
    name: "alu", rounds: 3_000_000,
    code: [
      0x48, 0x01, 0xD8,  // L: add rax, rbx
      0x48, 0x31, 0xC2,  // xor rdx, rax
      0x48, 0x8D, 0x34, 0x90,  // lea rsi, [rax + rdx*4]
      0x48, 0x29, 0xF7,  // sub rdi, rsi
      0x48, 0x83, 0xE7, 0x7F,  // and rdi, 127
      0xFF, 0xC9,  // dec ecx
      0x75, 0xEB,  // jnz L
      0xF4,  // hlt
    ]),
  CodeLoop(
    name: "memory", rounds: 3_000_000,
    code: [
      0x48, 0x8B, 0x04, 0xFD, 0x00, 0x00, 0x20, 0x00,  // L: mov rax, [rdi*8 + 0x200000]
      0x48, 0x01, 0xD8,  // add rax, rbx
      0x48, 0x89, 0x04, 0xFD, 0x00, 0x00, 0x30, 0x00,  // mov [rdi*8 + 0x300000], rax
      0x48, 0xFF, 0xC7,  // inc rdi
      0x48, 0x81, 0xE7, 0xFF, 0x0F, 0x00, 0x00,  // and rdi, 0xfff
      0xFF, 0xC9,  // dec ecx
      0x75, 0xDF,  // jnz L
      0xF4,  // hlt
    ]),
  CodeLoop(
    name: "bytes", rounds: 2_000_000,
    code: [
      0x0F, 0xB6, 0x87, 0x00, 0x00, 0x20, 0x00,  // L: movzx eax, byte [rdi + 0x200000]
      0x00, 0xD8,  // add al, bl
      0x88, 0x87, 0x00, 0x00, 0x30, 0x00,  // mov [rdi + 0x300000], al
      0x0F, 0xBF, 0x97, 0x00, 0x00, 0x20, 0x00,  // movsx edx, word [rdi + 0x200000]
      0x66, 0x01, 0xD3,  // add bx, dx
      0x48, 0xFF, 0xC7,  // inc rdi
      0x81, 0xE7, 0xFF, 0x0F, 0x00, 0x00,  // and edi, 0xfff
      0xFF, 0xC9,  // dec ecx
      0x75, 0xDA,  // jnz L
      0xF4,  // hlt
    ]),
  CodeLoop(
    name: "branches", rounds: 2_000_000,
    code: [
      0x48, 0x89, 0xD0,  // L: mov rax, rdx
      0x48, 0xC1, 0xE0, 0x0D,  // shl rax, 13
      0x48, 0x31, 0xC2,  // xor rdx, rax
      0x48, 0x89, 0xD0,  // mov rax, rdx
      0x48, 0xC1, 0xE8, 0x07,  // shr rax, 7
      0x48, 0x31, 0xC2,  // xor rdx, rax
      0xF6, 0xC2, 0x01,  // test dl, 1
      0x74, 0x03,  // jz M
      0x48, 0x01, 0xD3,  // add rbx, rdx
      0x80, 0xFA, 0x64,  // M: cmp dl, 100
      0x77, 0x04,  // ja N
      0x48, 0x83, 0xEB, 0x03,  // sub rbx, 3
      0xFF, 0xC9,  // N: dec ecx
      0x75, 0xD7,  // jnz L
      0xF4,  // hlt
    ]),
  CodeLoop(
    name: "calls", rounds: 3_000_000,
    code: [
      0xE8, 0x05, 0x00, 0x00, 0x00,  // L: call F
      0xFF, 0xC9,  // dec ecx
      0x75, 0xF7,  // jnz L
      0xF4,  // hlt
      0x50,  // F: push rax
      0x58,  // pop rax
      0xC3,  // ret
    ]),
  CodeLoop(
    name: "indirect", rounds: 2_000_000,
    code: [
      0x89, 0xC8,  // L: mov eax, ecx
      0x83, 0xE0, 0x03,  // and eax, 3
      0x4C, 0x8D, 0x15, 0x0C, 0x00, 0x00, 0x00,  // lea r10, [T]
      0x49, 0x8D, 0x04, 0xC2,  // lea rax, [r10 + rax*8]
      0xFF, 0xD0,  // call rax
      0xFF, 0xC9,  // dec ecx
      0x75, 0xEA,  // jnz L
      0xF4, 0x90,  // hlt
      0x48, 0xFF, 0xC3, 0xC3, 0x90, 0x90, 0x90, 0x90,  // T: inc rbx; ret
      0x48, 0xFF, 0xCA, 0xC3, 0x90, 0x90, 0x90, 0x90,  // dec rdx; ret
      0x48, 0x01, 0xD3, 0xC3, 0x90, 0x90, 0x90, 0x90,  // add rbx, rdx; ret
      0x48, 0x31, 0xD3, 0xC3,  // xor rbx, rdx; ret
    ]),
  CodeLoop(
    name: "multiply", rounds: 2_000_000,
    code: [
      0x41, 0xB8, 0x43, 0x42, 0x0F, 0x00,  // mov r8d, 1000003
      0x49, 0x0F, 0xAF, 0xD8,  // L: imul rbx, r8
      0x48, 0x89, 0xD8,  // mov rax, rbx
      0x49, 0xF7, 0xE0,  // mul r8
      0x48, 0x01, 0xD0,  // add rax, rdx
      0x48, 0xC1, 0xE8, 0x03,  // shr rax, 3
      0x48, 0xC1, 0xC3, 0x07,  // rol rbx, 7
      0x48, 0x31, 0xC3,  // xor rbx, rax
      0xFF, 0xC9,  // dec ecx
      0x75, 0xE4,  // jnz L
      0xF4,  // hlt
    ]),
  CodeLoop(
    name: "vector", rounds: 1_000_000,
    code: [
      0x0F, 0x10, 0x87, 0x00, 0x00, 0x20, 0x00,  // L: movups xmm0, [rdi + 0x200000]
      0x66, 0x0F, 0x59, 0xC1,  // mulpd xmm0, xmm1
      0x66, 0x0F, 0x58, 0xD0,  // addpd xmm2, xmm0
      0x0F, 0x11, 0x97, 0x00, 0x00, 0x30, 0x00,  // movups [rdi + 0x300000], xmm2
      0x48, 0x83, 0xC7, 0x10,  // add rdi, 16
      0x81, 0xE7, 0xF0, 0x0F, 0x00, 0x00,  // and edi, 0xff0
      0xFF, 0xC9,  // dec ecx
      0x75, 0xDC,  // jnz L
      0xF4,  // hlt
    ]),
]
