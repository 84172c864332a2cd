// SPDX-License-Identifier: Apache-2.0
//
// Rows of the EVEX map 0F 3A.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

extension OpcodeText {
  /// EVEX 0F 3A.
  static let evex0F3A: StaticString = """
    # Permutations, insertions, extractions
    @ avx512f vec kz b4 : 66.w0 : =Vx,Hx,Wx,Ib
    03 valignd | 04 vpermilps =Vx,Wx,Ib | 23 vshuff32x4 =Vx,Hx,Wx,Ib l12
    25 vpternlogd +Vx,Hx,Wx,Ib
    43 vshufi32x4 =Vx,Hx,Wx,Ib l12
    @ avx512f vec kz b8 : 66.w1 : =Vx,Hx,Wx,Ib
    00 vpermq =Vx,Wx,Ib l12 | 01 vpermpd =Vx,Wx,Ib l12 | 03 valignq | 05 vpermilpd =Vx,Wx,Ib
    23 vshuff64x2 =Vx,Hx,Wx,Ib l12 | 25 vpternlogq +Vx,Hx,Wx,Ib | 43 vshufi64x2 =Vx,Hx,Wx,Ib l12
    @ avx512f vec kz : 66
    18.w0 vinsertf32x4 =Vx,Hx,Wo,Ib l12 | 19.w0 vextractf32x4 =Wo,Vx,Ib l12
    1A.w1.l2 vinsertf64x4 =Vx,Hx,Wu,Ib | 1B.w1.l2 vextractf64x4 =Wu,Vx,Ib
    38.w0 vinserti32x4 =Vx,Hx,Wo,Ib l12 | 39.w0 vextracti32x4 =Wo,Vx,Ib l12
    3A.w1.l2 vinserti64x4 =Vx,Hx,Wu,Ib | 3B.w1.l2 vextracti64x4 =Wu,Vx,Ib
    @ avx512dq vec kz : 66
    18.w1 vinsertf64x2 =Vx,Hx,Wo,Ib l12 | 19.w1 vextractf64x2 =Wo,Vx,Ib l12
    1A.w0.l2 vinsertf32x8 =Vx,Hx,Wu,Ib | 1B.w0.l2 vextractf32x8 =Wu,Vx,Ib
    38.w1 vinserti64x2 =Vx,Hx,Wo,Ib l12 | 39.w1 vextracti64x2 =Wo,Vx,Ib l12
    3A.w0.l2 vinserti32x8 =Vx,Hx,Wu,Ib | 3B.w0.l2 vextracti32x8 =Wu,Vx,Ib
    @ avx512bw vec sc : 66.l0
    14/m vpextrb =Mb,Vo,Ib | 14/r vpextrb =Rd,Vo,Ib | 15/m vpextrw =Mw,Vo,Ib
    15/r vpextrw =Rd,Vo,Ib
    20/m vpinsrb =Vo,Ho,Mb,Ib | 20/r vpinsrb =Vo,Ho,Rd,Ib
    @ avx512dq vec sc : 66.l0
    16.w1.x64 vpextrq =Ey,Vo,Ib | 16 vpextrd =Ed,Vo,Ib | 22.w1.x64 vpinsrq =Vo,Ho,Ey,Ib
    22 vpinsrd =Vo,Ho,Ed,Ib
    @ avx512f vec sc : 66.l0
    17 vextractps =Ed,Vo,Ib | 21/m.w0 vinsertps =Vo,Ho,Md,Ib | 21/r.w0 vinsertps =Vo,Ho,Wo,Ib
    @ avx512bw vec kz : 66
    0F vpalignr =Vx,Hx,Wx,Ib | 42.w0 vdbpsadbw =Vx,Hx,Wx,Ib
    # Comparisons
    @ avx512f vec k : 66 : =kq,Hx,Wx,Ib
    1E.w0 vpcmpud =kq,Hx,Wx,Ib b4 | 1E.w1 vpcmpuq =kq,Hx,Wx,Ib b8 | 1F.w0 vpcmpd =kq,Hx,Wx,Ib b4
    1F.w1 vpcmpq =kq,Hx,Wx,Ib b8
    @ avx512bw vec k : 66 : =kq,Hx,Wx,Ib
    3E.w0 vpcmpub | 3E.w1 vpcmpuw | 3F.w0 vpcmpb | 3F.w1 vpcmpw
    @ avx512dq vec k : 66
    66.w0 vfpclassps =kq,Wx,Ib b4 fp | 66.w1 vfpclasspd =kq,Wx,Ib b8 fp
    67.w0 vfpclassss =kq,Wd,Ib sc fp
    67.w1 vfpclasssd =kq,Wq,Ib sc fp
    # Floating point
    @ avx512f vec fp kz sae : 66
    08.w0 vrndscaleps =Vx,Wx,Ib b4 | 09.w1 vrndscalepd =Vx,Wx,Ib b8
    0A.w0 vrndscaless =Vo,Ho,Wd,Ib sc
    0B.w1 vrndscalesd =Vo,Ho,Wq,Ib sc | 1D.w0 vcvtps2ph =Wh,Vx,Ib
    26.w0 vgetmantps =Vx,Wx,Ib b4 | 26.w1 vgetmantpd =Vx,Wx,Ib b8 | 27.w0 vgetmantss =Vo,Ho,Wd,Ib sc
    27.w1 vgetmantsd =Vo,Ho,Wq,Ib sc | 54.w0 vfixupimmps +Vx,Hx,Wx,Ib b4
    54.w1 vfixupimmpd +Vx,Hx,Wx,Ib b8 | 55.w0 vfixupimmss +Vo,Ho,Wd,Ib sc
    55.w1 vfixupimmsd +Vo,Ho,Wq,Ib sc
    @ avx512dq vec fp kz sae : 66
    50.w0 vrangeps =Vx,Hx,Wx,Ib b4 | 50.w1 vrangepd =Vx,Hx,Wx,Ib b8 | 51.w0 vrangess =Vo,Ho,Wd,Ib sc
    51.w1 vrangesd =Vo,Ho,Wq,Ib sc | 56.w0 vreduceps =Vx,Wx,Ib b4 | 56.w1 vreducepd =Vx,Wx,Ib b8
    57.w0 vreducess =Vo,Ho,Wd,Ib sc | 57.w1 vreducesd =Vo,Ho,Wq,Ib sc
    # Shifts and ciphers
    @ avx512vbmi2 vec kz : 66 : =Vx,Hx,Wx,Ib
    70.w1 vpshldw | 71.w0 vpshldd =Vx,Hx,Wx,Ib b4 | 71.w1 vpshldq =Vx,Hx,Wx,Ib b8 | 72.w1 vpshrdw
    73.w0 vpshrdd =Vx,Hx,Wx,Ib b4 | 73.w1 vpshrdq =Vx,Hx,Wx,Ib b8
    @ vpclmulqdq vec : 66
    44 vpclmulqdq =Vx,Hx,Wx,Ib
    @ gfni vec kz b8 : 66.w1 : =Vx,Hx,Wx,Ib
    CE vgf2p8affineqb | CF vgf2p8affineinvqb
    """
}
