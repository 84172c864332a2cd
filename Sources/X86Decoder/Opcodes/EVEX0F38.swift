// SPDX-License-Identifier: Apache-2.0
//
// Rows of the EVEX map 0F 38.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

extension OpcodeText {
  /// EVEX 0F 38 except fused multiply and add.
  static let evex0F38: StaticString = """
    # Bytes and words
    @ avx512bw vec kz : 66 : =Vx,Hx,Wx
    00 vpshufb | 04 vpmaddubsw | 0B vpmulhrsw | 1C vpabsb =Vx,Wx | 1D vpabsw =Vx,Wx
    38 vpminsb | 3A vpminuw | 3C vpmaxsb | 3E vpmaxuw
    10.w1 vpsrlvw | 11.w1 vpsravw | 12.w1 vpsllvw | 66.w0 vpblendmb | 66.w1 vpblendmw
    75.w1 vpermi2w +Vx,Hx,Wx | 7D.w1 vpermt2w +Vx,Hx,Wx | 8D.w1 vpermw
    20 vpmovsxbw =Vx,Wh | 30 vpmovzxbw =Vx,Wh | 78.w0 vpbroadcastb =Vx,Wb
    79.w0 vpbroadcastw =Vx,Ww | 7A/r.w0 vpbroadcastb =Vx,Rd | 7B/r.w0 vpbroadcastw =Vx,Rd
    2B.w0 vpackusdw =Vx,Hx,Wx b4
    @ avx512bw vec k : 66 : =kq,Hx,Wx
    26.w0 vptestmb | 26.w1 vptestmw | 26.f3.w0 vptestnmb | 26.f3.w1 vptestnmw
    @ avx512bw vec kz : f3.w0
    10 vpmovuswb =Wh,Vx | 20 vpmovswb =Wh,Vx | 30 vpmovwb =Wh,Vx
    @ avx512bw vec : f3.r
    28.w0 vpmovm2b =Vx,jq | 28.w1 vpmovm2w =Vx,jq | 29.w0 vpmovb2m =kq,Wx | 29.w1 vpmovw2m =kq,Wx
    @ avx512dq vec : f3.r
    38.w0 vpmovm2d =Vx,jq | 38.w1 vpmovm2q =Vx,jq | 39.w0 vpmovd2m =kq,Wx | 39.w1 vpmovq2m =kq,Wx
    @ avx512cd vec : f3.r
    2A.w1 vpbroadcastmb2q =Vx,jq | 3A.w0 vpbroadcastmw2d =Vx,jq
    @ avx512vbmi vec kz : 66 : +Vx,Hx,Wx
    75.w0 vpermi2b | 7D.w0 vpermt2b | 8D.w0 vpermb =Vx,Hx,Wx | 83.w1 vpmultishiftqb =Vx,Hx,Wx b8
    @ avx512bitalg vec : 66
    54.w0 vpopcntb =Vx,Wx kz | 54.w1 vpopcntw =Vx,Wx kz | 8F.w0 vpshufbitqmb =kq,Hx,Wx k
    @ avx512vbmi2 vec kz : 66
    62.w0 vpexpandb =Vx,Wx n1 | 62.w1 vpexpandw =Vx,Wx n2 | 63.w0 vpcompressb =Wx,Vx n1
    63.w1 vpcompressw =Wx,Vx n2 | 70.w1 vpshldvw +Vx,Hx,Wx | 71.w0 vpshldvd +Vx,Hx,Wx b4
    71.w1 vpshldvq +Vx,Hx,Wx b8 | 72.w1 vpshrdvw +Vx,Hx,Wx | 73.w0 vpshrdvd +Vx,Hx,Wx b4
    73.w1 vpshrdvq +Vx,Hx,Wx b8
    # Doublewords and quadwords
    @ avx512f vec kz b4 : 66.w0 : =Vx,Hx,Wx
    14 vprorvd | 15 vprolvd | 1E vpabsd =Vx,Wx | 36 vpermd =Vx,Hx,Wx l12 | 39 vpminsd | 3B vpminud
    3D vpmaxsd | 3F vpmaxud | 40 vpmulld | 45 vpsrlvd | 46 vpsravd | 47 vpsllvd | 64 vpblendmd
    76 vpermi2d +Vx,Hx,Wx | 7E vpermt2d +Vx,Hx,Wx | 44 vplzcntd =Vx,Wx ?avx512cd
    C4 vpconflictd =Vx,Wx ?avx512cd | 55 vpopcntd =Vx,Wx ?avx512vpopcntdq
    50 vpdpbusd +Vx,Hx,Wx ?avx512vnni | 51 vpdpbusds +Vx,Hx,Wx ?avx512vnni
    52 vpdpwssd +Vx,Hx,Wx ?avx512vnni | 53 vpdpwssds +Vx,Hx,Wx ?avx512vnni
    @ avx512f vec kz b8 : 66.w1 : =Vx,Hx,Wx
    14 vprorvq | 15 vprolvq | 1F vpabsq =Vx,Wx | 28 vpmuldq | 36 vpermq =Vx,Hx,Wx l12 | 39 vpminsq
    3B vpminuq | 3D vpmaxsq | 3F vpmaxuq | 40 vpmullq =Vx,Hx,Wx ?avx512dq | 45 vpsrlvq
    46 vpsravq | 47 vpsllvq | 64 vpblendmq | 76 vpermi2q +Vx,Hx,Wx | 7E vpermt2q +Vx,Hx,Wx
    44 vplzcntq =Vx,Wx ?avx512cd | C4 vpconflictq =Vx,Wx ?avx512cd
    55 vpopcntq =Vx,Wx ?avx512vpopcntdq | B4 vpmadd52luq +Vx,Hx,Wx ?avx512ifma
    B5 vpmadd52huq +Vx,Hx,Wx ?avx512ifma
    @ avx512f vec k : 66 : =kq,Hx,Wx
    27.w0 vptestmd =kq,Hx,Wx b4 | 27.w1 vptestmq =kq,Hx,Wx b8 | 27.f3.w0 vptestnmd =kq,Hx,Wx b4
    27.f3.w1 vptestnmq =kq,Hx,Wx b8 | 29.w1 vpcmpeqq =kq,Hx,Wx b8 | 37.w1 vpcmpgtq =kq,Hx,Wx b8
    @ avx512vp2intersect vec : f2
    68.w0 vp2intersectd =kq,Hx,Wx b4 | 68.w1 vp2intersectq =kq,Hx,Wx b8
    # Floating point
    @ avx512f vec kz b4 : 66.w0 : =Vx,Hx,Wx
    0C vpermilps | 16 vpermps =Vx,Hx,Wx l12 | 65 vblendmps | 77 vpermi2ps +Vx,Hx,Wx
    7F vpermt2ps +Vx,Hx,Wx | 2C vscalefps =Vx,Hx,Wx fp er | 42 vgetexpps =Vx,Wx fp sae
    4C vrcp14ps =Vx,Wx fp | 4E vrsqrt14ps =Vx,Wx fp
    @ avx512f vec kz b8 : 66.w1 : =Vx,Hx,Wx
    0D vpermilpd | 16 vpermpd =Vx,Hx,Wx l12 | 65 vblendmpd | 77 vpermi2pd +Vx,Hx,Wx
    7F vpermt2pd +Vx,Hx,Wx | 2C vscalefpd =Vx,Hx,Wx fp er | 42 vgetexppd =Vx,Wx fp sae
    4C vrcp14pd =Vx,Wx fp | 4E vrsqrt14pd =Vx,Wx fp
    @ avx512f vec fp kz sc : 66.w0 : =Vo,Ho,Wd
    2D vscalefss =Vo,Ho,Wd er | 43 vgetexpss =Vo,Ho,Wd sae | 4D vrcp14ss | 4F vrsqrt14ss
    @ avx512f vec fp kz sc : 66.w1 : =Vo,Ho,Wq
    2D vscalefsd =Vo,Ho,Wq er | 43 vgetexpsd =Vo,Ho,Wq sae | 4D vrcp14sd | 4F vrsqrt14sd
    @ avx512f vec fp kz : 66
    13.w0 vcvtph2ps =Vx,Wh sae
    @ avx512bf16 vec kz b4 : w0
    52.f3 vdpbf16ps +Vx,Hx,Wx | 72.f3 vcvtneps2bf16 =Vh,Wx | 72.f2 vcvtne2ps2bf16 =Vx,Hx,Wx
    # Conversions of integer widths, broadcasts, compression
    @ avx512f vec kz : 66
    21 vpmovsxbd =Vx,Wf | 22 vpmovsxbq =Vx,We | 23 vpmovsxwd =Vx,Wh | 24 vpmovsxwq =Vx,Wf
    25.w0 vpmovsxdq =Vx,Wh | 31 vpmovzxbd =Vx,Wf | 32 vpmovzxbq =Vx,We | 33 vpmovzxwd =Vx,Wh
    34 vpmovzxwq =Vx,Wf | 35.w0 vpmovzxdq =Vx,Wh
    @ avx512f vec kz : f3.w0
    11 vpmovusdb =Wf,Vx | 12 vpmovusqb =We,Vx | 13 vpmovusdw =Wh,Vx | 14 vpmovusqw =Wf,Vx
    15 vpmovusqd =Wh,Vx | 21 vpmovsdb =Wf,Vx | 22 vpmovsqb =We,Vx | 23 vpmovsdw =Wh,Vx
    24 vpmovsqw =Wf,Vx | 25 vpmovsqd =Wh,Vx | 31 vpmovdb =Wf,Vx | 32 vpmovqb =We,Vx
    33 vpmovdw =Wh,Vx | 34 vpmovqw =Wf,Vx | 35 vpmovqd =Wh,Vx
    @ avx512f vec kz : 66
    18.w0 vbroadcastss =Vx,Wd | 19.w1 vbroadcastsd =Vx,Wq l12 | 1A/m.w0 vbroadcastf32x4 =Vx,Mo l12
    1B/m.w1.l2 vbroadcastf64x4 =Vx,Mu | 58.w0 vpbroadcastd =Vx,Wd | 59.w1 vpbroadcastq =Vx,Wq
    5A/m.w0 vbroadcasti32x4 =Vx,Mo l12 | 5B/m.w1.l2 vbroadcasti64x4 =Vx,Mu
    7C/r.w1.x64 vpbroadcastq =Vx,Rq | 7C/r vpbroadcastd =Vx,Rd
    88.w0 vexpandps =Vx,Wx n4 | 88.w1 vexpandpd =Vx,Wx n8 | 89.w0 vpexpandd =Vx,Wx n4
    89.w1 vpexpandq =Vx,Wx n8 | 8A.w0 vcompressps =Wx,Vx n4 | 8A.w1 vcompresspd =Wx,Vx n8
    8B.w0 vpcompressd =Wx,Vx n4 | 8B.w1 vpcompressq =Wx,Vx n8
    @ avx512dq vec kz : 66
    19.w0 vbroadcastf32x2 =Vx,Wq l12 | 1A/m.w1 vbroadcastf64x2 =Vx,Mo l12
    1B/m.w0.l2 vbroadcastf32x8 =Vx,Mu | 59.w0 vbroadcasti32x2 =Vx,Wq
    5A/m.w1 vbroadcasti64x2 =Vx,Mo l12 | 5B/m.w0.l2 vbroadcasti32x8 =Vx,Mu
    @ avx512f vec al : 66
    2A/m.w0 vmovntdqa =Vx,Mx
    # Gathers and scatters
    @ avx512f vec kreq : 66.m
    90.w0 vpgatherdd +Vx,Md vsibx | 90.w1 vpgatherdq +Vx,Mq vsibh | 91.w0 vpgatherqd +Vh,Md vsibx
    91.w1 vpgatherqq +Vx,Mq vsibx | 92.w0 vgatherdps +Vx,Md vsibx | 92.w1 vgatherdpd +Vx,Mq vsibh
    93.w0 vgatherqps +Vh,Md vsibx | 93.w1 vgatherqpd +Vx,Mq vsibx
    A0.w0 vpscatterdd =Md,Vx vsibx | A0.w1 vpscatterdq =Mq,Vx vsibh | A1.w0 vpscatterqd =Md,Vh vsibx
    A1.w1 vpscatterqq =Mq,Vx vsibx | A2.w0 vscatterdps =Md,Vx vsibx
    A2.w1 vscatterdpd =Mq,Vx vsibh | A3.w0 vscatterqps =Md,Vh vsibx | A3.w1 vscatterqpd =Mq,Vx vsibx
    # Ciphers
    @ gfni vec kz : 66.w0
    CF vgf2p8mulb =Vx,Hx,Wx
    @ vaes vec : 66 : =Vx,Hx,Wx
    DC vaesenc | DD vaesenclast | DE vaesdec | DF vaesdeclast
    """
}
