// SPDX-License-Identifier: Apache-2.0
//
// Code that compares accesses without a look at the TLB with one, where a test asks for it
// (AccessVerification).

import X86
import X86CPU
import X86Decoder

extension BlockTranslation {
  /// The access of `n` to its memory operand, which is at `place` of the host.
  func verify(_ n: Int, _ operand: Operand, at place: Place) {
    guard verifies else { return }
    keepScratch(place)
    linearAddress(n)
    endVerification(size: Int(operand.size), write: operand.access.contains(.write))
  }

  /// The access to a word at a distance from the stack pointer.
  func verifyStack(_ displacement: Int, write: Bool, at place: Place) {
    guard verifies else { return }
    keepScratch(place)
    leaWord(.r13, .memory(RegisterMap.stackPointer, Int32(truncatingIfNeeded: displacement)))
    endVerification(size: wordSize, write: write)
  }

  /// The access whose host address is in R13, found by a remembered page.
  func verify(_ way: PageWay) {
    guard verifies else { return }
    keepScratch(.memory(.r13))
    a.arithmetic(.sub, .r13, .state(way.page.addend))
    endVerification(size: way.size, write: way.write)
  }

  private func keepScratch(_ place: Place) {
    for (n, register) in Thunks.verificationScratch.enumerated() {
      a.store(.state(VerificationOffset.kept(n)), register)
    }
    a.lea(.r13, place)
    a.store(.state(VerificationOffset.host), .r13)
  }

  /// The linear address is in R13. No flag changes.
  private func endVerification(size: Int, write: Bool) {
    a.store(.state(VerificationOffset.linear), .r13)
    a.move(.r13, immediate: UInt64(size) | (write ? AccessVerification.write : 0))
    a.store(.state(VerificationOffset.information), .r13)
    a.call(thunks.verify)
    for (n, register) in Thunks.verificationScratch.enumerated() {
      a.load(register, .state(VerificationOffset.kept(n)))
    }
  }
}

enum VerificationOffset {
  private static let start =
    MemoryLayout<CPUState>.offset(of: \.native)!
    + MemoryLayout<NativeState>.offset(of: \.verification)!
  private static func offset(_ field: PartialKeyPath<AccessVerification>) -> Int {
    start + MemoryLayout<AccessVerification>.offset(of: field)!
  }
  static let linear = offset(\.linear)
  static let host = offset(\.host)
  static let information = offset(\.information)
  static let area = offset(\.area)
  static let count = offset(\.count)
  private static let firstKept = offset(\.kept)
  static func kept(_ n: Int) -> Int { firstKept + n * 8 }
}

private let verifyAccess: @convention(c) (UnsafeMutableRawPointer) -> Void = {
  CPU($0).verifyAccess()
}

extension Thunks {
  static let verificationScratch: [HostRegister] = [.r13, .r14, .r15]
  private static let called: [HostRegister] = [
    .rax, .rcx, .rdx, .rbx, .rsi, .rdi, .rbp, .r8, .r9, .r10, .r11, .r12,
  ]
  /// x87, SSE, AVX, AVX-512.
  private static let components: UInt64 = 0xE7

  /// Called: compares an access. Clobbers R13 to R15 alone.
  static func emitVerify(_ a: inout Assembler) {
    let base = 16
    let (slow, done, read, compare) = (a.label(), a.label(), a.label(), a.label())
    a.byte(0x9C)  // pushfq
    a.load(.r13, .state(VerificationOffset.linear + base))
    a.arithmetic(.add, .state(VerificationOffset.count + base), immediate: 1)
    a.rorx(.r14, .r13, 7)
    a.arithmetic(.and, .register(.r14), immediate: Int32(TLB.indexMask << 5), wide: false)
    a.arithmetic(.add, .r14, .state(StateOffset.tlb + base))
    a.load32(.r15, .state(VerificationOffset.information + base))
    a.lea(.r15, .memory(.r13, index: .r15, -1))
    a.arithmetic(.and, .register(.r15), immediate: -4096)
    a.arithmetic(.or, .r15, .state(StateOffset.tlbContext + base))
    a.arithmetic(
      .cmp, .state(VerificationOffset.information + base + 4), immediate: 0, wide: false)
    a.jump(if: BlockTranslation.equal, read)
    a.arithmetic(.cmp, .r15, .memory(.r14, Int32(StateOffset.writeTag)))
    a.jump(compare)
    a.bind(read)
    a.arithmetic(.cmp, .r15, .memory(.r14, Int32(StateOffset.readTag)))
    a.bind(compare)
    a.jump(if: BlockTranslation.notEqual, slow)
    a.arithmetic(.add, .r13, .memory(.r14, Int32(StateOffset.addend)))
    a.arithmetic(.cmp, .r13, .state(VerificationOffset.host + base))
    a.jump(if: BlockTranslation.equal, done)
    a.bind(slow)
    for register in called { a.push(register) }
    let state = base + called.count * 8
    a.load(.r12, .state(VerificationOffset.area + state))
    a.move(.rax, immediate: components)
    a.move(.rdx, immediate: 0)
    a.emit(Form(0xAE, map: .two, wide: true), reg: 4, rm: .memory(.r12))  // xsave64
    a.emit(0xDB, 0xE3)  // fninit
    a.emit(Form(0xAE, map: .two), reg: 2, rm: .state(VectorOffset.hostMXCSR + state))  // ldmxcsr
    a.lea(.rdi, .state(state))
    a.move(.rax, immediate: UInt64(UInt(bitPattern: unsafeBitCast(verifyAccess, to: Int.self))))
    a.call(.rax)
    a.move(.rax, immediate: components)
    a.move(.rdx, immediate: 0)
    a.emit(Form(0xAE, map: .two, wide: true), reg: 5, rm: .memory(.r12))  // xrstor64
    for register in called.reversed() { a.pop(register) }
    a.bind(done)
    a.byte(0x9D)  // popfq
    a.ret()
  }
}
