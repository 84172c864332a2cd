// SPDX-License-Identifier: Apache-2.0
//
// System instructions in translated code against the interpreter, and the ways to code over changes
// of address spaces.

import Support
import Testing
import X86
import X86CPU
import X86JIT

@Suite struct SystemBlockTests {
  private func machine(_ threshold: UInt32, cpl: UInt8 = 0) -> TestMachine {
    let m = TestMachine(threshold: threshold)
    m.setLongMode(cpl: cpl)
    m.cpu.vmxControls.exceptionBitmap = .max
    m.cpu.gpr[4] = 0x8000
    return m
  }

  /// Everything that a system call may change.
  private func picture(_ m: TestMachine) -> [UInt64] {
    let s = m.cpu.s
    var values = (0..<16).map { m.cpu.gpr[$0] }
    values += [
      s.pointee.rip, m.cpu.flags, UInt64(s.pointee.cpl), UInt64(m.cpu.exitFields.reason),
      UInt64(s.pointee.interruptibility), s.pointee.kernelGSBase, UInt64(s.pointee.slow),
      UInt64(s.pointee.tlb - s.pointee.tlbBanks), UInt64(m.cpu.exitFields.interruptionInfo),
      s.pointee.retired, UInt64(s.pointee.modeKey), m.cpu.exitFields.qualification,
    ]
    for register in [SegmentRegister.cs, .ss, .gs] {
      let segment = m.cpu.segment(register).pointee
      values += [
        segment.base, UInt64(segment.limit), UInt64(segment.accessRights), UInt64(segment.selector),
      ]
    }
    return values
  }

  /// System calls with random flags, masks and selectors, SMAP on and off.
  @Test(arguments: 1...40) func systemCalls(_ seed: UInt64) {
    let pictures = [UInt32(0), 1].map { threshold -> [UInt64] in
      var random = SplitMix(state: seed)
      let m = machine(threshold, cpl: 3)
      // syscall ; dec ebx ; jnz -6 ; hlt
      m.load([0x0F, 0x05, 0xFF, 0xCB, 0x75, 0xFA, 0xF4], at: 0x1000)
      // swapgs ; pushf ; pop r9 ; add eax, r9d ; sti ; nop ; cli ; stac ; push [rsi] ; pop r8 ;
      // clac ; swapgs ; sysretq
      m.load(
        [
          0x0F, 0x01, 0xF8, 0x9C, 0x41, 0x59, 0x44, 0x01, 0xC8, 0xFB, 0x90, 0xFA, 0x0F, 0x01, 0xCB,
          0xFF, 0x36, 0x41, 0x58, 0x0F, 0x01, 0xCA, 0x0F, 0x01, 0xF8, 0x48, 0x0F, 0x07,
        ], at: 0x2000)
      m.cpu.gpr[3] = 20
      m.cpu.gpr[6] = 0x3000
      let s = m.cpu.s
      s.pointee.lstar = 0x2000
      s.pointee.star = random.next()
      s.pointee.kernelGSBase = 0x5555
      let allowed: RFLAGS = [.arithmetic, .df, .if, .ac, .id, .nt]
      s.pointee.fmask = random.next() & ~(random.next() & random.next()) & 0xFFFF_FFFF
      m.cpu.flags = random.next() & allowed.rawValue
      if random.next() & 1 != 0 { s.pointee.cr4 |= CR4.smap.rawValue }
      m.cpu.updateMode()
      m.run(from: 0x1000)
      return picture(m)
    }
    #expect(pictures[0] == pictures[1])
  }

  /// An exit from the instruction behind STI says that interrupts are blocked; one instruction
  /// later they are not.
  @Test(arguments: [UInt32(0), 1]) func shadowOfSTI(_ threshold: UInt32) {
    let m = machine(threshold)
    // sti ; mov eax, [rbx] ; mov eax, [rcx] ; hlt
    m.load([0xFB, 0x8B, 0x03, 0x8B, 0x01, 0xF4], at: 0x1000)
    for (rbx, rcx, rip, shadow): (UInt64, UInt64, UInt64, UInt32) in [
      (0x3000, 0x3000, 0x1005, 0), (0x4000_0000, 0x3000, 0x1001, 1),
      (0x3000, 0x4000_0000, 0x1003, 0),
    ] {
      m.cpu.gpr[3] = rbx
      m.cpu.gpr[1] = rcx
      m.cpu.flags = 2
      m.cpu.s.pointee.interruptibility = 0
      m.cpu.s.pointee.slow = 0
      m.run(from: 0x1000)
      #expect(m.cpu.s.pointee.rip == rip)
      #expect(m.cpu.s.pointee.interruptibility == shadow)
      #expect(m.cpu.flags & RFLAGS.if.rawValue != 0)
    }
  }

  /// A window that is waited for opens behind POPF and behind the shadow of STI.
  @Test(arguments: [UInt32(0), 1]) func interruptWindows(_ threshold: UInt32) {
    let m = machine(threshold)
    m.cpu.vmxControls.primary |= PrimaryControls.interruptWindowExiting
    // sti ; nop ; nop ; hlt
    m.load([0xFB, 0x90, 0x90, 0xF4], at: 0x1000)
    m.cpu.flags = 2
    #expect(m.run(from: 0x1000) == .interruptWindow)
    #expect(m.cpu.s.pointee.rip == 0x1002)
    // push 0x202 ; popf ; nop ; hlt
    m.load([0x68, 0x02, 0x02, 0, 0, 0x9D, 0x90, 0xF4], at: 0x1000)
    m.cpu.flags = 2
    #expect(m.run(from: 0x1000) == .interruptWindow)
    #expect(m.cpu.s.pointee.rip == 0x1006)
  }

  /// Quotients that fit and those that do not, of 32 and 64 bits.
  @Test(arguments: 1...4) func divisions(_ seed: UInt64) {
    var random = SplitMix(state: seed)
    let machines = [machine(0), machine(1)]
    let forms: [[UInt8]] = [
      [0xF7, 0xF3], [0xF7, 0xFB], [0x48, 0xF7, 0xF3], [0x48, 0xF7, 0xFB], [0x41, 0xF7, 0xF4],
      [0x49, 0xF7, 0xFC], [0xF7, 0x36], [0x48, 0xF7, 0x3E], [0xF7, 0xF0], [0x48, 0xF7, 0xFA],
    ]
    let special: [UInt64] = [0, 1, .max, 1 << 63, 1 << 31, 0xFFFF_FFFF, 0x8000_0000_8000_0000]
    func value() -> UInt64 {
      let word = random.next()
      return word & 3 == 0 ? special[Int(word >> 8) % special.count] : random.next() >> (word & 62)
    }
    for _ in 0..<400 {
      let form = forms[Int(random.next() % UInt64(forms.count))]
      let (rax, divisor, flags) = (value(), value(), random.next() & 0x8D5)
      let sign: UInt64 = Int64(bitPattern: rax) < 0 ? .max : 0
      let rdx = [0, sign, value(), divisor >> 1][Int(random.next() & 3)]
      let pictures = machines.map { m -> [UInt64] in
        m.load(form + [0xF4], at: 0x1000)
        (m.cpu.gpr[0], m.cpu.gpr[2], m.cpu.gpr[3]) = (rax, rdx, divisor)
        (m.cpu.gpr[12], m.cpu.gpr[6]) = (divisor, 0x3000)
        m.store(divisor, at: 0x3000)
        m.cpu.flags = flags
        m.run(from: 0x1000)
        return picture(m)
      }
      #expect(pictures[0] == pictures[1], "\(form) \(rdx):\(rax) by \(divisor)")
    }
  }

  /// BT, BTS, BTR, BTC of memory with numbers far outside the operand.
  @Test(arguments: 1...4) func bitStrings(_ seed: UInt64) {
    var random = SplitMix(state: seed)
    let machines = [machine(0), machine(1)]
    for _ in 0..<400 {
      let wide = random.next() & 1 != 0
      let lock = random.next() & 1 != 0
      let opcode: UInt8 = [0xA3, 0xAB, 0xB3, 0xBB][Int(random.next() & 3)]
      let code: [UInt8] =
        (lock && opcode != 0xA3 ? [0xF0] : []) + (wide ? [0x48] : []) + [0x0F, opcode, 0x0B, 0xF4]
      let number = UInt64(bitPattern: Int64.random(in: -0x4000...0x4000, using: &random))
      let (pattern, flags) = (random.next(), random.next() & 0x8D5)
      let pictures = machines.map { m -> [UInt64] in
        m.load(code, at: 0x1000)
        for place in stride(from: 0x3000, to: 0x5000, by: 8) { m.store(pattern, at: place) }
        m.cpu.gpr[3] = 0x4000
        m.cpu.gpr[1] = wide ? number : number & 0xFFFF_FFFF
        m.cpu.flags = flags
        m.run(from: 0x1000)
        return picture(m) + stride(from: 0x3000, to: 0x5000, by: 8).map { m.read($0) }
      }
      #expect(pictures[0] == pictures[1], "\(code) \(number)")
    }
  }
}
