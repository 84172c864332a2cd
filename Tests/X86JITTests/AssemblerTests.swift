// SPDX-License-Identifier: Apache-2.0
//
// The assembler against the project's decoder, whose tables have their own tests against objdump.

import Testing
import X86Decoder
import X86JIT

@Suite struct AssemblerTests {
  private func text(_ body: (inout Assembler) -> Void) -> [String] {
    var a = Assembler(origin: 0x1000)
    body(&a)
    a.resolve()
    var result: [String] = []
    var offset = 0
    while offset < a.bytes.count {
      let rest = Array(a.bytes[offset...])
      guard let i = rest.withUnsafeBytes({ try? Decoder.decode($0, mode: .bits64) }) else {
        return result + ["undecodable"]
      }
      result.append(Disassembler.text(i, at: 0x1000 + UInt64(offset)))
      offset += Int(i.length)
    }
    return result
  }

  @Test func sequences() {
    #expect(
      text {
        $0.move(.r13, .rax)
        $0.load(.r12, .state(32))
        $0.store(.state(0x1234), .rbp)
        $0.lea(.rsp, .memory(.rsp, -8))
        $0.lea32(.r13, .memory(.rax, index: .r12, scale: 3, 5))
        $0.rorx(.r14, .r13, 7)
        $0.arithmetic(.and, .register(.r14), immediate: 0x7FE0, wide: false)
        $0.arithmetic(.cmp, .r15, .memory(.r14))
        $0.jump(.r15)
        $0.ret()
      } == [
        "mov r13,rax", "mov r12,QWORD PTR [rsp-0x40]", "mov QWORD PTR [rsp+0x11d4],rbp",
        "lea rsp,[rsp-0x8]", "lea r13d,[rax+r12*8+0x5]", "rorx r14,r13,0x7", "and r14d,0x7fe0",
        "cmp r15,QWORD PTR [r14]", "jmp r15", "ret",
      ])
  }

  @Test func immediatesTakeTheShortestForm() {
    #expect(
      text {
        $0.move(.r13, immediate: 5)
        $0.move(.rax, immediate: 0xFFFF_FFFF_FFFF_FFF0)
        $0.move(.r9, immediate: 0x1_0000_0000)
      } == ["mov r13d,0x5", "mov rax,0xfffffffffffffff0", "movabs r9,0x100000000"])
  }

  @Test func flagsAreSavedAndRestored() {
    #expect(
      text { $0.saveFlags(.state(0x100), temporary: .r14) } == [
        "mov r14,rax", "lahf", "seto al", "mov WORD PTR [rsp+0xa0],ax", "mov rax,r14",
      ])
    #expect(
      text { $0.restoreFlags(.state(0x100), temporary: .r14) } == [
        "mov r14,rax", "movzx eax,WORD PTR [rsp+0xa0]", "add al,0x7f", "sahf", "mov rax,r14",
      ])
  }

  @Test func jumpsReachTheirLabels() {
    var a = Assembler(origin: 0x1000)
    let (back, forward) = (a.label(), a.label())
    a.bind(back)
    a.jump(if: 5, forward)
    a.jump(back)
    a.bind(forward)
    a.resolve()
    #expect(a.bytes == [0x0F, 0x85, 5, 0, 0, 0, 0xE9, 0xF5, 0xFF, 0xFF, 0xFF])
  }

  /// Every base, index and kind of displacement comes back from the decoder.
  @Test func allAddresses() throws {
    let registers: [HostRegister?] = [nil] + (0..<16).map { HostRegister(rawValue: $0) }
    for base in registers {
      for index in registers where index != .rsp {
        for displacement: Int32 in [0, 1, -128, 127, 128, -129, 0x1234_5678] {
          try check(base, index, UInt8(truncatingIfNeeded: displacement) & 3, displacement)
        }
      }
    }
  }

  private func check(
    _ base: HostRegister?, _ index: HostRegister?, _ scale: UInt8, _ displacement: Int32
  ) throws {
    var a = Assembler(origin: 0)
    a.lea(.r9, .memory(base, index: index, scale: index == nil ? 0 : scale, displacement))
    let i = try a.bytes.withUnsafeBytes { try Decoder.decode($0, mode: .bits64) }
    try #require(Int(i.length) == a.bytes.count)
    #expect(i.operands[0].number == 9)
    #expect(i.base == base?.rawValue ?? Instruction.noRegister)
    #expect(i.index == index?.rawValue ?? Instruction.noRegister)
    #expect(i.displacement == Int64(displacement))
    #expect(index == nil || i.scale == scale)
  }
}
