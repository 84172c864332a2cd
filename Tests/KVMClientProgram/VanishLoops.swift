// SPDX-License-Identifier: Apache-2.0
//
// Guests that access memory at RBX in endless loops, and what is true of their registers wherever
// an access may fault.

import CHost

struct VanishLoop: Sendable {
  var name: String
  var code: [UInt8]
  /// What is in the memory counts: it must not be lost.
  var needsContents = false
  /// Whether the state is one at the instruction at this offset of the code.
  var holds: @Sendable (_ offset: UInt64, _ r: kvm_regs, _ client: LongModeClient) -> Bool
}

private let base = LongModeClient.base
private let top = base + 0x8000

let vanishLoops: [VanishLoop] = [
  // l: mov rax, [rbx]; inc rcx; jmp l
  VanishLoop(name: "read", code: [0x48, 0x8B, 0x03, 0x48, 0xFF, 0xC1, 0xEB, 0xF8]) { at, _, _ in
    at == 0
  },
  // l: mov [rbx], rcx; inc rcx; jmp l
  VanishLoop(name: "write", code: [0x48, 0x89, 0x0B, 0x48, 0xFF, 0xC1, 0xEB, 0xF8]) { at, _, _ in
    at == 0
  },
  // l: lock xadd [rbx], rax; inc rcx; jmp l
  VanishLoop(
    name: "exchange", code: [0xF0, 0x48, 0x0F, 0xC1, 0x03, 0x48, 0xFF, 0xC1, 0xEB, 0xF6]
  ) { at, _, _ in
    at == 0
  },
  // l: mov rax, [rbx]; inc rcx; mov rdx, [rbx+8]; inc rsi; mov [rbx+16], rdi; inc rdi; jmp l
  VanishLoop(
    name: "group",
    code: [
      0x48, 0x8B, 0x03, 0x48, 0xFF, 0xC1, 0x48, 0x8B, 0x53, 0x08, 0x48, 0xFF, 0xC6, 0x48, 0x89,
      0x7B, 0x10, 0x48, 0xFF, 0xC7, 0xEB, 0xEA,
    ]
  ) { at, r, _ in
    switch at {
    case 0: r.rcx == r.rsi && r.rsi == r.rdi
    case 6: r.rcx == r.rsi + 1 && r.rsi == r.rdi
    case 13: r.rcx == r.rsi && r.rsi == r.rdi + 1
    default: false
    }
  },
  // l: push rcx; inc rcx; pop rdx; inc rsi; jmp l
  VanishLoop(
    name: "stack", code: [0x51, 0x48, 0xFF, 0xC1, 0x5A, 0x48, 0xFF, 0xC6, 0xEB, 0xF6]
  ) { at, r, _ in
    switch at {
    case 0: r.rcx == r.rsi && r.rsp == top
    case 4: r.rcx == r.rsi + 1 && r.rsp == top - 8
    default: false
    }
  },
  // l: call f; inc rcx; jmp l; f: inc rsi; ret
  VanishLoop(
    name: "call",
    code: [0xE8, 5, 0, 0, 0, 0x48, 0xFF, 0xC1, 0xEB, 0xF6, 0x48, 0xFF, 0xC6, 0xC3],
    needsContents: true
  ) { at, r, _ in
    switch at {
    case 0: r.rcx == r.rsi && r.rsp == top
    case 13: r.rsi == r.rcx + 1 && r.rsp == top - 8
    default: false
    }
  },
  // l: lea rbp, [rbx+0x100]; inc rcx; leave; inc rsi; lea rsp, [rbx+0x8000]; jmp l
  VanishLoop(
    name: "leave",
    code: [
      0x48, 0x8D, 0xAB, 0, 1, 0, 0, 0x48, 0xFF, 0xC1, 0xC9, 0x48, 0xFF, 0xC6, 0x48, 0x8D, 0xA3, 0,
      0x80, 0, 0, 0xEB, 0xE9,
    ]
  ) { at, r, _ in
    at == 10 && r.rcx == r.rsi + 1 && r.rbp == base + 0x100 && r.rsp == top
  },
  // t: mov rdi, rbx; xor ecx, ecx; l: mov rax, [rdi]; add rdi, 8; inc rcx; cmp rdi, r8; jne l; jmp
  // t
  VanishLoop(
    name: "rounds",
    code: [
      0x48, 0x89, 0xDF, 0x31, 0xC9, 0x48, 0x8B, 0x07, 0x48, 0x83, 0xC7, 0x08, 0x48, 0xFF, 0xC1,
      0x4C, 0x39, 0xC7, 0x75, 0xF1, 0xEB, 0xEA,
    ]
  ) { at, r, _ in
    at == 5 && r.rdi == base + 8 * r.rcx
  },
  // t: xor ecx, ecx; l: mov rax, [rbx+rcx*8]; add rdx, [rbx+rcx*8+0x4000];
  // mov [rbx+rcx*8+0x8000], rcx; inc rcx; cmp rcx, 0x600; jne l; jmp t
  VanishLoop(
    name: "sum",
    code: [
      0x31, 0xC9, 0x48, 0x8B, 0x04, 0xCB, 0x48, 0x03, 0x94, 0xCB, 0, 0x40, 0, 0, 0x48, 0x89, 0x8C,
      0xCB, 0, 0x80, 0, 0, 0x48, 0xFF, 0xC1, 0x48, 0x81, 0xF9, 0, 6, 0, 0, 0x75, 0xE0, 0xEB, 0xDC,
    ]
  ) { at, r, _ in
    (at == 2 || at == 6 || at == 14) && r.rcx < 0x600
  },
  // t: mov rdi, rbx; mov ecx, 0x2000; rep stosq; inc rsi; jmp t
  VanishLoop(
    name: "string",
    code: [
      0x48, 0x89, 0xDF, 0xB9, 0, 0x20, 0, 0, 0xF3, 0x48, 0xAB, 0x48, 0xFF, 0xC6, 0xEB, 0xF0,
    ]
  ) { at, r, _ in
    at == 8 && r.rdi == base + 8 * (0x2000 - r.rcx)
  },
  // t: mov rdi, rbx; mov ecx, 0x40; rep stosq; inc rsi; jmp t: in one page
  VanishLoop(
    name: "short string",
    code: [
      0x48, 0x89, 0xDF, 0xB9, 0x40, 0, 0, 0, 0xF3, 0x48, 0xAB, 0x48, 0xFF, 0xC6, 0xEB, 0xF0,
    ]
  ) { at, r, _ in
    at == 8 && r.rdi == base + 8 * (0x40 - r.rcx)
  },
  // t: mov rsi, rbx; lea rdi, [rbx+0x8000]; mov ecx, 0x40; rep movsq; inc rdx; jmp t: in two pages
  VanishLoop(
    name: "short copy",
    code: [
      0x48, 0x89, 0xDE, 0x48, 0x8D, 0xBB, 0, 0x80, 0, 0, 0xB9, 0x40, 0, 0, 0, 0xF3, 0x48, 0xA5,
      0x48, 0xFF, 0xC2, 0xEB, 0xE9,
    ]
  ) { at, r, _ in
    at == 15 && r.rsi == base + 8 * (0x40 - r.rcx) && r.rdi == r.rsi + 0x8000
  },
  // t: mov rsi, rbx; lea rdi, [rbx+0x8000]; mov ecx, 0x1000; rep movsq; inc rdx; jmp t
  VanishLoop(
    name: "copy",
    code: [
      0x48, 0x89, 0xDE, 0x48, 0x8D, 0xBB, 0, 0x80, 0, 0, 0xB9, 0, 0x10, 0, 0, 0xF3, 0x48, 0xA5,
      0x48, 0xFF, 0xC2, 0xEB, 0xE9,
    ]
  ) { at, r, _ in
    at == 15 && r.rsi == base + 8 * (0x1000 - r.rcx) && r.rdi == r.rsi + 0x8000
  },
  // l: movups xmm0, [rbx]; paddq xmm1, xmm2; inc rcx; movups [rbx+0x20], xmm1; inc rsi; jmp l
  VanishLoop(
    name: "vector",
    code: [
      0x0F, 0x10, 0x03, 0x66, 0x0F, 0xD4, 0xCA, 0x48, 0xFF, 0xC1, 0x0F, 0x11, 0x4B, 0x20, 0x48,
      0xFF, 0xC6, 0xEB, 0xED,
    ]
  ) { at, r, client in
    switch at {
    case 0: r.rcx == r.rsi && client.vector == r.rcx
    case 10: r.rcx == r.rsi + 1 && client.vector == r.rcx
    default: false
    }
  },
  // l: fld qword [rbx]; inc rcx; fistp qword [rbx+0x40]; inc rsi; jmp l
  VanishLoop(
    name: "x87",
    code: [0xDD, 0x03, 0x48, 0xFF, 0xC1, 0xDF, 0x7B, 0x40, 0x48, 0xFF, 0xC6, 0xEB, 0xF3]
  ) { at, r, client in
    switch at {
    case 0: r.rcx == r.rsi && client.stackTop == 0
    case 5: r.rcx == r.rsi + 1 && client.stackTop == 7
    default: false
    }
  },
  // l: cmp rcx, rcx; mov rax, [rbx]; jne b; inc rcx; cmp rcx, 0; mov rdx, [rbx+8]; je b; jmp l;
  // b: out 0xe9, al
  VanishLoop(
    name: "flags",
    code: [
      0x48, 0x39, 0xC9, 0x48, 0x8B, 0x03, 0x75, 0x0F, 0x48, 0xFF, 0xC1, 0x48, 0x83, 0xF9, 0, 0x48,
      0x8B, 0x53, 0x08, 0x74, 0x02, 0xEB, 0xE9, 0xE6, 0xE9,
    ]
  ) { at, r, _ in
    switch at {
    case 3: r.rflags & 0x40 != 0
    case 15: r.rflags & 0x40 == 0
    default: false
    }
  },
  // l: mov r13, [rbx]; inc r14; add r15, [rbx+8]; inc rcx; jmp l
  VanishLoop(
    name: "high",
    code: [
      0x4C, 0x8B, 0x2B, 0x49, 0xFF, 0xC6, 0x4C, 0x03, 0x7B, 0x08, 0x48, 0xFF, 0xC1, 0xEB, 0xF1,
    ]
  ) { at, r, _ in
    switch at {
    case 0: r.r14 == r.rcx
    case 6: r.r14 == r.rcx + 1
    default: false
    }
  },
]
