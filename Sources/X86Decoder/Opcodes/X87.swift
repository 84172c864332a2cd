// SPDX-License-Identifier: Apache-2.0
//
// Rows of x87, D8 to DF.
// `OpcodeTable+Builder.swift` has the grammar; the order of rows that share an opcode matters.

extension OpcodeText {
  /// D8 to DF.
  static let x87: StaticString = """
    @ fpu x87 : m : Md
    D8/0 fadd | D8/1 fmul | D8/2 fcom | D8/3 fcomp | D8/4 fsub | D8/5 fsubr | D8/6 fdiv
    D8/7 fdivr | D9/0 fld | D9/2 fst =Md | D9/3 fstp =Md | D9/4 fldenv Mi | D9/5 fldcw Mw
    D9/6 fnstenv =Mi nw | D9/7 fnstcw =Mw nw
    DA/0 fiadd | DA/1 fimul | DA/2 ficom | DA/3 ficomp | DA/4 fisub | DA/5 fisubr | DA/6 fidiv
    DA/7 fidivr | DB/0 fild | DB/1 fisttp =Md ?sse3 | DB/2 fist =Md | DB/3 fistp =Md
    DB/5 fld Mt | DB/7 fstp =Mt
    @ fpu x87 : m : Mq
    DC/0 fadd | DC/1 fmul | DC/2 fcom | DC/3 fcomp | DC/4 fsub | DC/5 fsubr | DC/6 fdiv
    DC/7 fdivr | DD/0 fld | DD/1 fisttp =Mq ?sse3 | DD/2 fst =Mq | DD/3 fstp =Mq
    DD/4 frstor Mj | DD/6 fnsave =Mj nw | DD/7 fnstsw =Mw nw
    @ fpu x87 : m : Mw
    DE/0 fiadd | DE/1 fimul | DE/2 ficom | DE/3 ficomp | DE/4 fisub | DE/5 fisubr | DE/6 fidiv
    DE/7 fidivr | DF/0 fild | DF/1 fisttp =Mw ?sse3 | DF/2 fist =Mw | DF/3 fistp =Mw
    DF/4 fbld Mt | DF/5 fild Mq | DF/6 fbstp =Mt | DF/7 fistp =Mq
    @ fpu x87 : r : +%st,Tt
    D8/0 fadd | D8/1 fmul | D8/2 fcom %st,Tt | D8/3 fcomp %st,Tt | D8/4 fsub | D8/5 fsubr
    D8/6 fdiv | D8/7 fdivr | D9/1 fxch +%st,+Tt
    DB/5 fucomi %st,Tt fw | DB/6 fcomi %st,Tt fw | DF/5 fucomip %st,Tt fw | DF/6 fcomip %st,Tt fw
    @ cmov x87 : r : +%st,Tt
    DA/0 fcmovb frc | DA/1 fcmove frz | DA/2 fcmovbe frcz | DA/3 fcmovu frp
    DB/0 fcmovnb frc | DB/1 fcmovne frz | DB/2 fcmovnbe frcz | DB/3 fcmovnu frp
    @ fpu x87 : r : +Tt,%st
    DC/0 fadd | DC/1 fmul | DC/4 fsubr | DC/5 fsub | DC/6 fdivr | DC/7 fdiv
    DE/0 faddp | DE/1 fmulp | DE/4 fsubrp | DE/5 fsubp | DE/6 fdivrp | DE/7 fdivp
    @ fpu x87 : r : Tt
    D9/0 fld | DD/0 ffree =Tt | DF/0 ffreep =Tt | DD/2 fst =Tt | DD/3 fstp =Tt
    DD/4 fucom | DD/5 fucomp
    # Second encodings that processors have kept from the 8087
    DC/2 fcom %st,Tt | DC/3 fcomp %st,Tt | DE/2 fcomp %st,Tt | DD/1 fxch +%st,+Tt
    DF/1 fxch +%st,+Tt | D9/3 fstp =Tt | DF/2 fstp =Tt | DF/3 fstp =Tt
    @ fpu x87
    D9/2r0 fnop | DA/5r1 fucompp | DE/3r1 fcompp
    D9/4r0 fchs | D9/4r1 fabs | D9/4r4 ftst | D9/4r5 fxam
    D9/5r0 fld1 | D9/5r1 fldl2t | D9/5r2 fldl2e | D9/5r3 fldpi | D9/5r4 fldlg2 | D9/5r5 fldln2
    D9/5r6 fldz
    D9/6r0 f2xm1 | D9/6r1 fyl2x | D9/6r2 fptan | D9/6r3 fpatan | D9/6r4 fxtract | D9/6r5 fprem1
    D9/6r6 fdecstp | D9/6r7 fincstp
    D9/7r0 fprem | D9/7r1 fyl2xp1 | D9/7r2 fsqrt | D9/7r3 fsincos | D9/7r4 frndint | D9/7r5 fscale
    D9/7r6 fsin | D9/7r7 fcos
    DB/4r0 fneni - nw | DB/4r1 fndisi - nw | DB/4r2 fnclex - nw | DB/4r3 fninit - nw
    DB/4r4 fnsetpm - nw | DF/4r0 fnstsw =%aw nw
    """
}
