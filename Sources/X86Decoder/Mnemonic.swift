// SPDX-License-Identifier: Apache-2.0
//
// Names of instructions.
//
// They are spelled as in the manuals, in lower case. A capital letter starts a suffix of ours
// (`callFar`, `movSegment`) that distinguishes instructions with the same name in the manuals; the
// disassembly omits it. Conditional instructions have one name for each condition (`jz`, `setnle`,
// `cmovb`), in the spelling o, no, b, nb, z, nz, be, nbe, s, ns, p, np, l, nl, le, nle.

public enum Mnemonic: UInt16, Sendable, CaseIterable {
  case invalid = 0

  // General-purpose instructions. Near transfers are `call`, `jmp`, `ret`. `jcxz` is JCXZ, JECXZ
  // and JRCXZ by address size; string instructions (`movs`, `stos`, ...), `pusha`, `popa`, `pushf`,
  // `popf` and `iret` have their width in the operand size.
  case nop, mov, movSegment, movControl, movDebug, lea, add, or, adc, sbb, and, sub, xor, cmp, test
  case inc, dec, neg, not, mul, imul, div, idiv, rol, ror, rcl, rcr, shl, shr, sar, shld, shrd
  case push, pop, pushSegment, popSegment, call, jmp, ret, callFar, jmpFar, retFar, iret, enter
  case leave, loop, loope, loopne, jcxz, xchg, xadd, cmpxchg, cmpxchg8b, cmpxchg16b, movzx, movsx
  case movsxd, bswap, movbe, cbw, cwde, cdqe, cwd, cdq, cqo, bt, bts, btr, btc, bsf, bsr, aaa, aad
  case aam, aas, daa, das, movs, cmps, scas, lods, stos, ins, outs, `in`, out, xlat, lahf, sahf
  case salc, pusha, popa, pushf, popf, clc, stc, cmc, cld, std, cli, sti, int, int1, int3, into
  case bound, arpl, lds, les, lfs, lgs, lss, ud0, ud1, ud2, cpuid, rdtsc, rdtscp, rdpmc, pause, hlt
  case popcnt, lzcnt, tzcnt, andn, bextr, blsi, blsmsk, blsr, bzhi, mulx, pdep, pext, rorx, sarx
  case shlx, shrx, adcx, adox, crc32, rdrand, rdseed, rdpid, movnti, movdiri, movdir64b, lfence
  case mfence, sfence, clflush, clflushopt, clwb, cldemote, clzero, prefetch, prefetchw
  case prefetchwt1, prefetchnta, prefetcht0, prefetcht1, prefetcht2, endbr32, endbr64, serialize

  // Conditional instructions, each in the order of its opcodes.
  case jo, jno, jb, jnb, jz, jnz, jbe, jnbe, js, jns, jp, jnp, jl, jnl, jle, jnle, seto, setno
  case setb, setnb, setz, setnz, setbe, setnbe, sets, setns, setp, setnp, setl, setnl, setle
  case setnle, cmovo, cmovno, cmovb, cmovnb, cmovz, cmovnz, cmovbe, cmovnbe, cmovs, cmovns, cmovp
  case cmovnp, cmovl, cmovnl, cmovle, cmovnle

  // System instructions. `movControl` and `movDebug` are above. The 64-bit forms of the XSAVE and
  // FXSAVE families have the same names, with operand size 8.
  case lgdt, lidt, sgdt, sidt, lldt, ltr, sldt, str, lmsw, smsw, lar, lsl, verr, verw, clts, invd
  case wbinvd, wbnoinvd, invlpg, invpcid, invlpga, rdmsr, wrmsr, syscall, sysret, sysenter, sysexit
  case swapgs, rsm, clac, stac, rdfsbase, rdgsbase, wrfsbase, wrgsbase, rdpkru, wrpkru, monitor
  case mwait, monitorx, mwaitx, xgetbv, xsetbv, xsave, xrstor, xsaveopt, xsavec, xsaves, xrstors
  case fxsave, fxrstor, vmcall, vmlaunch, vmresume, vmxoff, vmxon, vmptrld, vmptrst, vmclear
  case vmread, vmwrite, invept, invvpid, vmfunc, vmrun, vmload, vmsave, stgi, clgi, vmmcall, skinit
  case getsec, encls, enclu, enclv, rdpru, ptwrite, umonitor, umwait, tpause, xabort, xbegin, xend
  case xtest, pconfig

  // x87 instructions, by the names of non-waiting forms where there are two (`fnsave`).
  case f2xm1, fabs, fadd, faddp, fiadd, fbld, fbstp, fchs, fnclex, fcmovb, fcmove, fcmovbe, fcmovu
  case fcmovnb, fcmovne, fcmovnbe, fcmovnu, fcom, fcomp, fcompp, fcomi, fcomip, fucomi, fucomip
  case fcos, fdecstp, fdiv, fdivp, fidiv, fdivr, fdivrp, fidivr, ffree, ffreep, ficom, ficomp, fild
  case fincstp, fninit, fist, fistp, fisttp, fld, fld1, fldl2e, fldl2t, fldlg2, fldln2, fldpi, fldz
  case fldcw, fldenv, fmul, fmulp, fimul, fnop, fpatan, fprem, fprem1, fptan, frndint, frstor
  case fnsave, fscale, fsin, fsincos, fsqrt, fst, fstp, fnstcw, fnstenv, fnstsw, fsub, fsubp, fisub
  case fsubr, fsubrp, fisubr, ftst, fucom, fucomp, fucompp, fxam, fxch, fxtract, fyl2x, fyl2xp1
  case fwait, fneni, fndisi, fnsetpm

  // MMX instructions, most of which have an SSE2 form of the same name.
  case emms, movd, movq, packsswb, packssdw, packuswb, paddb, paddw, paddd, paddsb, paddsw, paddusb
  case paddusw, pand, pandn, pcmpeqb, pcmpeqw, pcmpeqd, pcmpgtb, pcmpgtw, pcmpgtd, pmaddwd, pmulhw
  case pmullw, por, psllw, pslld, psllq, psraw, psrad, psrlw, psrld, psrlq, psubb, psubw, psubd
  case psubsb, psubsw, psubusb, psubusw, punpckhbw, punpckhwd, punpckhdq, punpcklbw, punpcklwd
  case punpckldq, pxor, pavgb, pavgw, pextrw, pinsrw, pmaxsw, pmaxub, pminsw, pminub, pmovmskb
  case pmulhuw, psadbw, pshufw, maskmovq, movntq, paddq, psubq, pmuludq

  // SSE to SSE4.2, SSE4a, AES, PCLMULQDQ, SHA and GFNI.
  case addps, addss, andnps, andps, cmpps, cmpss, comiss, cvtpi2ps, cvtps2pi, cvtsi2ss, cvtss2si
  case cvttps2pi, cvttss2si, divps, divss, ldmxcsr, maxps, maxss, minps, minss, movaps, movhlps
  case movhps, movlhps, movlps, movmskps, movntps, movss, movups, mulps, mulss, orps, rcpps, rcpss
  case rsqrtps, rsqrtss, shufps, sqrtps, sqrtss, stmxcsr, subps, subss, ucomiss, unpckhps, unpcklps
  case xorps, addpd, addsd, andnpd, andpd, cmppd, cmpsd, comisd, cvtdq2pd, cvtdq2ps, cvtpd2dq
  case cvtpd2pi, cvtpd2ps, cvtpi2pd, cvtps2dq, cvtps2pd, cvtsd2si, cvtsd2ss, cvtsi2sd, cvtss2sd
  case cvttpd2dq, cvttpd2pi, cvttps2dq, cvttsd2si, divpd, divsd, maskmovdqu, maxpd, maxsd, minpd
  case minsd, movapd, movdq2q, movdqa, movdqu, movhpd, movlpd, movmskpd, movntdq, movntpd, movq2dq
  case movsd, movupd, mulpd, mulsd, orpd, pshufd, pshufhw, pshuflw, pslldq, psrldq, punpckhqdq
  case punpcklqdq, shufpd, sqrtpd, sqrtsd, subpd, subsd, ucomisd, unpckhpd, unpcklpd, xorpd
  case addsubpd, addsubps, haddpd, haddps, hsubpd, hsubps, lddqu, movddup, movshdup, movsldup
  case pabsb, pabsw, pabsd, palignr, phaddd, phaddsw, phaddw, phsubd, phsubsw, phsubw, pmaddubsw
  case pmulhrsw, pshufb, psignb, psignd, psignw, blendpd, blendps, blendvpd, blendvps, dppd, dpps
  case extractps, insertps, movntdqa, mpsadbw, packusdw, pblendvb, pblendw, pcmpeqq, pextrb, pextrd
  case pextrq, phminposuw, pinsrb, pinsrd, pinsrq, pmaxsb, pmaxsd, pmaxud, pmaxuw, pminsb, pminsd
  case pminud, pminuw, pmovsxbd, pmovsxbq, pmovsxbw, pmovsxdq, pmovsxwd, pmovsxwq, pmovzxbd
  case pmovzxbq, pmovzxbw, pmovzxdq, pmovzxwd, pmovzxwq, pmuldq, pmulld, ptest, roundpd, roundps
  case roundsd, roundss, pcmpestri, pcmpestrm, pcmpgtq, pcmpistri, pcmpistrm, extrq, insertq
  case movntsd, movntss, aesdec, aesdeclast, aesenc, aesenclast, aesimc, aeskeygenassist, pclmulqdq
  case sha1msg1, sha1msg2, sha1nexte, sha1rnds4, sha256msg1, sha256msg2, sha256rnds2
  case gf2p8affineinvqb, gf2p8affineqb, gf2p8mulb

  // AVX, AVX2, F16C and AVX-VNNI: first the VEX (and EVEX) forms of the names above.
  case vaddps, vaddss, vandnps, vandps, vcmpps, vcmpss, vcomiss, vcvtsi2ss, vcvtss2si, vcvttss2si
  case vdivps, vdivss, vldmxcsr, vmaxps, vmaxss, vminps, vminss, vmovaps, vmovhlps, vmovhps
  case vmovlhps, vmovlps, vmovmskps, vmovntps, vmovss, vmovups, vmulps, vmulss, vorps, vrcpps
  case vrcpss, vrsqrtps, vrsqrtss, vshufps, vsqrtps, vsqrtss, vstmxcsr, vsubps, vsubss, vucomiss
  case vunpckhps, vunpcklps, vxorps, vaddpd, vaddsd, vandnpd, vandpd, vcmppd, vcmpsd, vcomisd
  case vcvtdq2pd, vcvtdq2ps, vcvtpd2dq, vcvtpd2ps, vcvtps2dq, vcvtps2pd, vcvtsd2si, vcvtsd2ss
  case vcvtsi2sd, vcvtss2sd, vcvttpd2dq, vcvttps2dq, vcvttsd2si, vdivpd, vdivsd, vmaskmovdqu
  case vmaxpd, vmaxsd, vminpd, vminsd, vmovapd, vmovdqa, vmovdqu, vmovhpd, vmovlpd, vmovmskpd
  case vmovntdq, vmovntpd, vmovsd, vmovupd, vmulpd, vmulsd, vorpd, vpshufd, vpshufhw, vpshuflw
  case vpslldq, vpsrldq, vpunpckhqdq, vpunpcklqdq, vshufpd, vsqrtpd, vsqrtsd, vsubpd, vsubsd
  case vucomisd, vunpckhpd, vunpcklpd, vxorpd, vaddsubpd, vaddsubps, vhaddpd, vhaddps, vhsubpd
  case vhsubps, vlddqu, vmovddup, vmovshdup, vmovsldup, vpabsb, vpabsw, vpabsd, vpalignr, vphaddd
  case vphaddsw, vphaddw, vphsubd, vphsubsw, vphsubw, vpmaddubsw, vpmulhrsw, vpshufb, vpsignb
  case vpsignd, vpsignw, vblendpd, vblendps, vblendvpd, vblendvps, vdppd, vdpps, vextractps
  case vinsertps, vmovntdqa, vmpsadbw, vpackusdw, vpblendvb, vpblendw, vpcmpeqq, vpextrb, vpextrd
  case vpextrq, vphminposuw, vpinsrb, vpinsrd, vpinsrq, vpmaxsb, vpmaxsd, vpmaxud, vpmaxuw, vpminsb
  case vpminsd, vpminud, vpminuw, vpmovsxbd, vpmovsxbq, vpmovsxbw, vpmovsxdq, vpmovsxwd, vpmovsxwq
  case vpmovzxbd, vpmovzxbq, vpmovzxbw, vpmovzxdq, vpmovzxwd, vpmovzxwq, vpmuldq, vpmulld, vptest
  case vroundpd, vroundps, vroundsd, vroundss, vpcmpestri, vpcmpestrm, vpcmpgtq, vpcmpistri
  case vpcmpistrm, vaesdec, vaesdeclast, vaesenc, vaesenclast, vaesimc, vaeskeygenassist
  case vpclmulqdq, vgf2p8affineinvqb, vgf2p8affineqb, vgf2p8mulb, vmovd, vmovq, vpacksswb
  case vpackssdw, vpackuswb, vpaddb, vpaddw, vpaddd, vpaddsb, vpaddsw, vpaddusb, vpaddusw, vpand
  case vpandn, vpcmpeqb, vpcmpeqw, vpcmpeqd, vpcmpgtb, vpcmpgtw, vpcmpgtd, vpmaddwd, vpmulhw
  case vpmullw, vpor, vpsllw, vpslld, vpsllq, vpsraw, vpsrad, vpsrlw, vpsrld, vpsrlq, vpsubb
  case vpsubw, vpsubd, vpsubsb, vpsubsw, vpsubusb, vpsubusw, vpunpckhbw, vpunpckhwd, vpunpckhdq
  case vpunpcklbw, vpunpcklwd, vpunpckldq, vpxor, vpavgb, vpavgw, vpextrw, vpinsrw, vpmaxsw
  case vpmaxub, vpminsw, vpminub, vpmovmskb, vpmulhuw, vpsadbw, vpaddq, vpsubq, vpmuludq
  case vbroadcastf128, vbroadcasti128, vbroadcastsd, vbroadcastss, vcvtph2ps, vcvtps2ph
  case vextractf128, vextracti128, vgatherdpd, vgatherdps, vgatherqpd, vgatherqps, vinsertf128
  case vinserti128, vmaskmovpd, vmaskmovps, vpblendd, vpbroadcastb, vpbroadcastd, vpbroadcastq
  case vpbroadcastw, vperm2f128, vperm2i128, vpermd, vpermilpd, vpermilps, vpermpd, vpermps, vpermq
  case vpgatherdd, vpgatherdq, vpgatherqd, vpgatherqq, vpmaskmovd, vpmaskmovq, vpsllvd, vpsllvq
  case vpsravd, vpsrlvd, vpsrlvq, vtestpd, vtestps, vzeroall, vzeroupper, vpdpbusd, vpdpbusds
  case vpdpwssd, vpdpwssds

  // FMA.
  case vfmadd132pd, vfmadd132ps, vfmadd132sd, vfmadd132ss, vfmadd213pd, vfmadd213ps, vfmadd213sd
  case vfmadd213ss, vfmadd231pd, vfmadd231ps, vfmadd231sd, vfmadd231ss, vfmsub132pd, vfmsub132ps
  case vfmsub132sd, vfmsub132ss, vfmsub213pd, vfmsub213ps, vfmsub213sd, vfmsub213ss, vfmsub231pd
  case vfmsub231ps, vfmsub231sd, vfmsub231ss, vfnmadd132pd, vfnmadd132ps, vfnmadd132sd
  case vfnmadd132ss, vfnmadd213pd, vfnmadd213ps, vfnmadd213sd, vfnmadd213ss, vfnmadd231pd
  case vfnmadd231ps, vfnmadd231sd, vfnmadd231ss, vfnmsub132pd, vfnmsub132ps, vfnmsub132sd
  case vfnmsub132ss, vfnmsub213pd, vfnmsub213ps, vfnmsub213sd, vfnmsub213ss, vfnmsub231pd
  case vfnmsub231ps, vfnmsub231sd, vfnmsub231ss, vfmaddsub132pd, vfmaddsub132ps, vfmaddsub213pd
  case vfmaddsub213ps, vfmaddsub231pd, vfmaddsub231ps, vfmsubadd132pd, vfmsubadd132ps
  case vfmsubadd213pd, vfmsubadd213ps, vfmsubadd231pd, vfmsubadd231ps

  // AVX-512 mask instructions.
  case kaddb, kaddw, kaddd, kaddq, kandb, kandw, kandd, kandq, kandnb, kandnw, kandnd, kandnq
  case kmovb, kmovw, kmovd, kmovq, knotb, knotw, knotd, knotq, korb, korw, kord, korq, kortestb
  case kortestw, kortestd, kortestq, kshiftlb, kshiftlw, kshiftld, kshiftlq, kshiftrb, kshiftrw
  case kshiftrd, kshiftrq, ktestb, ktestw, ktestd, ktestq, kxnorb, kxnorw, kxnord, kxnorq, kxorb
  case kxorw, kxord, kxorq, kunpckbw, kunpckwd, kunpckdq

  // AVX-512.
  case valignd, valignq, vblendmpd, vblendmps, vbroadcastf32x2, vbroadcastf32x4, vbroadcastf32x8
  case vbroadcastf64x2, vbroadcastf64x4, vbroadcasti32x2, vbroadcasti32x4, vbroadcasti32x8
  case vbroadcasti64x2, vbroadcasti64x4, vcompresspd, vcompressps, vcvtne2ps2bf16, vcvtneps2bf16
  case vcvtpd2qq, vcvtpd2udq, vcvtpd2uqq, vcvtps2qq, vcvtps2udq, vcvtps2uqq, vcvtqq2pd, vcvtqq2ps
  case vcvtsd2usi, vcvtss2usi, vcvttpd2qq, vcvttpd2udq, vcvttpd2uqq, vcvttps2qq, vcvttps2udq
  case vcvttps2uqq, vcvttsd2usi, vcvttss2usi, vcvtudq2pd, vcvtudq2ps, vcvtuqq2pd, vcvtuqq2ps
  case vcvtusi2sd, vcvtusi2ss, vdbpsadbw, vdpbf16ps, vexpandpd, vexpandps, vextractf32x4
  case vextractf32x8, vextractf64x2, vextractf64x4, vextracti32x4, vextracti32x8, vextracti64x2
  case vextracti64x4, vfixupimmpd, vfixupimmps, vfixupimmsd, vfixupimmss, vfpclasspd, vfpclassps
  case vfpclasssd, vfpclassss, vgetexppd, vgetexpps, vgetexpsd, vgetexpss, vgetmantpd, vgetmantps
  case vgetmantsd, vgetmantss, vinsertf32x4, vinsertf32x8, vinsertf64x2, vinsertf64x4, vinserti32x4
  case vinserti32x8, vinserti64x2, vinserti64x4, vmovdqa32, vmovdqa64, vmovdqu16, vmovdqu32
  case vmovdqu64, vmovdqu8, vp2intersectd, vp2intersectq, vpabsq, vpandd, vpandnd, vpandnq, vpandq
  case vpblendmb, vpblendmd, vpblendmq, vpblendmw, vpbroadcastmb2q, vpbroadcastmw2d, vpcmpb, vpcmpd
  case vpcmpq, vpcmpub, vpcmpud, vpcmpuq, vpcmpuw, vpcmpw, vpcompressb, vpcompressd, vpcompressq
  case vpcompressw, vpconflictd, vpconflictq, vpermb, vpermi2b, vpermi2d, vpermi2pd, vpermi2ps
  case vpermi2q, vpermi2w, vpermt2b, vpermt2d, vpermt2pd, vpermt2ps, vpermt2q, vpermt2w, vpermw
  case vpexpandb, vpexpandd, vpexpandq, vpexpandw, vplzcntd, vplzcntq, vpmadd52huq, vpmadd52luq
  case vpmaxsq, vpmaxuq, vpminsq, vpminuq, vpmovb2m, vpmovd2m, vpmovdb, vpmovdw, vpmovm2b, vpmovm2d
  case vpmovm2q, vpmovm2w, vpmovq2m, vpmovqb, vpmovqd, vpmovqw, vpmovsdb, vpmovsdw, vpmovsqb
  case vpmovsqd, vpmovsqw, vpmovswb, vpmovusdb, vpmovusdw, vpmovusqb, vpmovusqd, vpmovusqw
  case vpmovuswb, vpmovw2m, vpmovwb, vpmullq, vpmultishiftqb, vpopcntb, vpopcntd, vpopcntq
  case vpopcntw, vpord, vporq, vprold, vprolq, vprolvd, vprolvq, vprord, vprorq, vprorvd, vprorvq
  case vpscatterdd, vpscatterdq, vpscatterqd, vpscatterqq, vpshldd, vpshldq, vpshldvd, vpshldvq
  case vpshldvw, vpshldw, vpshrdd, vpshrdq, vpshrdvd, vpshrdvq, vpshrdvw, vpshrdw, vpshufbitqmb
  case vpsllvw, vpsraq, vpsravq, vpsravw, vpsrlvw, vpternlogd, vpternlogq, vptestmb, vptestmd
  case vptestmq, vptestmw, vptestnmb, vptestnmd, vptestnmq, vptestnmw, vpxord, vpxorq, vrangepd
  case vrangeps, vrangesd, vrangess, vrcp14pd, vrcp14ps, vrcp14sd, vrcp14ss, vreducepd, vreduceps
  case vreducesd, vreducess, vrndscalepd, vrndscaleps, vrndscalesd, vrndscaless, vrsqrt14pd
  case vrsqrt14ps, vrsqrt14sd, vrsqrt14ss, vscalefpd, vscalefps, vscalefsd, vscalefss, vscatterdpd
  case vscatterdps, vscatterqpd, vscatterqps, vshuff32x4, vshuff64x2, vshufi32x4, vshufi64x2
}
