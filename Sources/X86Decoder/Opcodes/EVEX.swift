// SPDX-License-Identifier: Apache-2.0
//
// Rows of the EVEX map 0F, and fused multiply and add.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

extension OpcodeText {
  /// EVEX 0F.
  static let evex0F: StaticString = """
    # Floating-point arithmetic
    @ avx512f vec fp kz b4 er : np.w0 : =Vx,Hx,Wx : v*ps
    51 sqrt =Vx,Wx | 58 add | 59 mul | 5C sub | 5E div
    @ avx512f vec fp kz b4 sae : np.w0 : =Vx,Hx,Wx : v*ps
    5D min | 5F max
    @ avx512f vec fp kz b8 er : 66.w1 : =Vx,Hx,Wx : v*pd
    51 sqrt =Vx,Wx | 58 add | 59 mul | 5C sub | 5E div
    @ avx512f vec fp kz b8 sae : 66.w1 : =Vx,Hx,Wx : v*pd
    5D min | 5F max
    @ avx512f vec fp kz er sc : f3.w0 : =Vo,Ho,Wd : v*ss
    51 sqrt | 58 add | 59 mul | 5C sub | 5E div
    @ avx512f vec fp kz sae sc : f3.w0 : =Vo,Ho,Wd : v*ss
    5D min | 5F max
    @ avx512f vec fp kz er sc : f2.w1 : =Vo,Ho,Wq : v*sd
    51 sqrt | 58 add | 59 mul | 5C sub | 5E div
    @ avx512f vec fp kz sae sc : f2.w1 : =Vo,Ho,Wq : v*sd
    5D min | 5F max
    @ avx512f vec fp k sae
    C2.np.w0 vcmpps =kq,Hx,Wx,Ib b4 | C2.66.w1 vcmppd =kq,Hx,Wx,Ib b8
    C2.f3.w0 vcmpss =kq,Ho,Wd,Ib sc | C2.f2.w1 vcmpsd =kq,Ho,Wq,Ib sc
    @ avx512dq vec kz b4 : np.w0 : =Vx,Hx,Wx : v*ps
    54 and | 55 andn | 56 or | 57 xor
    @ avx512dq vec kz b8 : 66.w1 : =Vx,Hx,Wx : v*pd
    54 and | 55 andn | 56 or | 57 xor
    @ avx512f vec kz b4 : np.w0 : =Vx,Hx,Wx : v*ps
    14 unpckl | 15 unpckh | C6 shuf =Vx,Hx,Wx,Ib
    @ avx512f vec kz b8 : 66.w1 : =Vx,Hx,Wx : v*pd
    14 unpckl | 15 unpckh | C6 shuf =Vx,Hx,Wx,Ib
    # Conversions
    @ avx512f vec fp er sc
    2A.f3 vcvtsi2ss =Vo,Ho,Ey | 2D.f3 vcvtss2si =Gy,Wd | 79.f3 vcvtss2usi =Gy,Wd
    7B.f3 vcvtusi2ss =Vo,Ho,Ey | 2A.f2.w1.x64 vcvtsi2sd =Vo,Ho,Ey | 2D.f2 vcvtsd2si =Gy,Wq
    79.f2 vcvtsd2usi =Gy,Wq | 7B.f2.w1.x64 vcvtusi2sd =Vo,Ho,Ey
    # Exact conversions: the b bit is allowed with registers and does nothing.
    @ avx512f vec fp sc sae
    2A.f2 vcvtsi2sd =Vo,Ho,Ed | 7B.f2 vcvtusi2sd =Vo,Ho,Ed
    @ avx512f vec fp sae sc
    2C.f3 vcvttss2si =Gy,Wd | 78.f3 vcvttss2usi =Gy,Wd | 2C.f2 vcvttsd2si =Gy,Wq
    78.f2 vcvttsd2usi =Gy,Wq | 2E.np.w0 vucomiss Vo,Wd fw | 2F.np.w0 vcomiss Vo,Wd fw
    2E.66.w1 vucomisd Vo,Wq fw | 2F.66.w1 vcomisd Vo,Wq fw
    @ avx512f vec fp kz
    5A.np.w0 vcvtps2pd =Vx,Wh b4 sae | 5A.66.w1 vcvtpd2ps =Vh,Wx b8 er
    5A.f3.w0 vcvtss2sd =Vo,Ho,Wd sae sc | 5A.f2.w1 vcvtsd2ss =Vo,Ho,Wq er sc
    5B.np.w0 vcvtdq2ps =Vx,Wx b4 er | 5B.66.w0 vcvtps2dq =Vx,Wx b4 er
    5B.f3.w0 vcvttps2dq =Vx,Wx b4 sae | E6.f3.w0 vcvtdq2pd =Vx,Wh b4 sae
    E6.66.w1 vcvttpd2dq =Vh,Wx b8 sae | E6.f2.w1 vcvtpd2dq =Vh,Wx b8 er
    78.np.w0 vcvttps2udq =Vx,Wx b4 sae | 78.np.w1 vcvttpd2udq =Vh,Wx b8 sae
    79.np.w0 vcvtps2udq =Vx,Wx b4 er | 79.np.w1 vcvtpd2udq =Vh,Wx b8 er
    7A.f3.w0 vcvtudq2pd =Vx,Wh b4 sae | 7A.f2.w0 vcvtudq2ps =Vx,Wx b4 er
    @ avx512dq vec fp kz
    5B.np.w1 vcvtqq2ps =Vh,Wx b8 er | E6.f3.w1 vcvtqq2pd =Vx,Wx b8 er
    78.66.w0 vcvttps2uqq =Vx,Wh b4 sae | 78.66.w1 vcvttpd2uqq =Vx,Wx b8 sae
    79.66.w0 vcvtps2uqq =Vx,Wh b4 er | 79.66.w1 vcvtpd2uqq =Vx,Wx b8 er
    7A.66.w0 vcvttps2qq =Vx,Wh b4 sae | 7A.66.w1 vcvttpd2qq =Vx,Wx b8 sae
    7B.66.w0 vcvtps2qq =Vx,Wh b4 er | 7B.66.w1 vcvtpd2qq =Vx,Wx b8 er
    7A.f3.w1 vcvtuqq2pd =Vx,Wx b8 er | 7A.f2.w1 vcvtuqq2ps =Vh,Wx b8 er
    # Moves
    @ avx512f vec kz
    10.np.w0 vmovups =Vx,Wx | 11.np.w0 vmovups =Wx,Vx | 10.66.w1 vmovupd =Vx,Wx
    11.66.w1 vmovupd =Wx,Vx | 28.np.w0 vmovaps =Vx,Wx al | 29.np.w0 vmovaps =Wx,Vx al
    28.66.w1 vmovapd =Vx,Wx al | 29.66.w1 vmovapd =Wx,Vx al
    10/m.f3.w0 vmovss =Vo,Md sc | 10/r.f3.w0 vmovss =Vo,Ho,Wo sc | 11/m.f3.w0 vmovss =Md,Vo sc
    11/r.f3.w0 vmovss =Wo,Ho,Vo sc | 10/m.f2.w1 vmovsd =Vo,Mq sc | 10/r.f2.w1 vmovsd =Vo,Ho,Wo sc
    11/m.f2.w1 vmovsd =Mq,Vo sc | 11/r.f2.w1 vmovsd =Wo,Ho,Vo sc
    12.f3.w0 vmovsldup =Vx,Wx | 16.f3.w0 vmovshdup =Vx,Wx | 12.f2.w1 vmovddup =Vx,Wk
    6F.66.w0 vmovdqa32 =Vx,Wx al | 6F.66.w1 vmovdqa64 =Vx,Wx al | 7F.66.w0 vmovdqa32 =Wx,Vx al
    7F.66.w1 vmovdqa64 =Wx,Vx al | 6F.f3.w0 vmovdqu32 =Vx,Wx | 6F.f3.w1 vmovdqu64 =Vx,Wx
    7F.f3.w0 vmovdqu32 =Wx,Vx | 7F.f3.w1 vmovdqu64 =Wx,Vx
    @ avx512bw vec kz : f2
    6F.w0 vmovdqu8 =Vx,Wx | 6F.w1 vmovdqu16 =Vx,Wx | 7F.w0 vmovdqu8 =Wx,Vx | 7F.w1 vmovdqu16 =Wx,Vx
    @ avx512f vec sc : l0
    12/m.np.w0 vmovlps =Vo,Ho,Mq | 12/r.np.w0 vmovhlps =Vo,Ho,Wo | 13/m.np.w0 vmovlps =Mq,Vo
    16/m.np.w0 vmovhps =Vo,Ho,Mq | 16/r.np.w0 vmovlhps =Vo,Ho,Wo | 17/m.np.w0 vmovhps =Mq,Vo
    12/m.66.w1 vmovlpd =Vo,Ho,Mq | 13/m.66.w1 vmovlpd =Mq,Vo | 16/m.66.w1 vmovhpd =Vo,Ho,Mq
    17/m.66.w1 vmovhpd =Mq,Vo | 6E.66.w1.x64 vmovq =Vo,Ey | 6E.66 vmovd =Vo,Ed
    7E.66.w1.x64 vmovq =Ey,Vo | 7E.66 vmovd =Ed,Vo | 7E.f3.w1 vmovq =Vo,Wq | D6.66.w1 vmovq =Wq,Vo
    @ avx512f vec al
    2B/m.np.w0 vmovntps =Mx,Vx | 2B/m.66.w1 vmovntpd =Mx,Vx | E7/m.66.w0 vmovntdq =Mx,Vx
    # Bytes and words
    @ avx512bw vec kz : 66 : =Vx,Hx,Wx
    60 vpunpcklbw | 61 vpunpcklwd | 63 vpacksswb | 67 vpackuswb | 68 vpunpckhbw | 69 vpunpckhwd
    D1 vpsrlw =Vx,Hx,Wo | D5 vpmullw | D8 vpsubusb | D9 vpsubusw | DA vpminub | DC vpaddusb
    DD vpaddusw | DE vpmaxub | E0 vpavgb | E1 vpsraw =Vx,Hx,Wo | E3 vpavgw | E4 vpmulhuw
    E5 vpmulhw | E8 vpsubsb | E9 vpsubsw | EA vpminsw | EC vpaddsb | ED vpaddsw | EE vpmaxsw
    F1 vpsllw =Vx,Hx,Wo | F5 vpmaddwd | F8 vpsubb | F9 vpsubw | FC vpaddb | FD vpaddw
    71/2 vpsrlw =Hx,Wx,Ib | 71/4 vpsraw =Hx,Wx,Ib | 71/6 vpsllw =Hx,Wx,Ib
    70.f3 vpshufhw =Vx,Wx,Ib | 70.f2 vpshuflw =Vx,Wx,Ib
    @ avx512bw vec k : 66 : =kq,Hx,Wx
    64 vpcmpgtb | 65 vpcmpgtw | 74 vpcmpeqb | 75 vpcmpeqw
    @ avx512bw vec : 66
    F6 vpsadbw =Vx,Hx,Wx | 73/3 vpsrldq =Hx,Wx,Ib | 73/7 vpslldq =Hx,Wx,Ib
    @ avx512bw vec sc : 66.l0
    C4/m vpinsrw =Vo,Ho,Mw,Ib | C4/r vpinsrw =Vo,Ho,Rd,Ib | C5/r vpextrw =Gd,Wo,Ib
    # Doublewords and quadwords
    @ avx512f vec kz b4 : 66.w0 : =Vx,Hx,Wx
    62 vpunpckldq | 6A vpunpckhdq | 6B vpackssdw =Vx,Hx,Wx ?avx512bw | 70 vpshufd =Vx,Wx,Ib
    DB vpandd | DF vpandnd | EB vpord | EF vpxord | FA vpsubd | FE vpaddd
    72/0 vprord =Hx,Wx,Ib | 72/1 vprold =Hx,Wx,Ib | 72/2 vpsrld =Hx,Wx,Ib | 72/4 vpsrad =Hx,Wx,Ib
    72/6 vpslld =Hx,Wx,Ib
    @ avx512f vec kz b8 : 66.w1 : =Vx,Hx,Wx
    6C vpunpcklqdq | 6D vpunpckhqdq | D4 vpaddq | DB vpandq | DF vpandnq | EB vporq | EF vpxorq
    F4 vpmuludq | FB vpsubq | 72/0 vprorq =Hx,Wx,Ib | 72/1 vprolq =Hx,Wx,Ib
    72/4 vpsraq =Hx,Wx,Ib | 73/2 vpsrlq =Hx,Wx,Ib | 73/6 vpsllq =Hx,Wx,Ib
    @ avx512f vec kz : 66 : =Vx,Hx,Wo
    D2.w0 vpsrld | D3.w1 vpsrlq | E2.w0 vpsrad | E2.w1 vpsraq | F2.w0 vpslld | F3.w1 vpsllq
    @ avx512f vec k b4 : 66.w0 : =kq,Hx,Wx
    66 vpcmpgtd | 76 vpcmpeqd
    """

  /// EVEX 0F 38: fused multiply and add.
  static let evexFMA: StaticString = """
    @ avx512f vec fp kz b4 er : 66.w0 : +Vx,Hx,Wx : v*ps
    96 fmaddsub132 | 97 fmsubadd132 | 98 fmadd132 | 9A fmsub132 | 9C fnmadd132 | 9E fnmsub132
    A6 fmaddsub213 | A7 fmsubadd213 | A8 fmadd213 | AA fmsub213 | AC fnmadd213 | AE fnmsub213
    B6 fmaddsub231 | B7 fmsubadd231 | B8 fmadd231 | BA fmsub231 | BC fnmadd231 | BE fnmsub231
    @ avx512f vec fp kz b8 er : 66.w1 : +Vx,Hx,Wx : v*pd
    96 fmaddsub132 | 97 fmsubadd132 | 98 fmadd132 | 9A fmsub132 | 9C fnmadd132 | 9E fnmsub132
    A6 fmaddsub213 | A7 fmsubadd213 | A8 fmadd213 | AA fmsub213 | AC fnmadd213 | AE fnmsub213
    B6 fmaddsub231 | B7 fmsubadd231 | B8 fmadd231 | BA fmsub231 | BC fnmadd231 | BE fnmsub231
    @ avx512f vec fp kz er sc : 66.w0 : +Vo,Ho,Wd : v*ss
    99 fmadd132 | 9B fmsub132 | 9D fnmadd132 | 9F fnmsub132 | A9 fmadd213 | AB fmsub213
    AD fnmadd213 | AF fnmsub213 | B9 fmadd231 | BB fmsub231 | BD fnmadd231 | BF fnmsub231
    @ avx512f vec fp kz er sc : 66.w1 : +Vo,Ho,Wq : v*sd
    99 fmadd132 | 9B fmsub132 | 9D fnmadd132 | 9F fnmsub132 | A9 fmadd213 | AB fmsub213
    AD fnmadd213 | AF fnmsub213 | B9 fmadd231 | BB fmsub231 | BD fnmadd231 | BF fnmsub231
    """
}
