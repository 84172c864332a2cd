// SPDX-License-Identifier: Apache-2.0

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

@Suite struct EncodingTests {
  @Test func theExampleOfTheContract() throws {
    let add = try decode([0x48, 0x01, 0x44, 0x8B, 0x10], .bits64).get()
    #expect(add.mnemonic == .add)
    #expect(add.length == 5)
    #expect(add.operandSize == 8)
    #expect(add.addressSize == 8)
    #expect(add.segment == .ds)
    #expect(add.operands[0] == Operand(.memory, size: 8, access: [.read, .write]))
    #expect(add.operands[1] == Operand(.general, number: 0, size: 8, access: .read))
    #expect(add.base == 3 && add.index == 1 && add.scale == 2 && add.displacement == 0x10)
  }
}
