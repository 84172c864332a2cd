// SPDX-License-Identifier: Apache-2.0
//
// Rows of the one-byte opcodes, and the type that all maps extend.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

/// The opcode maps as text.
enum OpcodeText {
  /// One-byte opcodes except x87 (D8 to DF).
  static let oneByte: StaticString = """
    # Arithmetic
    @ base fw lock mr
    00 add +Eb,Gb | 01 add +Ev,Gv | 02 add +Gb,Eb | 03 add +Gv,Ev
    08 or +Eb,Gb | 09 or +Ev,Gv | 0A or +Gb,Eb | 0B or +Gv,Ev
    10 adc +Eb,Gb frc | 11 adc +Ev,Gv frc | 12 adc +Gb,Eb frc | 13 adc +Gv,Ev frc
    18 sbb +Eb,Gb frc | 19 sbb +Ev,Gv frc | 1A sbb +Gb,Eb frc | 1B sbb +Gv,Ev frc
    20 and +Eb,Gb | 21 and +Ev,Gv | 22 and +Gb,Eb | 23 and +Gv,Ev
    28 sub +Eb,Gb | 29 sub +Ev,Gv | 2A sub +Gb,Eb | 2B sub +Gv,Ev
    30 xor +Eb,Gb | 31 xor +Ev,Gv | 32 xor +Gb,Eb | 33 xor +Gv,Ev
    38 cmp Eb,Gb | 39 cmp Ev,Gv | 3A cmp Gb,Eb | 3B cmp Gv,Ev
    80/0 add +Eb,Ic | 80/1 or +Eb,Ic | 80/2 adc +Eb,Ic frc | 80/3 sbb +Eb,Ic frc
    80/4 and +Eb,Ic | 80/5 sub +Eb,Ic | 80/6 xor +Eb,Ic | 80/7 cmp Eb,Ic
    81/0 add +Ev,Iz | 81/1 or +Ev,Iz | 81/2 adc +Ev,Iz frc | 81/3 sbb +Ev,Iz frc
    81/4 and +Ev,Iz | 81/5 sub +Ev,Iz | 81/6 xor +Ev,Iz | 81/7 cmp Ev,Iz
    82/0.x32 add +Eb,Ic | 82/1.x32 or +Eb,Ic | 82/2.x32 adc +Eb,Ic frc | 82/3.x32 sbb +Eb,Ic frc
    82/4.x32 and +Eb,Ic | 82/5.x32 sub +Eb,Ic | 82/6.x32 xor +Eb,Ic | 82/7.x32 cmp Eb,Ic
    83/0 add +Ev,Is | 83/1 or +Ev,Is | 83/2 adc +Ev,Is frc | 83/3 sbb +Ev,Is frc
    83/4 and +Ev,Is | 83/5 sub +Ev,Is | 83/6 xor +Ev,Is | 83/7 cmp Ev,Is
    F6/3 neg +Eb | F7/3 neg +Ev
    @ base fwpazso lock mr
    40+.x32 inc +Zv | 48+.x32 dec +Zv | FE/0 inc +Eb | FE/1 dec +Eb | FF/0 inc +Ev | FF/1 dec +Ev
    @ base lock mr
    F6/2 not +Eb | F7/2 not +Ev | 86 xchg +Eb,+Gb | 87 xchg +Ev,+Gv
    @ base fw mr
    69 imul =Gv,Ev,Iz | 6B imul =Gv,Ev,Is
    84 test Eb,Gb | 85 test Ev,Gv
    F6/0 test Eb,Ic | F6/1 test Eb,Ic | F7/0 test Ev,Iz | F7/1 test Ev,Iz
    F6/4 mul Eb | F6/5 imul Eb | F7/4 mul Ev | F7/5 imul Ev
    @ base fw ax
    04 add +%ab,Ic | 05 add +%av,Iz | 0C or +%ab,Ic | 0D or +%av,Iz
    14 adc +%ab,Ic frc | 15 adc +%av,Iz frc | 1C sbb +%ab,Ic frc | 1D sbb +%av,Iz frc
    24 and +%ab,Ic | 25 and +%av,Iz | 2C sub +%ab,Ic | 2D sub +%av,Iz
    34 xor +%ab,Ic | 35 xor +%av,Iz | 3C cmp %ab,Ic | 3D cmp %av,Iz
    A8 test %ab,Ic | A9 test %av,Iz
    @ base fw
    F6/6 div Eb | F6/7 idiv Eb | F7/6 div Ev | F7/7 idiv Ev
    27.x32 daa - frca | 2F.x32 das - frca | 37.x32 aaa - fra | 3F.x32 aas - fra
    D4.x32 aam Ib | D5.x32 aad Ib
    # Shifts and rotations
    @ base fwco count mr
    C0/0 rol +Eb,Ib | C0/1 ror +Eb,Ib | C1/0 rol +Ev,Ib | C1/1 ror +Ev,Ib
    D0/0 rol +Eb,%1 | D0/1 ror +Eb,%1 | D1/0 rol +Ev,%1 | D1/1 ror +Ev,%1
    D2/0 rol +Eb,%cb | D2/1 ror +Eb,%cb | D3/0 rol +Ev,%cb | D3/1 ror +Ev,%cb
    @ base fwco frc count mr
    C0/2 rcl +Eb,Ib | C0/3 rcr +Eb,Ib | C1/2 rcl +Ev,Ib | C1/3 rcr +Ev,Ib
    D0/2 rcl +Eb,%1 | D0/3 rcr +Eb,%1 | D1/2 rcl +Ev,%1 | D1/3 rcr +Ev,%1
    D2/2 rcl +Eb,%cb | D2/3 rcr +Eb,%cb | D3/2 rcl +Ev,%cb | D3/3 rcr +Ev,%cb
    @ base fw count mr
    C0/4 shl +Eb,Ib | C0/5 shr +Eb,Ib | C0/6 shl +Eb,Ib | C0/7 sar +Eb,Ib
    C1/4 shl +Ev,Ib | C1/5 shr +Ev,Ib | C1/6 shl +Ev,Ib | C1/7 sar +Ev,Ib
    D0/4 shl +Eb,%1 | D0/5 shr +Eb,%1 | D0/6 shl +Eb,%1 | D0/7 sar +Eb,%1
    D1/4 shl +Ev,%1 | D1/5 shr +Ev,%1 | D1/6 shl +Ev,%1 | D1/7 sar +Ev,%1
    D2/4 shl +Eb,%cb | D2/5 shr +Eb,%cb | D2/6 shl +Eb,%cb | D2/7 sar +Eb,%cb
    D3/4 shl +Ev,%cb | D3/5 shr +Ev,%cb | D3/6 shl +Ev,%cb | D3/7 sar +Ev,%cb
    # Moves
    @ base
    88 mov =Eb,Gb mr | 89 mov =Ev,Gv mr | 8A mov =Gb,Eb mr | 8B mov =Gv,Ev mr
    C6/0 mov =Eb,Ic mr | C7/0 mov =Ev,Iz mr
    8C/m movSegment =Mw,Sw | 8C/r movSegment =Ev,Sw | 8E movSegment =Sw,Ew ser
    8D/m lea =Gv,M0
    90.b0.f3 pause - ser | 90.b0 nop - | 90+ xchg +Zv,+%av
    98.o16 cbw ax | 98.o32 cwde ax | 98.o64 cdqe ax
    99.o16 cwd ax | 99.o32 cdq ax | 99.o64 cqo ax
    9E sahf - fwcpazs ax | 9F lahf - frcpazs ax
    A0 mov =%ab,Ob | A1 mov =%av,Ov | A2 mov =Ob,%ab | A3 mov =Ov,%av
    B0+ mov =Zb,Ic | B8+ mov =Zv,Iv
    C4/m.x32 les =Gv,Mp ser | C5/m.x32 lds =Gv,Mp ser
    63.x32 arpl +Ew,Gw fwz | 63.x64 movsxd =Gv,Ez mr | 62/m.x32 bound Gv,Ma
    D6.x32 salc - frc o1 | D7 xlat - o1
    F5 cmc - fwc frc ax | F8 clc - fwc ax | F9 stc - fwc ax | FC cld | FD std
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
    70c j Jb | E8 call Jz | E9 jmp Jz | EB jmp Jb | FF/2 call Ev | FF/4 jmp Ev
    C2 ret Iw | C3 ret | E0 loopne Jb frz | E1 loope Jb frz | E2 loop Jb | E3 jcxz Jb
    @ base br ser
    9A.x32 callFar Ap | EA.x32 jmpFar Ap | FF/3m callFar Mp | FF/5m jmpFar Mp
    CA retFar Iw | CB retFar | CF iret - fw
    @ base br ser noora
    CC int3 | CD int Ib | CE.x32 into - fro | F1 int1 | F4 hlt - priv
    @ rtm br ser noora
    C6/7r0 xabort Ib | C7/7r0 xbegin Jz
    # `9B` waits for x87 exceptions.
    @ fpu x87
    9B fwait
    """
}
