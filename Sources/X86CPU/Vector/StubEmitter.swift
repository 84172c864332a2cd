// SPDX-License-Identifier: Apache-2.0
//
// The machine code that surrounds a guest instruction in its stub: loads and stores of the vector
// state at RDI. Not an assembler; each function emits one fixed form.

import X86

struct StubEmitter {
  private(set) var code: [UInt8] = []

  mutating func emit(_ bytes: UInt8...) { code.append(contentsOf: bytes) }

  mutating func emit(_ bytes: CodeBytes) {
    for index in 0..<bytes.count { code.append(bytes[index]) }
  }

  mutating func emit32(_ value: Int) {
    let value = UInt32(truncatingIfNeeded: value)
    for shift in [0, 8, 16, 24] as [UInt32] {
      code.append(UInt8(truncatingIfNeeded: value &>> shift))
    }
  }

  /// ModRM and displacement of `[rdi + offset]`.
  private mutating func state(_ register: UInt8, _ offset: Int) {
    code.append(0x87 | (register & 7) << 3)
    emit32(offset)
  }

  // MARK: Vector state

  enum Direction: UInt8 {
    case load = 0
    case store = 1
  }

  /// MOVUPS, VMOVUPS ymm or VMOVUPS zmm between register `number` and the state.
  mutating func vector(_ number: UInt8, width: VectorWidth, _ direction: Direction) {
    switch width {
    case .xmm:
      if number & 8 != 0 { emit(0x44) }
      emit(0x0F, 0x10 | direction.rawValue)
    case .ymm:
      emit(0xC5, (number & 8 == 0 ? 0x80 : 0) | 0x7C, 0x10 | direction.rawValue)
    case .zmm:
      let r: UInt8 = number & 8 == 0 ? 0x80 : 0
      let r2: UInt8 = number & 16 == 0 ? 0x10 : 0
      emit(0x62, r | 0x60 | r2 | 0x01, 0x7C, 0x48, 0x10 | direction.rawValue)
    }
    state(number, VectorLayout.zmm + Int(number) * 64)
  }

  /// KMOVQ (KMOVW if the host has no AVX512BW).
  mutating func mask(_ number: UInt8, wide: Bool, _ direction: Direction) {
    emit(0xC4, 0xE1, wide ? 0xF8 : 0x78, 0x90 | direction.rawValue)
    state(number, VectorLayout.opmask + Int(number) * 8)
  }

  /// MOVQ of an MMX register; a store also sets the exponent for x87.
  mutating func mmx(_ number: UInt8, _ direction: Direction) {
    let slot = VectorLayout.st + Int(number) * 16
    emit(0x0F, direction == .load ? 0x6F : 0x7F)
    state(number, slot)
    if direction == .store {
      emit(0x66, 0xC7)
      state(0, slot + 8)
      emit(0xFF, 0xFF)
    }
  }

  // MARK: x87

  mutating func fxrstor() {
    emit(0x48, 0x0F, 0xAE)
    state(1, VectorLayout.fx)
  }

  /// FXSAVE64, then a clean x87 unit and MXCSR for the program.
  mutating func fxsave() {
    emit(0x48, 0x0F, 0xAE)
    state(0, VectorLayout.fx)
    emit(0xDB, 0xE3)
    loadDefaultMXCSR()
  }

  // MARK: MXCSR

  /// MXCSR as required by ABI and Swift, without flags.
  static let defaultMXCSR = 0x1F80

  private mutating func loadDefaultMXCSR() {
    emit(0xC7)
    state(0, VectorLayout.mxcsrScratch)
    emit32(Self.defaultMXCSR)
    emit(0x0F, 0xAE)
    state(2, VectorLayout.mxcsrScratch)
  }

  /// Loads the guest's MXCSR into the host's with all exceptions masked. Clears flags only if the
  /// guest has unmasked an exception, and so must detect new ones. Thus the host's register mostly
  /// has the right value already, and LDMXCSR (slow) is rare. Clobbers ECX and R8.
  mutating func enterGuestMXCSR() {
    emit(0x0F, 0xAE)  // stmxcsr [scratch]
    state(3, VectorLayout.mxcsrScratch)
    emit(0x44, 0x8B)  // mov r8d, [mxcsr]
    state(0, VectorLayout.mxcsr)
    emit(0x44, 0x89, 0xC1)  // mov ecx, r8d
    emit(0xF7, 0xD1)  // not ecx
    emit(0xF7, 0xC1)  // test ecx, 0x1F80
    emit32(0x1F80)
    emit(0x74, 0x0B)  // jz over the next two
    emit(0x41, 0x81, 0xC8)  // or r8d, 0x1F80
    emit32(0x1F80)
    emit(0x41, 0x83, 0xE0, 0xC0)  // and r8d, ~0x3F
    emit(0x44, 0x3B)  // cmp r8d, [scratch]
    state(0, VectorLayout.mxcsrScratch)
    emit(0x74, 0x0E)  // je over the next two
    emit(0x44, 0x89)  // mov [scratch], r8d
    state(0, VectorLayout.mxcsrScratch)
    emit(0x0F, 0xAE)  // ldmxcsr [scratch]
    state(2, VectorLayout.mxcsrScratch)
  }

  /// Copies the flags back into the guest's MXCSR, or returns `StubResult.exception` with them if
  /// one is unmasked. Clobbers ECX, ESI and R9; keeps RAX, RDX, R11 and the vector registers.
  mutating func leaveGuestMXCSR(cleanUpper: Bool) {
    emit(0x0F, 0xAE)  // stmxcsr [scratch]
    state(3, VectorLayout.mxcsrScratch)
    emit(0x44, 0x8B)  // mov r9d, [scratch]
    state(1, VectorLayout.mxcsrScratch)
    emit(0x8B)  // mov ecx, [mxcsr]
    state(1, VectorLayout.mxcsr)
    emit(0x44, 0x89, 0xCE)  // mov esi, r9d
    emit(0x81, 0xE6)  // and esi, 0xFFFFFFC0
    emit32(0xFFFF_FFC0)
    emit(0x81, 0xFE)  // cmp esi, 0x1F80
    emit32(Self.defaultMXCSR)
    emit(0x74, 0x11)  // je over the load
    loadDefaultMXCSR()
    emit(0x41, 0x83, 0xE1, 0x3F)  // and r9d, 0x3F
    emit(0x89, 0xCE, 0xC1, 0xEE, 0x07, 0xF7, 0xD6)  // mov esi, ecx; shr esi, 7; not esi
    emit(0x44, 0x21, 0xCE)  // and esi, r9d
    emit(0x74, cleanUpper ? 0x0C : 0x09)  // jz over the return
    emit(0xB8)  // mov eax, exception
    emit32(Int(StubResult.exception))
    emit(0x44, 0x09, 0xC8)  // or eax, r9d
    if cleanUpper { vzeroupper() }
    emit(0xC3)
    emit(0x44, 0x09, 0xC9)  // or ecx, r9d
    emit(0x89)  // mov [mxcsr], ecx
    state(1, VectorLayout.mxcsr)
  }

  mutating func vzeroupper() { emit(0xC5, 0xF8, 0x77) }
}

/// How much of a vector register a stub copies.
enum VectorWidth: UInt8 {
  case xmm, ymm, zmm
}

/// A stub's result in RAX: RFLAGS if it captures them, or an exception.
enum StubResult {
  /// An unmasked SIMD exception; bits 5:0 are all those raised, nothing is committed.
  static let exception: UInt64 = 1 << 31
}

/// Offsets in `VectorState`.
package enum VectorLayout {
  package static let zmm = MemoryLayout<VectorState>.offset(of: \.zmm)!
  package static let fx = MemoryLayout<VectorState>.offset(of: \.fx)!
  package static let opmask = MemoryLayout<VectorState>.offset(of: \.opmask)!
  package static let scratch = MemoryLayout<VectorState>.offset(of: \.scratch)!
  static let kept = MemoryLayout<VectorState>.offset(of: \.keptX87)!
  /// Fields of the FXSAVE image (SDM volume 1, "FXSAVE area").
  package static let fcw = fx
  package static let fsw = fx + 2
  package static let ftw = fx + 4
  package static let fop = fx + 6
  package static let fip = fx + 8
  package static let fdp = fx + 16
  package static let mxcsr = fx + 24
  package static let mxcsrMask = fx + 28
  package static let st = fx + 32
  /// Four bytes for STMXCSR and LDMXCSR; the start of `scratch` is the bounce buffer.
  package static let mxcsrScratch = scratch + 496
}
