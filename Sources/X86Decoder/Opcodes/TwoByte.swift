// SPDX-License-Identifier: Apache-2.0
//
// Rows of the maps 0F, 0F 38 and 0F 3A that are not vector instructions.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

extension OpcodeText {
  /// 0F: general-purpose and system instructions.
  static let twoByte: StaticString = """
    # Descriptor tables and machine state
    @ base ser noora
    00/0r sldt =Ev | 00/0m sldt =Mw | 00/1r str =Ev | 00/1m str =Mw
    00/4 verr Ew fwz | 00/5 verw Ew fwz | 02 lar +Gv,Ew fwz | 03 lsl +Gv,Ew fwz
    01/0m sgdt =Ms native | 01/1m sidt =Ms native | 01/4r smsw =Ev | 01/4m smsw =Mw
    @ base ser noora priv
    00/2 lldt Ew | 00/3 ltr Ew | 01/2m lgdt Ms native | 01/3m lidt Ms native | 01/6 lmsw Ew
    01/7m invlpg M0 | 06 clts | 08 invd | 09.f3 wbnoinvd - ?wbnoinvd | 09 wbinvd
    20 movControl =Rn,Cn native rmreg | 21 movDebug =Rn,Dn native rmreg
    22 movControl =Cn,Rn native rmreg | 23 movDebug =Dn,Rn native rmreg
    30 wrmsr | 32 rdmsr | 01/7r0.x64 swapgs | AA rsm
    @ monitor ser noora
    01/1r0.np monitor | 01/1r1.np mwait
    @ monitorx ser noora
    01/7r2 monitorx | 01/7r3 mwaitx
    @ smap ser noora priv
    01/1r2.np clac | 01/1r3.np stac
    @ sgx ser noora
    01/0r0.np enclv | 01/1r7.np encls - priv | 01/2r7.np enclu
    @ pconfig ser noora priv
    01/0r5.np pconfig
    @ vmx ser noora
    01/0r1.np vmcall | 01/0r2.np vmlaunch | 01/0r3.np vmresume | 01/0r4.np vmxoff
    01/2r4.np vmfunc | 78.np vmread =En,Gn native | 79.np vmwrite Gn,En native
    C7/6m.np vmptrld Mq | C7/6m.66 vmclear Mq | C7/6m.f3 vmxon Mq | C7/7m.np vmptrst =Mq
    @ svm ser noora
    01/3r0 vmrun | 01/3r1 vmmcall | 01/3r2 vmload | 01/3r3 vmsave | 01/3r4 stgi | 01/3r5 clgi
    01/3r6 skinit - ?skinit | 01/3r7 invlpga
    @ smx ser noora
    37.np getsec
    @ xsave ser noora
    01/2r0.np xgetbv | 01/2r1.np xsetbv - priv
    AE/4m.np xsave =M0 | AE/5m.np xrstor M0 | AE/6m.np xsaveopt =M0 ?xsaveopt
    C7/3m.np xrstors M0 ?xsaves priv | C7/4m.np xsavec =M0 ?xsavec
    C7/5m.np xsaves =M0 ?xsaves priv
    @ fxsr ser noora
    AE/0m.np fxsave =M0 | AE/1m.np fxrstor M0
    @ rtm ser noora
    01/2r5.np xend | 01/2r6.np xtest - fw
    @ serialize ser
    01/5r0.np serialize
    @ pku ser noora
    01/5r6.np rdpkru | 01/5r7.np wrpkru
    @ clzero
    01/7r4 clzero
    @ rdpru noora
    01/7r5 rdpru
    @ base ser noora
    31 rdtsc | 01/7r1 rdtscp - ?rdtscp | 33 rdpmc | A2 cpuid
    @ syscall br ser noora
    05 syscall | 07 sysret - priv
    @ sysenter br ser noora
    34 sysenter | 35 sysexit - priv
    @ base br ser
    0B ud2 | B9 ud1 Gv,Ev | FF ud0 Gv,Ev
    @ fsgsbase noora
    AE/0r.f3.x64 rdfsbase =Ry | AE/1r.f3.x64 rdgsbase =Ry
    AE/2r.f3.x64 wrfsbase Ry ser | AE/3r.f3.x64 wrgsbase Ry ser
    @ ptwrite noora
    AE/4.f3 ptwrite Ey
    @ waitpkg ser noora
    AE/6r.66 tpause Rd fw | AE/6r.f3 umonitor Rg | AE/6r.f2 umwait Rd fw
    # Caches, fences and hints
    @ sse2
    AE/5r.np lfence | AE/6r.np mfence | C3.np movnti =My,Gy mr
    @ sse
    AE/7r.np sfence | 18/0m prefetchnta Mb | 18/1m prefetcht0 Mb | 18/2m prefetcht1 Mb
    18/3m prefetcht2 Mb
    @ prefetchw
    0D/0m prefetch Mb | 0D/1m prefetchw Mb | 0D/2m prefetchwt1 Mb | 0D/m prefetch Mb
    @ clflush
    AE/7m.np clflush Mb | AE/7m.66 clflushopt Mb ?clflushopt | AE/6m.66 clwb Mb ?clwb
    1C/0m.np cldemote Mb ?cldemote
    @ base
    18 nop Ev | 19 nop Ev | 1A nop Ev | 1B nop Ev | 1C nop Ev | 1D nop Ev
    1E/7r2.f3 endbr64 | 1E/7r3.f3 endbr32 | 1E nop Ev | 1F nop Ev
    # Moves
    @ cmov mr
    40c cmov +Gv,Ev
    @ base mr
    90c set =Eb
    @ base
    B2/m lss =Gv,Mp ser | B4/m lfs =Gv,Mp ser | B5/m lgs =Gv,Mp ser
    B6 movzx =Gv,Eb mr | B7 movzx =Gv,Ew mr | BE movsx =Gv,Eb mr | BF movsx =Gv,Ew mr
    C8+ bswap +Zv
    @ base d64
    A0 pushSegment %fs | A1 popSegment =%fs ser | A8 pushSegment %gs | A9 popSegment =%gs ser
    # Arithmetic
    @ base fwc lock mr
    AB bts +Ev,Gv | B3 btr +Ev,Gv | BB btc +Ev,Gv
    BA/5 bts +Ev,Ib | BA/6 btr +Ev,Ib | BA/7 btc +Ev,Ib
    @ base fw lock mr
    B0 cmpxchg +Eb,Gb | B1 cmpxchg +Ev,Gv | C0 xadd +Eb,+Gb | C1 xadd +Ev,+Gv
    @ base fwz lock
    C7/1m.w1 cmpxchg16b +Mo ?cx16 al | C7/1m cmpxchg8b +Mq ?cx8
    @ base fw mr
    A3 bt Ev,Gv fwc | BA/4 bt Ev,Ib fwc | AF imul +Gv,Ev
    A4 shld +Ev,Gv,Ib count | A5 shld +Ev,Gv,%cb count
    AC shrd +Ev,Gv,Ib count | AD shrd +Ev,Gv,%cb count
    B8.f3 popcnt =Gv,Ev ?popcnt | BC.f3 tzcnt =Gv,Ev ?bmi1 fwcz | BD.f3 lzcnt =Gv,Ev ?lzcnt fwcz
    BC bsf +Gv,Ev fwz | BD bsr +Gv,Ev fwz
    @ base fw
    C7/6r.n6 rdrand =Rv ?rdrand noora | C7/7r.n6 rdseed =Rv ?rdseed noora
    @ rdpid noora
    C7/7r.f3 rdpid =Rn
    @ base br f64
    80c j Jz
    """

  /// 0F 38 and 0F 3A: general-purpose and system instructions.
  static let threeByteGeneral: StaticString = """
    @ vmx ser noora priv
    80.66 invept Gn,Mo native | 81.66 invvpid Gn,Mo native
    @ invpcid ser noora priv
    82.66 invpcid Gn,Mo native
    @ movbe
    F0/m.n6 movbe =Gv,Mv mr | F1/m.n6 movbe =Mv,Gv mr
    @ sse42
    F0.f2 crc32 +Gy,Eb | F1.f2 crc32 +Gy,Ev
    @ adx mr
    F6.66 adcx +Gy,Ey fwc frc | F6.f3 adox +Gy,Ey fwo fro
    @ movdiri
    F9/m.np movdiri =My,Gy
    @ movdir64b
    F8/m.66 movdir64b Gg,Ml
    """

  /// VEX 0F 38 and 0F 3A: general-purpose instructions.
  static let vexGeneral: StaticString = """
    @ bmi1 fw mr : l0
    F2.np andn =Gy,By,Ey | F3/1.np blsr =By,Ey | F3/2.np blsmsk =By,Ey | F3/3.np blsi =By,Ey
    F7.np bextr =Gy,Ey,By
    @ bmi2 mr : l0
    F5.np bzhi =Gy,Ey,By fw | F5.f3 pext =Gy,By,Ey | F5.f2 pdep =Gy,By,Ey
    F6.f2 mulx =Gy,=By,Ey | F7.66 shlx =Gy,Ey,By | F7.f3 sarx =Gy,Ey,By | F7.f2 shrx =Gy,Ey,By
    """
  static let vexGeneral3A: StaticString = """
    @ bmi2 mr : l0
    F0.f2 rorx =Gy,Ey,Ib
    """
}
