// SPDX-License-Identifier: Apache-2.0
//
// Rows of the instructions on AVX-512 mask registers, which are VEX-encoded.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

extension OpcodeText {
  /// VEX 0F: AVX-512 mask registers.
  static let maskRegisters: StaticString = """
    @ avx512f vec : l1
    41/r.66.w0 kandb =kb,hb,jb ?avx512dq | 41/r.np.w0 kandw =kw,hw,jw ?avx512f
    41/r.66.w1 kandd =kd,hd,jd ?avx512bw | 41/r.np.w1 kandq =kq,hq,jq ?avx512bw
    42/r.66.w0 kandnb =kb,hb,jb ?avx512dq | 42/r.np.w0 kandnw =kw,hw,jw ?avx512f
    42/r.66.w1 kandnd =kd,hd,jd ?avx512bw | 42/r.np.w1 kandnq =kq,hq,jq ?avx512bw
    45/r.66.w0 korb =kb,hb,jb ?avx512dq | 45/r.np.w0 korw =kw,hw,jw ?avx512f
    45/r.66.w1 kord =kd,hd,jd ?avx512bw | 45/r.np.w1 korq =kq,hq,jq ?avx512bw
    46/r.66.w0 kxnorb =kb,hb,jb ?avx512dq | 46/r.np.w0 kxnorw =kw,hw,jw ?avx512f
    46/r.66.w1 kxnord =kd,hd,jd ?avx512bw | 46/r.np.w1 kxnorq =kq,hq,jq ?avx512bw
    47/r.66.w0 kxorb =kb,hb,jb ?avx512dq | 47/r.np.w0 kxorw =kw,hw,jw ?avx512f
    47/r.66.w1 kxord =kd,hd,jd ?avx512bw | 47/r.np.w1 kxorq =kq,hq,jq ?avx512bw
    4A/r.66.w0 kaddb =kb,hb,jb ?avx512dq | 4A/r.np.w0 kaddw =kw,hw,jw ?avx512dq
    4A/r.66.w1 kaddd =kd,hd,jd ?avx512bw | 4A/r.np.w1 kaddq =kq,hq,jq ?avx512bw
    4B/r.66.w0 kunpckbw =kw,hb,jb | 4B/r.np.w0 kunpckwd =kd,hw,jw ?avx512bw
    4B/r.np.w1 kunpckdq =kq,hd,jd ?avx512bw
    @ avx512f vec : l0
    44/r.66.w0 knotb =kb,jb ?avx512dq | 44/r.np.w0 knotw =kw,jw ?avx512f
    44/r.66.w1 knotd =kd,jd ?avx512bw | 44/r.np.w1 knotq =kq,jq ?avx512bw
    90.66.w0 kmovb =kb,jb ?avx512dq | 90.np.w0 kmovw =kw,jw ?avx512f
    90.66.w1 kmovd =kd,jd ?avx512bw | 90.np.w1 kmovq =kq,jq ?avx512bw
    91/m.66.w0 kmovb =Mb,kb ?avx512dq | 91/m.np.w0 kmovw =Mw,kw ?avx512f
    91/m.66.w1 kmovd =Md,kd ?avx512bw | 91/m.np.w1 kmovq =Mq,kq ?avx512bw
    92/r.np.w0 kmovw =kw,Rd | 92/r.66.w0 kmovb =kb,Rd ?avx512dq
    92/r.f2.w1.x64 kmovq =kq,Rq ?avx512bw
    92/r.f2 kmovd =kd,Rd ?avx512bw
    93/r.np.w0 kmovw =Gd,jw | 93/r.66.w0 kmovb =Gd,jb ?avx512dq
    93/r.f2.w1.x64 kmovq =Gq,jq ?avx512bw
    93/r.f2 kmovd =Gd,jd ?avx512bw
    @ avx512f vec fw : l0
    98/r.66.w0 kortestb kb,jb ?avx512dq | 98/r.np.w0 kortestw kw,jw ?avx512f
    98/r.66.w1 kortestd kd,jd ?avx512bw | 98/r.np.w1 kortestq kq,jq ?avx512bw
    99/r.66.w0 ktestb kb,jb ?avx512dq | 99/r.np.w0 ktestw kw,jw ?avx512dq
    99/r.66.w1 ktestd kd,jd ?avx512bw | 99/r.np.w1 ktestq kq,jq ?avx512bw
    """

  /// VEX 0F 3A: shifts of AVX-512 mask registers.
  static let maskShifts: StaticString = """
    @ avx512f vec : 66.l0
    30/r.w0 kshiftrb =kb,jb,Ib ?avx512dq | 30/r.w1 kshiftrw =kw,jw,Ib
    31/r.w0 kshiftrd =kd,jd,Ib ?avx512bw | 31/r.w1 kshiftrq =kq,jq,Ib ?avx512bw
    32/r.w0 kshiftlb =kb,jb,Ib ?avx512dq | 32/r.w1 kshiftlw =kw,jw,Ib
    33/r.w0 kshiftld =kd,jd,Ib ?avx512bw | 33/r.w1 kshiftlq =kq,jq,Ib ?avx512bw
    """
}
