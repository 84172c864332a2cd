// SPDX-License-Identifier: Apache-2.0
//
// Rows of the one-byte opcodes, and the type that all maps extend.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

/// The opcode maps as text.
enum OpcodeText {
  /// One-byte opcodes except x87 (D8 to DF).
  static let oneByte: StaticString = """
    # Arithmetic
    @ base fw lock
    00 add +Eb,Gb | 01 add +Ev,Gv | 02 add +Gb,Eb | 03 add +Gv,Ev
    04 add +%ab,Ic | 05 add +%av,Iz
    08 or +Eb,Gb | 09 or +Ev,Gv | 0A or +Gb,Eb | 0B or +Gv,Ev
    0C or +%ab,Ic | 0D or +%av,Iz
    10 adc +Eb,Gb fr | 11 adc +Ev,Gv fr | 12 adc +Gb,Eb fr | 13 adc +Gv,Ev fr
    14 adc +%ab,Ic fr | 15 adc +%av,Iz fr
    18 sbb +Eb,Gb fr | 19 sbb +Ev,Gv fr | 1A sbb +Gb,Eb fr | 1B sbb +Gv,Ev fr
    1C sbb +%ab,Ic fr | 1D sbb +%av,Iz fr
    20 and +Eb,Gb | 21 and +Ev,Gv | 22 and +Gb,Eb | 23 and +Gv,Ev
    24 and +%ab,Ic | 25 and +%av,Iz
    28 sub +Eb,Gb | 29 sub +Ev,Gv | 2A sub +Gb,Eb | 2B sub +Gv,Ev
    2C sub +%ab,Ic | 2D sub +%av,Iz
    30 xor +Eb,Gb | 31 xor +Ev,Gv | 32 xor +Gb,Eb | 33 xor +Gv,Ev
    34 xor +%ab,Ic | 35 xor +%av,Iz
    38 cmp Eb,Gb | 39 cmp Ev,Gv | 3A cmp Gb,Eb | 3B cmp Gv,Ev
    3C cmp %ab,Ic | 3D cmp %av,Iz
    80/0 add +Eb,Ic | 80/1 or +Eb,Ic | 80/2 adc +Eb,Ic fr | 80/3 sbb +Eb,Ic fr
    80/4 and +Eb,Ic | 80/5 sub +Eb,Ic | 80/6 xor +Eb,Ic | 80/7 cmp Eb,Ic
    81/0 add +Ev,Iz | 81/1 or +Ev,Iz | 81/2 adc +Ev,Iz fr | 81/3 sbb +Ev,Iz fr
    81/4 and +Ev,Iz | 81/5 sub +Ev,Iz | 81/6 xor +Ev,Iz | 81/7 cmp Ev,Iz
    82/0.x32 add +Eb,Ic | 82/1.x32 or +Eb,Ic | 82/2.x32 adc +Eb,Ic fr | 82/3.x32 sbb +Eb,Ic fr
    82/4.x32 and +Eb,Ic | 82/5.x32 sub +Eb,Ic | 82/6.x32 xor +Eb,Ic | 82/7.x32 cmp Eb,Ic
    83/0 add +Ev,Is | 83/1 or +Ev,Is | 83/2 adc +Ev,Is fr | 83/3 sbb +Ev,Is fr
    83/4 and +Ev,Is | 83/5 sub +Ev,Is | 83/6 xor +Ev,Is | 83/7 cmp Ev,Is
    40+.x32 inc +Zv | 48+.x32 dec +Zv | FE/0 inc +Eb | FE/1 dec +Eb | FF/0 inc +Ev | FF/1 dec +Ev
    F6/3 neg +Eb | F7/3 neg +Ev
    @ base lock
    F6/2 not +Eb | F7/2 not +Ev | 86 xchg +Eb,+Gb | 87 xchg +Ev,+Gv
    @ base fw
    69 imul =Gv,Ev,Iz | 6B imul =Gv,Ev,Is
    84 test Eb,Gb | 85 test Ev,Gv | A8 test %ab,Ic | A9 test %av,Iz
    F6/0 test Eb,Ic | F6/1 test Eb,Ic | F7/0 test Ev,Iz | F7/1 test Ev,Iz
    F6/4 mul Eb | F6/5 imul Eb | F6/6 div Eb | F6/7 idiv Eb
    F7/4 mul Ev | F7/5 imul Ev | F7/6 div Ev | F7/7 idiv Ev
    27.x32 daa - fr | 2F.x32 das - fr | 37.x32 aaa - fr | 3F.x32 aas - fr
    D4.x32 aam Ib | D5.x32 aad Ib
    # Shifts
    C0/0 rol +Eb,Ib | C0/1 ror +Eb,Ib | C0/2 rcl +Eb,Ib fr | C0/3 rcr +Eb,Ib fr
    C0/4 shl +Eb,Ib | C0/5 shr +Eb,Ib | C0/6 shl +Eb,Ib | C0/7 sar +Eb,Ib
    C1/0 rol +Ev,Ib | C1/1 ror +Ev,Ib | C1/2 rcl +Ev,Ib fr | C1/3 rcr +Ev,Ib fr
    C1/4 shl +Ev,Ib | C1/5 shr +Ev,Ib | C1/6 shl +Ev,Ib | C1/7 sar +Ev,Ib
    D0/0 rol +Eb,%1 | D0/1 ror +Eb,%1 | D0/2 rcl +Eb,%1 fr | D0/3 rcr +Eb,%1 fr
    D0/4 shl +Eb,%1 | D0/5 shr +Eb,%1 | D0/6 shl +Eb,%1 | D0/7 sar +Eb,%1
    D1/0 rol +Ev,%1 | D1/1 ror +Ev,%1 | D1/2 rcl +Ev,%1 fr | D1/3 rcr +Ev,%1 fr
    D1/4 shl +Ev,%1 | D1/5 shr +Ev,%1 | D1/6 shl +Ev,%1 | D1/7 sar +Ev,%1
    D2/0 rol +Eb,%cb | D2/1 ror +Eb,%cb | D2/2 rcl +Eb,%cb fr | D2/3 rcr +Eb,%cb fr
    D2/4 shl +Eb,%cb | D2/5 shr +Eb,%cb | D2/6 shl +Eb,%cb | D2/7 sar +Eb,%cb
    D3/0 rol +Ev,%cb | D3/1 ror +Ev,%cb | D3/2 rcl +Ev,%cb fr | D3/3 rcr +Ev,%cb fr
    D3/4 shl +Ev,%cb | D3/5 shr +Ev,%cb | D3/6 shl +Ev,%cb | D3/7 sar +Ev,%cb
    # Moves
    @ base
    88 mov =Eb,Gb | 89 mov =Ev,Gv | 8A mov =Gb,Eb | 8B mov =Gv,Ev
    8C/m movSegment =Mw,Sw | 8C/r movSegment =Ev,Sw | 8E movSegment =Sw,Ew ser
    8D/m lea =Gv,M0
    90.b0.f3 pause - ser | 90.b0 nop - | 90+ xchg +Zv,+%av
    98.o16 cbw | 98.o32 cwde | 98.o64 cdqe | 99.o16 cwd | 99.o32 cdq | 99.o64 cqo
    9E sahf - fw | 9F lahf - fr
    A0 mov =%ab,Ob | A1 mov =%av,Ov | A2 mov =Ob,%ab | A3 mov =Ov,%av
    B0+ mov =Zb,Ic | B8+ mov =Zv,Iv | C6/0 mov =Eb,Ic | C7/0 mov =Ev,Iz
    C4/m.x32 les =Gv,Mp ser | C5/m.x32 lds =Gv,Mp ser
    63.x32 arpl +Ew,Gw fw | 63.x64 movsxd =Gv,Ez | 62/m.x32 bound Gv,Ma
    D6.x32 salc - fr o1 | D7 xlat - o1
    F5 cmc - fw fr | F8 clc - fw | F9 stc - fw | FC cld | FD std
    FA cli - noora | FB sti - noora
    # Stack
    06.x32 pushSegment %es | 0E.x32 pushSegment %cs | 16.x32 pushSegment %ss
    1E.x32 pushSegment %ds | 07.x32 popSegment =%es ser | 17.x32 popSegment =%ss ser
    1F.x32 popSegment =%ds ser | 60.x32 pusha | 61.x32 popa
    @ base d64
    50+ push Zv | 58+ pop =Zv | 68 push Iz | 6A push Is | 8F/0 pop =Ev | FF/6 push Ev
    9C pushf - fr | 9D popf - fw noora | C8 enter Iw,Nb | C9 leave
    # Strings and ports
    @ base str
    A4 movs =Yb,Xb | A5 movs =Yv,Xv | A6 cmps Xb,Yb fw | A7 cmps Xv,Yv fw
    AA stos =Yb,%ab | AB stos =Yv,%av | AC lods =%ab,Xb | AD lods =%av,Xv
    AE scas %ab,Yb fw | AF scas %av,Yv fw
    @ base str ser noora
    6C ins =Yb,%dw | 6D ins =Yz,%dw z32 | 6E outs %dw,Xb o1 | 6F outs %dw,Xz z32
    @ base ser noora
    E4 in =%ab,Ib | E5 in =%az,Ib z32 | E6 out Ib,%ab o1 | E7 out Ib,%az z32
    EC in =%ab,%dw | ED in =%az,%dw z32 | EE out %dw,%ab o1 | EF out %dw,%az z32
    # Transfers
    @ base br f64
    70c j Jb fr | E8 call Jz | E9 jmp Jz | EB jmp Jb | FF/2 call Ev | FF/4 jmp Ev
    C2 ret Iw | C3 ret | E0 loopne Jb fr | E1 loope Jb fr | E2 loop Jb | E3 jcxz Jb
    @ base br ser
    9A.x32 callFar Ap | EA.x32 jmpFar Ap | FF/3m callFar Mp | FF/5m jmpFar Mp
    CA retFar Iw | CB retFar | CF iret - fw
    @ base br ser noora
    CC int3 | CD int Ib | CE.x32 into - fr | F1 int1 | F4 hlt - priv
    @ rtm br ser noora
    C6/7r0 xabort Ib | C7/7r0 xbegin Jz
    # `9B` waits for x87 exceptions.
    @ fpu x87
    9B fwait
    """
}
