// SPDX-License-Identifier: Apache-2.0
//
// Single encodings with the instruction or error that they must give, written out by hand;
// texts are in the spelling of objdump.

import Testing
import X86
import X86Decoder

func decode(_ bytes: [UInt8], _ mode: CodeMode) -> Result<Instruction, DecodeError> {
  bytes.withUnsafeBytes { buffer in
    do throws(DecodeError) { return .success(try Decoder.decode(buffer, mode: mode)) } catch {
      return .failure(error)
    }
  }
}

/// `48 01 d8` to bytes.
func bytes(_ text: String) -> [UInt8] {
  text.split(separator: " ").compactMap { UInt8($0, radix: 16) }
}

@Suite struct EncodingTests {
  @Test func theExampleOfTheContract() throws {
    let add = try decode(bytes("48 01 44 8B 10"), .bits64).get()
    #expect(add.mnemonic == .add)
    #expect(add.length == 5)
    #expect(add.operandSize == 8)
    #expect(add.addressSize == 8)
    #expect(add.segment == .ds)
    #expect(add.operands[0] == Operand(.memory, size: 8, access: [.read, .write]))
    #expect(add.operands[1] == Operand(.general, number: 0, size: 8, access: .read))
    #expect(add.base == 3 && add.index == 1 && add.scale == 2 && add.displacement == 0x10)
  }

  private static let texts: [(CodeMode, String, String)] = [
    (.bits16, "01 d8", "add ax,bx"),
    (.bits16, "66 01 d8", "add eax,ebx"),
    (.bits16, "8b 46 fe", "mov ax,WORD PTR [bp-0x2]"),
    (.bits16, "67 8b 04 24", "mov ax,WORD PTR [esp]"),
    (.bits16, "8b 0e 34 12", "mov cx,WORD PTR ds:0x1234"),
    (.bits16, "ea 00 00 00 f0", "jmp 0xf000:0x0"),
    (.bits16, "66 ea 78 56 34 12 10 00", "jmp 0x10:0x12345678"),
    (.bits16, "c5 06 00 02", "lds ax,DWORD PTR ds:0x200"),
    (.bits16, "62 06 00 02", "bound ax,DWORD PTR ds:0x200"),
    (.bits16, "f3 a5", "rep movs WORD PTR es:[di],WORD PTR ds:[si]"),
    (.bits16, "0f 01 16 00 10", "lgdt FWORD PTR ds:0x1000"),
    (.bits16, "0f 20 c0", "mov eax,cr0"),
    (.bits16, "e3 fe", "jcxz 0x0"),
    (.bits32, "40", "inc eax"),
    (.bits32, "c4 e2 79 18 00", "vbroadcastss xmm0,DWORD PTR [eax]"),
    (.bits32, "c4 00", "les eax,FWORD PTR [eax]"),
    (.bits32, "62 00", "bound eax,QWORD PTR [eax]"),
    (.bits32, "63 c8", "arpl ax,cx"),
    (.bits32, "65 a1 14 00 00 00", "mov eax,gs:0x14"),
    (.bits32, "82 c0 01", "add al,0x1"),
    (.bits32, "f2 0f 38 f0 c1", "crc32 eax,cl"),
    (.bits64, "90", "nop"),
    (.bits64, "41 90", "xchg r8d,eax"),
    (.bits64, "f3 90", "pause"),
    (.bits64, "48 b8 08 07 06 05 04 03 02 01", "movabs rax,0x102030405060708"),
    (.bits64, "c7 44 24 08 01 00 00 00", "mov DWORD PTR [rsp+0x8],0x1"),
    (.bits64, "48 c7 c0 ff ff ff ff", "mov rax,0xffffffffffffffff"),
    (.bits64, "88 e0", "mov al,ah"),
    (.bits64, "40 88 e0", "mov al,spl"),
    (.bits64, "44 8a 3d 00 01 00 00", "mov r15b,BYTE PTR [rip+0x100]"),
    (.bits64, "65 48 8b 04 25 28 00 00 00", "mov rax,QWORD PTR gs:0x28"),
    (.bits64, "66 e9 fa ff ff ff", "jmp 0x0"),
    (.bits64, "eb fe", "jmp 0x0"),
    (.bits64, "0f 84 fa ff ff ff", "je 0x0"),
    (.bits64, "66 50", "push ax"),
    (.bits64, "6a ff", "push 0xffffffffffffffff"),
    (.bits64, "48 cf", "iretq"),
    (.bits64, "f0 0f b1 0a", "lock cmpxchg DWORD PTR [rdx],ecx"),
    (.bits64, "f0 48 0f c7 0e", "lock cmpxchg16b XMMWORD PTR [rsi]"),
    (.bits64, "44 0f 20 c0", "mov rax,cr8"),
    (.bits64, "0f c7 38", "vmptrst QWORD PTR [rax]"),
    (.bits64, "f3 0f c7 30", "vmxon QWORD PTR [rax]"),
    (.bits64, "0f 01 c1", "vmcall"),
    (.bits64, "0f 01 f8", "swapgs"),
    (.bits64, "f3 48 0f ae c0", "rdfsbase rax"),
    (.bits64, "66 0f 38 80 00", "invept rax,XMMWORD PTR [rax]"),
    (.bits64, "f3 0f 1e fa", "endbr64"),
    (.bits64, "48 0f ae 27", "xsave64 [rdi]"),
    (.bits64, "0f a4 c8 05", "shld eax,ecx,0x5"),
    (.bits64, "c8 10 00 01", "enter 0x10,0x1"),
    (.bits64, "d9 c9", "fxch st,st(1)"),
    (.bits64, "de c1", "faddp st(1),st"),
    (.bits64, "db 28", "fld TBYTE PTR [rax]"),
    (.bits64, "0f 6f c1", "movq mm0,mm1"),
    (.bits64, "66 48 0f 6e c0", "movq xmm0,rax"),
    (.bits64, "f2 0f 10 00", "movsd xmm0,QWORD PTR [rax]"),
    (.bits64, "66 0f 38 00 c1", "pshufb xmm0,xmm1"),
    (.bits64, "66 0f 3a 44 c1 11", "pclmulqdq xmm0,xmm1,0x11"),
    (.bits64, "c5 f4 58 c2", "vaddps ymm0,ymm1,ymm2"),
    (.bits64, "c4 e2 f1 98 c2", "vfmadd132pd xmm0,xmm1,xmm2"),
    (.bits64, "c4 e3 71 4a c2 30", "vblendvps xmm0,xmm1,xmm2,xmm3"),
    (.bits64, "c4 e2 e1 90 14 48", "vpgatherdq xmm2,QWORD PTR [rax+xmm1*2],xmm3"),
    (.bits64, "c4 e2 78 f3 c8", "blsr eax,eax"),
    (.bits64, "62 f1 7c 48 58 40 01", "vaddps zmm0,zmm0,ZMMWORD PTR [rax+0x40]"),
    (.bits64, "62 f1 7c 58 58 40 01", "vaddps zmm0,zmm0,DWORD BCST [rax+0x4]"),
    (.bits64, "62 f1 7c d9 58 c1", "vaddps zmm0{k1}{z},zmm0,zmm1{ru-sae}"),
    (.bits64, "62 f2 7d 49 90 04 08", "vpgatherdd zmm0{k1},DWORD PTR [rax+zmm1*1]"),
    (.bits64, "62 01 7d 40 fe ff", "vpaddd zmm31,zmm16,zmm31"),
    (.bits64, "c5 f8 92 c8", "kmovw k1,eax"),
  ]

  @Test func textsOfEncodings() {
    for (mode, hex, text) in Self.texts {
      guard case .success(let instruction) = decode(bytes(hex), mode) else {
        Issue.record("\(hex) does not decode: \(text)")
        continue
      }
      #expect(Disassembler.text(instruction) == text, "\(hex)")
      #expect(Int(instruction.length) == bytes(hex).count, "\(hex)")
    }
  }

  private static let invalid: [(CodeMode, String, String)] = [
    (.bits64, "06", "PUSH ES"), (.bits64, "60", "PUSHA"),
    (.bits64, "9a 00 00 00 00 00 00", "CALLF"),
    (.bits64, "82 c0 01", "alias of 80"), (.bits64, "d6", "SALC"), (.bits64, "27", "DAA"),
    (.bits64, "f0 01 d8", "LOCK with a register"), (.bits64, "f0 03 00", "LOCK with a source"),
    (.bits64, "f0 8b 00", "LOCK MOV"), (.bits64, "f0 39 00", "LOCK CMP"),
    (.bits64, "8e c8", "MOV CS"), (.bits64, "8e f0", "segment 6"), (.bits64, "0f 20 c8", "CR1"),
    (.bits64, "0f 20 e8", "CR5"), (.bits64, "44 0f 21 c0", "DR8"), (.bits64, "8d c0", "LEA reg"),
    (.bits64, "66 c5 f4 58 c2", "66 VEX"), (.bits64, "f3 c5 f4 58 c2", "F3 VEX"),
    (.bits64, "40 c5 f4 58 c2", "REX VEX"), (.bits64, "f0 c5 f4 58 00", "LOCK VEX"),
    (.bits64, "c5 f4 28 c2", "vvvv of VMOVAPS"), (.bits64, "c5 fd 6e c0", "L of VMOVD"),
    (.bits64, "c4 e2 f9 18 00", "W of VBROADCASTSS"), (.bits64, "c4 e2 74 f2 c0", "L of ANDN"),
    (.bits64, "c4 e2 71 92 04 0d 00 00 00 00", "gather with index = mask"),
    (.bits64, "62 f1 7c 68 58 c1", "L'L = 3"), (.bits64, "62 f1 7e 68 58 c1", "scalar L'L = 3"),
    (.bits64, "62 f1 74 4c 28 c1", "EVEX vvvv"), (.bits64, "62 f9 7c 48 58 c1", "EVEX reserved"),
    (.bits64, "62 f1 78 48 58 c1", "EVEX fixed bit"), (.bits64, "62 f1 7d 58 fe c1", "b of VPADDD"),
    (.bits64, "62 f1 7c c8 58 c1", "zeroing without mask"),
    (.bits64, "62 f1 7c c9 11 00", "zeroing a store"), (.bits64, "62 f2 7d 48 90 04 08", "no mask"),
    (.bits64, "62 e1 7f 08 2c c1", "R' of a general register"),
    (.bits64, "0f 0f c0 9e", "3DNow!"),
    (.bits64, "c6 c8 01", "C6 /1"), (.bits64, "8f c8", "8F /1"), (.bits64, "fe d0", "FE /2"),
    (.bits64, "f3 0f 54 c0", "F3 ANDPS"), (.bits64, "66 0f ae e8", "66 LFENCE"),
    (.bits32, "c4 e2 39 18 00", "vvvv outside 64-bit mode"), (.bits32, "0f 01 f8", "SWAPGS"),
  ]

  @Test func whatIsNoInstruction() {
    for (mode, hex, why) in Self.invalid {
      #expect(decode(bytes(hex), mode).failure == .invalidOpcode, "\(hex) \(why)")
    }
    #expect(decode(bytes("0f ff"), .bits64).failure == .truncated)
    #expect(decode([], .bits64).failure == .truncated)
  }

  @Test func attributesThatReadersNeed() throws {
    func row(_ hex: String, _ mode: CodeMode = .bits64) throws -> Instruction {
      try decode(bytes(hex), mode).get()
    }
    #expect(try row("75 00").attributes.isSuperset(of: [.branch, .readsFlags, .default64]))
    #expect(try row("75 00").operandSize == 8)
    #expect(try row("0f 30").attributes.isSuperset(of: [.privileged, .serializes]))
    #expect(try row("0f 28 00").attributes.isSuperset(of: [.vector, .aligned]))
    #expect(try !row("0f 10 00").attributes.contains(.aligned))
    #expect(try row("0f a2").attributes.contains(.notForOracle))
    #expect(try row("f3 a4").attributes.contains(.string))
    #expect(try row("62 f1 7c 08 58 c1").attributes.isSuperset(of: [.vectorLength, .avx]))
    #expect(try row("c5 f5 fe c2").feature == .avx2)
    #expect(try row("c5 f1 fe c2").feature == .avx)
    #expect(try row("d8 c1").attributes.isSuperset(of: [.x87, .vector]))
    #expect(try row("db e3").attributes.contains(.nonWaiting))
    #expect(try row("e5 10").operandSize == 4)
    #expect(try row("48 e5 10").operandSize == 4)
    #expect(try row("8b 45 00").segment == .ss)
    #expect(try row("2e 8b 45 00").segment == .ss)
    #expect(try row("2e 8b 45 00", .bits32).segment == .cs)
    #expect(try row("c0 e0 ff").immediate == 0xFF)
    #expect(try row("83 c0 ff").immediate == -1)
    #expect(try row("e6 f0").immediate == 0xF0)
  }
}

extension Result {
  fileprivate var failure: Failure? {
    if case .failure(let error) = self { return error }
    return nil
  }
}
