// SPDX-License-Identifier: Apache-2.0
//
// Rows of MMX and SSE, without VEX.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

extension OpcodeText {
  /// 0F: MMX registers.
  static let mmx: StaticString = """
    @ mmx mmx : np : +Pq,Qq
    60 punpcklbw +Pq,Qd | 61 punpcklwd +Pq,Qd | 62 punpckldq +Pq,Qd | 63 packsswb | 64 pcmpgtb
    65 pcmpgtw | 66 pcmpgtd | 67 packuswb | 68 punpckhbw | 69 punpckhwd | 6A punpckhdq | 6B packssdw
    6E.w1 movq =Pq,Ey | 6E movd =Pq,Ed | 7E.w1 movq =Ey,Pq | 7E movd =Ed,Pq
    6F movq =Pq,Qq | 7F movq =Qq,Pq
    71/2r psrlw +Qq,Ib | 71/4r psraw +Qq,Ib | 71/6r psllw +Qq,Ib | 72/2r psrld +Qq,Ib
    72/4r psrad +Qq,Ib | 72/6r pslld +Qq,Ib | 73/2r psrlq +Qq,Ib | 73/6r psllq +Qq,Ib
    74 pcmpeqb | 75 pcmpeqw | 76 pcmpeqd | 77 emms -
    D1 psrlw | D2 psrld | D3 psrlq | D5 pmullw | D8 psubusb | D9 psubusw | DB pand | DC paddusb
    DD paddusw | DF pandn | E1 psraw | E2 psrad | E5 pmulhw | E8 psubsb | E9 psubsw | EB por
    EC paddsb | ED paddsw | EF pxor | F1 psllw | F2 pslld | F3 psllq | F5 pmaddwd
    F8 psubb | F9 psubw | FA psubd | FC paddb | FD paddw | FE paddd
    @ sse mmx : np : +Pq,Qq
    70 pshufw =Pq,Qq,Ib | C4/m pinsrw +Pq,Mw,Ib | C4/r pinsrw +Pq,Rd,Ib | C5/r pextrw =Gd,Qq,Ib
    D7/r pmovmskb =Gd,Qq | DA pminub | DE pmaxub | E0 pavgb | E3 pavgw | E4 pmulhuw
    E7/m movntq =Mq,Pq | EA pminsw | EE pmaxsw | F6 psadbw | F7/r maskmovq Pq,Qq
    @ sse2 mmx : np : +Pq,Qq
    D4 paddq | F4 pmuludq | FB psubq
    @ sse mmx fp : np
    2A cvtpi2ps +Vo,Qq | 2C cvttps2pi =Pq,Wq | 2D cvtps2pi =Pq,Wq
    @ sse2 mmx fp al : 66
    2A cvtpi2pd =Vo,Qq | 2C cvttpd2pi =Pq,Wo | 2D cvtpd2pi =Pq,Wo
    @ sse2 mmx
    D6/r.f3 movq2dq =Vo,Qq | D6/r.f2 movdq2q =Pq,Wq
    """

  /// 0F: vector registers without VEX.
  static let sse: StaticString = """
    # Floating-point arithmetic
    @ sse vec fp al : np : +Vo,Wo : *ps
    51 sqrt =Vo,Wo | 52 rsqrt =Vo,Wo | 53 rcp =Vo,Wo | 58 add | 59 mul | 5C sub | 5D min | 5E div
    5F max | C2 cmp +Vo,Wo,Ib
    @ sse2 vec fp al : 66 : +Vo,Wo : *pd
    51 sqrt =Vo,Wo | 58 add | 59 mul | 5C sub | 5D min | 5E div | 5F max | C2 cmp +Vo,Wo,Ib
    @ sse vec fp : f3 : +Vo,Wd : *ss
    51 sqrt | 52 rsqrt | 53 rcp | 58 add | 59 mul | 5C sub | 5D min | 5E div | 5F max
    C2 cmp +Vo,Wd,Ib
    @ sse2 vec fp : f2 : +Vo,Wq : *sd
    51 sqrt | 58 add | 59 mul | 5C sub | 5D min | 5E div | 5F max | C2 cmp +Vo,Wq,Ib
    @ sse vec al : np : +Vo,Wo : *ps
    14 unpckl | 15 unpckh | 54 and | 55 andn | 56 or | 57 xor | C6 shuf +Vo,Wo,Ib
    @ sse2 vec al : 66 : +Vo,Wo : *pd
    14 unpckl | 15 unpckh | 54 and | 55 andn | 56 or | 57 xor | C6 shuf +Vo,Wo,Ib
    @ sse3 vec fp al : f2 : +Vo,Wo : *ps
    7C hadd | 7D hsub | D0 addsub
    @ sse3 vec fp al : 66 : +Vo,Wo : *pd
    7C hadd | 7D hsub | D0 addsub
    @ sse vec fp
    2A.f3 cvtsi2ss +Vo,Ey | 2C.f3 cvttss2si =Gy,Wd | 2D.f3 cvtss2si =Gy,Wd
    2E.np ucomiss Vo,Wd fw | 2F.np comiss Vo,Wd fw
    AE/2m.np ldmxcsr Md | AE/3m.np stmxcsr =Md
    @ sse2 vec fp al
    2A.f2 cvtsi2sd +Vo,Ey | 2C.f2 cvttsd2si =Gy,Wq | 2D.f2 cvtsd2si =Gy,Wq
    2E.66 ucomisd Vo,Wq fw | 2F.66 comisd Vo,Wq fw
    5A.np cvtps2pd =Vo,Wq | 5A.66 cvtpd2ps =Vo,Wo | 5A.f3 cvtss2sd +Vo,Wd | 5A.f2 cvtsd2ss +Vo,Wq
    5B.np cvtdq2ps =Vo,Wo | 5B.66 cvtps2dq =Vo,Wo | 5B.f3 cvttps2dq =Vo,Wo
    E6.f3 cvtdq2pd =Vo,Wq | E6.66 cvttpd2dq =Vo,Wo | E6.f2 cvtpd2dq =Vo,Wo
    # Moves
    @ sse vec : np
    10 movups =Vo,Wo | 11 movups =Wo,Vo | 12/m movlps +Vo,Mq | 12/r movhlps +Vo,Wo
    13/m movlps =Mq,Vo | 16/m movhps +Vo,Mq | 16/r movlhps +Vo,Wo | 17/m movhps =Mq,Vo
    28 movaps =Vo,Wo al | 29 movaps =Wo,Vo al | 2B/m movntps =Mo,Vo al | 50/r movmskps =Gd,Wo
    @ sse vec : f3
    10/m movss =Vo,Md | 10/r movss +Vo,Wd | 11/m movss =Md,Vo | 11/r movss +Wd,Vo
    @ sse2 vec : f2
    10/m movsd =Vo,Mq | 10/r movsd +Vo,Wq | 11/m movsd =Mq,Vo | 11/r movsd +Wq,Vo
    @ sse2 vec : 66
    10 movupd =Vo,Wo | 11 movupd =Wo,Vo | 12/m movlpd +Vo,Mq | 13/m movlpd =Mq,Vo
    16/m movhpd +Vo,Mq | 17/m movhpd =Mq,Vo | 28 movapd =Vo,Wo al | 29 movapd =Wo,Vo al
    2B/m movntpd =Mo,Vo al | 50/r movmskpd =Gd,Wo
    6E.w1 movq =Vo,Ey | 6E movd =Vo,Ed | 7E.w1 movq =Ey,Vo | 7E movd =Ed,Vo | D6 movq =Wq,Vo
    6F movdqa =Vo,Wo al | 7F movdqa =Wo,Vo al | E7/m movntdq =Mo,Vo al | D7/r pmovmskb =Gd,Wo
    F7/r maskmovdqu Vo,Wo
    @ sse2 vec : f3
    6F movdqu =Vo,Wo | 7F movdqu =Wo,Vo | 7E movq =Vo,Wq
    @ sse3 vec
    12.f3 movsldup =Vo,Wo al | 16.f3 movshdup =Vo,Wo al | 12.f2 movddup =Vo,Wq
    F0/m.f2 lddqu =Vo,Mo
    @ sse4a vec
    78/0r.66 extrq +Wo,Ib,Nb | 79/r.66 extrq +Vo,Wo | 78/r.f2 insertq +Vo,Wo,Ib,Nb
    79/r.f2 insertq +Vo,Wo | 2B/m.f3 movntss =Md,Vo | 2B/m.f2 movntsd =Mq,Vo
    # Integers
    @ sse2 vec al : 66 : +Vo,Wo
    60 punpcklbw | 61 punpcklwd | 62 punpckldq | 63 packsswb | 64 pcmpgtb | 65 pcmpgtw
    66 pcmpgtd | 67 packuswb | 68 punpckhbw | 69 punpckhwd | 6A punpckhdq | 6B packssdw
    6C punpcklqdq | 6D punpckhqdq | 70 pshufd =Vo,Wo,Ib | 70.f3 pshufhw =Vo,Wo,Ib
    70.f2 pshuflw =Vo,Wo,Ib | 74 pcmpeqb | 75 pcmpeqw | 76 pcmpeqd
    C4/m pinsrw +Vo,Mw,Ib | C4/r pinsrw +Vo,Rd,Ib | C5/r pextrw =Gd,Wo,Ib
    D1 psrlw | D2 psrld | D3 psrlq | D4 paddq | D5 pmullw | D8 psubusb | D9 psubusw | DA pminub
    DB pand | DC paddusb | DD paddusw | DE pmaxub | DF pandn | E0 pavgb | E1 psraw | E2 psrad
    E3 pavgw | E4 pmulhuw | E5 pmulhw | E8 psubsb | E9 psubsw | EA pminsw | EB por | EC paddsb
    ED paddsw | EE pmaxsw | EF pxor | F1 psllw | F2 pslld | F3 psllq | F4 pmuludq | F5 pmaddwd
    F6 psadbw | F8 psubb | F9 psubw | FA psubd | FB psubq | FC paddb | FD paddw | FE paddd
    @ sse2 vec : 66 : +Wo,Ib
    71/2r psrlw | 71/4r psraw | 71/6r psllw | 72/2r psrld | 72/4r psrad | 72/6r pslld
    73/2r psrlq | 73/3r psrldq | 73/6r psllq | 73/7r pslldq
    """

  /// 0F 38: vectors without VEX.
  static let sse0F38: StaticString = """
    @ ssse3 mmx : np : +Pq,Qq
    00 pshufb | 01 phaddw | 02 phaddd | 03 phaddsw | 04 pmaddubsw | 05 phsubw | 06 phsubd
    07 phsubsw | 08 psignb | 09 psignw | 0A psignd | 0B pmulhrsw
    1C pabsb =Pq,Qq | 1D pabsw =Pq,Qq | 1E pabsd =Pq,Qq
    @ ssse3 vec al : 66 : +Vo,Wo
    00 pshufb | 01 phaddw | 02 phaddd | 03 phaddsw | 04 pmaddubsw | 05 phsubw | 06 phsubd
    07 phsubsw | 08 psignb | 09 psignw | 0A psignd | 0B pmulhrsw
    1C pabsb =Vo,Wo | 1D pabsw =Vo,Wo | 1E pabsd =Vo,Wo
    @ sse41 vec al : 66 : +Vo,Wo
    10 pblendvb +Vo,Wo,%x0 | 14 blendvps +Vo,Wo,%x0 | 15 blendvpd +Vo,Wo,%x0 | 17 ptest Vo,Wo fw
    20 pmovsxbw =Vo,Wq | 21 pmovsxbd =Vo,Wd | 22 pmovsxbq =Vo,Ww | 23 pmovsxwd =Vo,Wq
    24 pmovsxwq =Vo,Wd | 25 pmovsxdq =Vo,Wq | 28 pmuldq | 29 pcmpeqq | 2A/m movntdqa =Vo,Mo
    2B packusdw | 30 pmovzxbw =Vo,Wq | 31 pmovzxbd =Vo,Wd | 32 pmovzxbq =Vo,Ww
    33 pmovzxwd =Vo,Wq | 34 pmovzxwq =Vo,Wd | 35 pmovzxdq =Vo,Wq | 37 pcmpgtq +Vo,Wo ?sse42
    38 pminsb | 39 pminsd | 3A pminuw | 3B pminud | 3C pmaxsb | 3D pmaxsd | 3E pmaxuw | 3F pmaxud
    40 pmulld | 41 phminposuw =Vo,Wo
    @ sha vec al : np : +Vo,Wo
    C8 sha1nexte | C9 sha1msg1 | CA sha1msg2 | CB sha256rnds2 +Vo,Wo,%x0 | CC sha256msg1
    CD sha256msg2
    @ gfni vec al : 66 : +Vo,Wo
    CF gf2p8mulb
    @ aes vec al : 66 : +Vo,Wo
    DB aesimc =Vo,Wo | DC aesenc | DD aesenclast | DE aesdec | DF aesdeclast
    """

  /// 0F 3A: vectors without VEX.
  static let sse0F3A: StaticString = """
    @ ssse3 mmx : np
    0F palignr +Pq,Qq,Ib
    @ ssse3 vec al : 66
    0F palignr +Vo,Wo,Ib
    @ sse41 vec fp al : 66
    08 roundps =Vo,Wo,Ib | 09 roundpd =Vo,Wo,Ib | 0A roundss +Vo,Wd,Ib | 0B roundsd +Vo,Wq,Ib
    40 dpps +Vo,Wo,Ib | 41 dppd +Vo,Wo,Ib
    @ sse41 vec al : 66 : +Vo,Wo,Ib
    0C blendps | 0D blendpd | 0E pblendw | 42 mpsadbw
    14/m pextrb =Mb,Vo,Ib | 14/r pextrb =Rd,Vo,Ib | 15/m pextrw =Mw,Vo,Ib | 15/r pextrw =Rd,Vo,Ib
    16.w1 pextrq =Ey,Vo,Ib | 16 pextrd =Ed,Vo,Ib | 17 extractps =Ed,Vo,Ib
    20/m pinsrb +Vo,Mb,Ib | 20/r pinsrb +Vo,Rd,Ib | 21/m insertps +Vo,Md,Ib | 21/r insertps
    22.w1 pinsrq +Vo,Ey,Ib | 22 pinsrd +Vo,Ed,Ib
    @ pclmulqdq vec al : 66 : +Vo,Wo,Ib
    44 pclmulqdq
    @ sse42 vec fw : 66 : Vo,Wo,Ib
    60 pcmpestrm | 61 pcmpestri | 62 pcmpistrm | 63 pcmpistri
    @ sha vec al : np
    CC sha1rnds4 +Vo,Wo,Ib
    @ gfni vec al : 66 : +Vo,Wo,Ib
    CE gf2p8affineqb | CF gf2p8affineinvqb
    @ aes vec al : 66
    DF aeskeygenassist =Vo,Wo,Ib
    """
}
