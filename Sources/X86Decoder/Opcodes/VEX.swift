// SPDX-License-Identifier: Apache-2.0
//
// Rows of the VEX maps.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

extension OpcodeText {
  /// VEX 0F.
  static let vex0F: StaticString = """
    # Floating-point arithmetic
    @ avx vec fp : np : =Vx,Hx,Wx : v*ps
    51 sqrt =Vx,Wx | 52 rsqrt =Vx,Wx | 53 rcp =Vx,Wx | 58 add | 59 mul | 5C sub | 5D min | 5E div
    5F max | C2 cmp =Vx,Hx,Wx,Ib
    @ avx vec fp : 66 : =Vx,Hx,Wx : v*pd
    51 sqrt =Vx,Wx | 58 add | 59 mul | 5C sub | 5D min | 5E div | 5F max | C2 cmp =Vx,Hx,Wx,Ib
    7C hadd | 7D hsub | D0 addsub
    @ avx vec fp : f2 : =Vx,Hx,Wx : v*ps
    7C hadd | 7D hsub | D0 addsub
    @ avx vec fp sc : f3 : =Vo,Ho,Wd : v*ss
    51 sqrt | 52 rsqrt | 53 rcp | 58 add | 59 mul | 5C sub | 5D min | 5E div | 5F max
    C2 cmp =Vo,Ho,Wd,Ib
    @ avx vec fp sc : f2 : =Vo,Ho,Wq : v*sd
    51 sqrt | 58 add | 59 mul | 5C sub | 5D min | 5E div | 5F max | C2 cmp =Vo,Ho,Wq,Ib
    @ avx vec : np : =Vx,Hx,Wx : v*ps
    14 unpckl | 15 unpckh | 54 and | 55 andn | 56 or | 57 xor | C6 shuf =Vx,Hx,Wx,Ib
    @ avx vec : 66 : =Vx,Hx,Wx : v*pd
    14 unpckl | 15 unpckh | 54 and | 55 andn | 56 or | 57 xor | C6 shuf =Vx,Hx,Wx,Ib
    @ avx vec fp sc
    2A.f3 vcvtsi2ss =Vo,Ho,Ey | 2C.f3 vcvttss2si =Gy,Wd | 2D.f3 vcvtss2si =Gy,Wd
    2A.f2 vcvtsi2sd =Vo,Ho,Ey | 2C.f2 vcvttsd2si =Gy,Wq | 2D.f2 vcvtsd2si =Gy,Wq
    2E.np vucomiss Vo,Wd fw | 2F.np vcomiss Vo,Wd fw | 2E.66 vucomisd Vo,Wq fw
    2F.66 vcomisd Vo,Wq fw | 5A.f3 vcvtss2sd =Vo,Ho,Wd | 5A.f2 vcvtsd2ss =Vo,Ho,Wq
    @ avx vec fp
    5A.np vcvtps2pd =Vx,Wh | 5A.66 vcvtpd2ps =Vh,Wx | 5B.np vcvtdq2ps =Vx,Wx
    5B.66 vcvtps2dq =Vx,Wx | 5B.f3 vcvttps2dq =Vx,Wx | E6.f3 vcvtdq2pd =Vx,Wh
    E6.66 vcvttpd2dq =Vh,Wx | E6.f2 vcvtpd2dq =Vh,Wx
    AE/2m.np.l0 vldmxcsr Md | AE/3m.np.l0 vstmxcsr =Md
    # Moves
    @ avx vec : np
    10 vmovups =Vx,Wx | 11 vmovups =Wx,Vx | 12/m.l0 vmovlps =Vo,Ho,Mq | 12/r.l0 vmovhlps =Vo,Ho,Wo
    13/m.l0 vmovlps =Mq,Vo | 16/m.l0 vmovhps =Vo,Ho,Mq | 16/r.l0 vmovlhps =Vo,Ho,Wo
    17/m.l0 vmovhps =Mq,Vo | 28 vmovaps =Vx,Wx al | 29 vmovaps =Wx,Vx al
    2B/m vmovntps =Mx,Vx al | 50/r vmovmskps =Gd,Wx | 77.l0 vzeroupper - | 77.l1 vzeroall -
    @ avx vec : 66
    10 vmovupd =Vx,Wx | 11 vmovupd =Wx,Vx | 12/m.l0 vmovlpd =Vo,Ho,Mq | 13/m.l0 vmovlpd =Mq,Vo
    16/m.l0 vmovhpd =Vo,Ho,Mq | 17/m.l0 vmovhpd =Mq,Vo | 28 vmovapd =Vx,Wx al
    29 vmovapd =Wx,Vx al | 2B/m vmovntpd =Mx,Vx al | 50/r vmovmskpd =Gd,Wx
    6E.w1.x64.l0 vmovq =Vo,Ey | 6E.l0 vmovd =Vo,Ed | 7E.w1.x64.l0 vmovq =Ey,Vo | 7E.l0 vmovd =Ed,Vo
    D6.l0 vmovq =Wq,Vo | 6F vmovdqa =Vx,Wx al | 7F vmovdqa =Wx,Vx al | E7/m vmovntdq =Mx,Vx al
    D7/r vpmovmskb =Gd,Wx i256 | F7/r.l0 vmaskmovdqu Vo,Wo
    @ avx vec sc : f3
    10/m vmovss =Vo,Md | 10/r vmovss =Vo,Ho,Wo | 11/m vmovss =Md,Vo | 11/r vmovss =Wo,Ho,Vo
    @ avx vec sc : f2
    10/m vmovsd =Vo,Mq | 10/r vmovsd =Vo,Ho,Wo | 11/m vmovsd =Mq,Vo | 11/r vmovsd =Wo,Ho,Vo
    @ avx vec
    12.f3 vmovsldup =Vx,Wx | 16.f3 vmovshdup =Vx,Wx | 12.f2 vmovddup =Vx,Wk
    6F.f3 vmovdqu =Vx,Wx | 7F.f3 vmovdqu =Wx,Vx | 7E.f3.l0 vmovq =Vo,Wq | F0/m.f2 vlddqu =Vx,Mx
    # Integers
    @ avx vec i256 : 66 : =Vx,Hx,Wx
    60 vpunpcklbw | 61 vpunpcklwd | 62 vpunpckldq | 63 vpacksswb | 64 vpcmpgtb | 65 vpcmpgtw
    66 vpcmpgtd | 67 vpackuswb | 68 vpunpckhbw | 69 vpunpckhwd | 6A vpunpckhdq | 6B vpackssdw
    6C vpunpcklqdq | 6D vpunpckhqdq | 70 vpshufd =Vx,Wx,Ib | 70.f3 vpshufhw =Vx,Wx,Ib
    70.f2 vpshuflw =Vx,Wx,Ib | 74 vpcmpeqb | 75 vpcmpeqw | 76 vpcmpeqd
    C4/m.l0 vpinsrw =Vo,Ho,Mw,Ib | C4/r.l0 vpinsrw =Vo,Ho,Rd,Ib | C5/r.l0 vpextrw =Gd,Wo,Ib
    D1 vpsrlw =Vx,Hx,Wo | D2 vpsrld =Vx,Hx,Wo | D3 vpsrlq =Vx,Hx,Wo | D4 vpaddq | D5 vpmullw
    D8 vpsubusb | D9 vpsubusw | DA vpminub | DB vpand | DC vpaddusb | DD vpaddusw | DE vpmaxub
    DF vpandn | E0 vpavgb | E1 vpsraw =Vx,Hx,Wo | E2 vpsrad =Vx,Hx,Wo | E3 vpavgw | E4 vpmulhuw
    E5 vpmulhw | E8 vpsubsb | E9 vpsubsw | EA vpminsw | EB vpor | EC vpaddsb | ED vpaddsw
    EE vpmaxsw | EF vpxor | F1 vpsllw =Vx,Hx,Wo | F2 vpslld =Vx,Hx,Wo | F3 vpsllq =Vx,Hx,Wo
    F4 vpmuludq | F5 vpmaddwd | F6 vpsadbw | F8 vpsubb | F9 vpsubw | FA vpsubd | FB vpsubq
    FC vpaddb | FD vpaddw | FE vpaddd
    @ avx vec i256 : 66 : =Hx,Wx,Ib
    71/2r vpsrlw | 71/4r vpsraw | 71/6r vpsllw | 72/2r vpsrld | 72/4r vpsrad | 72/6r vpslld
    73/2r vpsrlq | 73/3r vpsrldq | 73/6r vpsllq | 73/7r vpslldq
    """

  /// VEX 0F 38.
  static let vex0F38: StaticString = """
    @ avx vec i256 : 66 : =Vx,Hx,Wx
    00 vpshufb | 01 vphaddw | 02 vphaddd | 03 vphaddsw | 04 vpmaddubsw | 05 vphsubw | 06 vphsubd
    07 vphsubsw | 08 vpsignb | 09 vpsignw | 0A vpsignd | 0B vpmulhrsw
    1C vpabsb =Vx,Wx | 1D vpabsw =Vx,Wx | 1E vpabsd =Vx,Wx
    20 vpmovsxbw =Vx,Wh | 21 vpmovsxbd =Vx,Wf | 22 vpmovsxbq =Vx,We | 23 vpmovsxwd =Vx,Wh
    24 vpmovsxwq =Vx,Wf | 25 vpmovsxdq =Vx,Wh | 28 vpmuldq | 29 vpcmpeqq | 2A/m vmovntdqa =Vx,Mx al
    2B vpackusdw | 30 vpmovzxbw =Vx,Wh | 31 vpmovzxbd =Vx,Wf | 32 vpmovzxbq =Vx,We
    33 vpmovzxwd =Vx,Wh | 34 vpmovzxwq =Vx,Wf | 35 vpmovzxdq =Vx,Wh | 37 vpcmpgtq
    38 vpminsb | 39 vpminsd | 3A vpminuw | 3B vpminud | 3C vpmaxsb | 3D vpmaxsd | 3E vpmaxuw
    3F vpmaxud | 40 vpmulld | 41.l0 vphminposuw =Vo,Wo
    @ avx vec : 66 : =Vx,Hx,Wx
    0C.w0 vpermilps | 0D.w0 vpermilpd | 0E.w0 vtestps Vx,Wx fw | 0F.w0 vtestpd Vx,Wx fw
    17 vptest Vx,Wx fw | 18/m.w0 vbroadcastss =Vx,Md | 19/m.w0.l1 vbroadcastsd =Vx,Mq
    1A/m.w0.l1 vbroadcastf128 =Vx,Mo | 2C/m.w0 vmaskmovps =Vx,Hx,Mx | 2D/m.w0 vmaskmovpd =Vx,Hx,Mx
    2E/m.w0 vmaskmovps =Mx,Hx,Vx | 2F/m.w0 vmaskmovpd =Mx,Hx,Vx
    @ f16c vec fp : 66
    13.w0 vcvtph2ps =Vx,Wh
    @ avx2 vec : 66 : =Vx,Hx,Wx
    16.w0.l1 vpermps | 18/r.w0 vbroadcastss =Vx,Wd | 19/r.w0.l1 vbroadcastsd =Vx,Wq
    36.w0.l1 vpermd
    45.w0 vpsrlvd | 45.w1 vpsrlvq | 46.w0 vpsravd | 47.w0 vpsllvd | 47.w1 vpsllvq
    58.w0 vpbroadcastd =Vx,Wd | 59.w0 vpbroadcastq =Vx,Wq | 5A/m.w0.l1 vbroadcasti128 =Vx,Mo
    78.w0 vpbroadcastb =Vx,Wb | 79.w0 vpbroadcastw =Vx,Ww
    8C/m.w0 vpmaskmovd =Vx,Hx,Mx | 8C/m.w1 vpmaskmovq =Vx,Hx,Mx
    8E/m.w0 vpmaskmovd =Mx,Hx,Vx | 8E/m.w1 vpmaskmovq =Mx,Hx,Vx
    @ avx2 vec : 66.m
    90.w0 vpgatherdd +Vx,Md,+Hx vsibx | 90.w1 vpgatherdq +Vx,Mq,+Hx vsibh
    91.w0 vpgatherqd +Vh,Md,+Hh vsibx | 91.w1 vpgatherqq +Vx,Mq,+Hx vsibx
    92.w0 vgatherdps +Vx,Md,+Hx vsibx | 92.w1 vgatherdpd +Vx,Mq,+Hx vsibh
    93.w0 vgatherqps +Vh,Md,+Hh vsibx | 93.w1 vgatherqpd +Vx,Mq,+Hx vsibx
    @ avxvnni vec : 66.w0 : +Vx,Hx,Wx
    50 vpdpbusd | 51 vpdpbusds | 52 vpdpwssd | 53 vpdpwssds
    @ gfni vec : 66.w0 : =Vx,Hx,Wx
    CF vgf2p8mulb
    @ aes vec : 66.l0 : =Vx,Hx,Wx
    DB vaesimc =Vo,Wo | DC vaesenc | DD vaesenclast | DE vaesdec | DF vaesdeclast
    @ vaes vec : 66.l1 : =Vx,Hx,Wx
    DC vaesenc | DD vaesenclast | DE vaesdec | DF vaesdeclast
    """

  /// VEX 0F 38: fused multiply and add.
  static let vexFMA: StaticString = """
    @ fma vec fp : 66.w0 : +Vx,Hx,Wx : v*ps
    96 fmaddsub132 | 97 fmsubadd132 | 98 fmadd132 | 9A fmsub132 | 9C fnmadd132 | 9E fnmsub132
    A6 fmaddsub213 | A7 fmsubadd213 | A8 fmadd213 | AA fmsub213 | AC fnmadd213 | AE fnmsub213
    B6 fmaddsub231 | B7 fmsubadd231 | B8 fmadd231 | BA fmsub231 | BC fnmadd231 | BE fnmsub231
    @ fma vec fp : 66.w1 : +Vx,Hx,Wx : v*pd
    96 fmaddsub132 | 97 fmsubadd132 | 98 fmadd132 | 9A fmsub132 | 9C fnmadd132 | 9E fnmsub132
    A6 fmaddsub213 | A7 fmsubadd213 | A8 fmadd213 | AA fmsub213 | AC fnmadd213 | AE fnmsub213
    B6 fmaddsub231 | B7 fmsubadd231 | B8 fmadd231 | BA fmsub231 | BC fnmadd231 | BE fnmsub231
    @ fma vec fp sc : 66.w0 : +Vo,Ho,Wd : v*ss
    99 fmadd132 | 9B fmsub132 | 9D fnmadd132 | 9F fnmsub132 | A9 fmadd213 | AB fmsub213
    AD fnmadd213 | AF fnmsub213 | B9 fmadd231 | BB fmsub231 | BD fnmadd231 | BF fnmsub231
    @ fma vec fp sc : 66.w1 : +Vo,Ho,Wq : v*sd
    99 fmadd132 | 9B fmsub132 | 9D fnmadd132 | 9F fnmsub132 | A9 fmadd213 | AB fmsub213
    AD fnmadd213 | AF fnmsub213 | B9 fmadd231 | BB fmsub231 | BD fnmadd231 | BF fnmsub231
    """

  /// VEX 0F 3A.
  static let vex0F3A: StaticString = """
    @ avx2 vec : 66
    00.w1.l1 vpermq =Vx,Wx,Ib | 01.w1.l1 vpermpd =Vx,Wx,Ib | 02.w0 vpblendd =Vx,Hx,Wx,Ib
    38.w0.l1 vinserti128 =Vx,Hx,Wo,Ib | 39.w0.l1 vextracti128 =Wo,Vx,Ib
    46.w0.l1 vperm2i128 =Vx,Hx,Wx,Ib | 4C.w0.l1 vpblendvb =Vx,Hx,Wx,Lx
    @ avx vec : 66
    04.w0 vpermilps =Vx,Wx,Ib | 05.w0 vpermilpd =Vx,Wx,Ib | 06.w0.l1 vperm2f128 =Vx,Hx,Wx,Ib
    0C vblendps =Vx,Hx,Wx,Ib | 0D vblendpd =Vx,Hx,Wx,Ib
    14/m.l0 vpextrb =Mb,Vo,Ib | 14/r.l0 vpextrb =Rd,Vo,Ib | 15/m.l0 vpextrw =Mw,Vo,Ib
    15/r.l0 vpextrw =Rd,Vo,Ib | 16.l0.w1.x64 vpextrq =Ey,Vo,Ib | 16.l0 vpextrd =Ed,Vo,Ib
    17.l0 vextractps =Ed,Vo,Ib | 18.w0.l1 vinsertf128 =Vx,Hx,Wo,Ib | 19.w0.l1 vextractf128 =Wo,Vx,Ib
    20/m.l0 vpinsrb =Vo,Ho,Mb,Ib | 20/r.l0 vpinsrb =Vo,Ho,Rd,Ib | 21/m.l0 vinsertps =Vo,Ho,Md,Ib
    21/r.l0 vinsertps =Vo,Ho,Wo,Ib | 22.l0.w1.x64 vpinsrq =Vo,Ho,Ey,Ib | 22.l0 vpinsrd =Vo,Ho,Ed,Ib
    4A.w0 vblendvps =Vx,Hx,Wx,Lx | 4B.w0 vblendvpd =Vx,Hx,Wx,Lx | 4C.w0.l0 vpblendvb =Vx,Hx,Wx,Lx
    60.l0 vpcmpestrm Vo,Wo,Ib fw | 61.l0 vpcmpestri Vo,Wo,Ib fw | 62.l0 vpcmpistrm Vo,Wo,Ib fw
    63.l0 vpcmpistri Vo,Wo,Ib fw
    @ avx vec fp : 66
    08 vroundps =Vx,Wx,Ib | 09 vroundpd =Vx,Wx,Ib | 0A vroundss =Vo,Ho,Wd,Ib sc
    0B vroundsd =Vo,Ho,Wq,Ib sc | 40 vdpps =Vx,Hx,Wx,Ib | 41.l0 vdppd =Vo,Ho,Wo,Ib
    @ avx vec i256 : 66 : =Vx,Hx,Wx,Ib
    0E vpblendw | 0F vpalignr | 42 vmpsadbw
    @ f16c vec fp : 66
    1D.w0 vcvtps2ph =Wh,Vx,Ib
    @ pclmulqdq vec : 66 : =Vx,Hx,Wx,Ib
    44.l0 vpclmulqdq | 44.l1 vpclmulqdq =Vx,Hx,Wx,Ib ?vpclmulqdq
    @ gfni vec : 66.w1 : =Vx,Hx,Wx,Ib
    CE vgf2p8affineqb | CF vgf2p8affineinvqb
    @ aes vec : 66.l0
    DF vaeskeygenassist =Vo,Wo,Ib
    """
}
