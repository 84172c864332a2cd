// SPDX-License-Identifier: Apache-2.0
//
// The code that every translation shares: entry from and exit to Swift, handler calls, look-ups.
// It stands at the start of the code memory.
//
//     enter      C function (state, address) -> step: loads the guest's registers, jumps to address
//     exit       stores them and returns Step.branch with the flags in the image; RIP is set
//     exitAt     the same with RIP in R13
//     exitRelative      the same with the offset of RIP from the code's linear page in R13D
//     interpret  the same, asking that the block at RIP be interpreted
//     hot        the same, asking that the block at RIP be translated with those after it
//     dispatch   goes on at R13: the block's translation if the jump cache has one, else `resolve`
//     dispatchRelative  the same with the offset from the code's linear page in R13D
//     resolve    goes on at R13: the block's translation if there is one, else exit
//     stale      where the translation of a dropped block leads: goes on at offset R13 of the page
//     syscall    SYSCALL with the next RIP in R13; sysret likewise to RCX (see Thunks+System)
//     handler    called with the number of a NativeHandlerSite in R14: has the handler execute the
//                instruction, returns or leaves with the step
//     handlerJump       jumped to, of a site that says where to go on
//     handlerJumpFlags  the same, the guest's flags being in the host's

import X86CPU

struct Thunks {
  private(set) var enter: UInt = 0
  private(set) var exitAt: UInt = 0
  private(set) var exitRelative: UInt = 0
  private(set) var dispatchRelative: UInt = 0
  private(set) var handlerJump: UInt = 0
  private(set) var handlerJumpFlags: UInt = 0
  private(set) var returnTo: UInt = 0
  private(set) var memory = MemoryThunks()
  private(set) var dispatch: UInt = 0
  private(set) var handler: UInt = 0
  private(set) var interpret: UInt = 0
  private(set) var hot: UInt = 0
  private(set) var resolve: UInt = 0
  private(set) var stale: UInt = 0
  private(set) var syscall: UInt = 0
  private(set) var sysret: UInt = 0
  private(set) var verify: UInt = 0
  private(set) var vectors = VectorThunks()
  private(set) var code: [UInt8] = []

  /// Their names, in order of address.
  var symbols: [(name: String, address: UInt)] {
    let all = [
      ("enter", enter), ("exit", exitAt), ("dispatch", dispatch), ("handler", handler),
      ("interpret", interpret), ("hot", hot), ("syscall", syscall), ("sysret", sysret),
      ("resolve", resolve), ("stale", stale), ("verify", verify),
      ("load-mxcsr", vectors.loadMXCSR), ("load-x87", vectors.loadX87),
      ("zero-upper", vectors.zeroUpper), ("exit-relative", exitRelative),
      ("dispatch-relative", dispatchRelative), ("handler-jump", handlerJump),
      ("handler-jump-flags", handlerJumpFlags), ("return", returnTo),
    ]
    return (all + memory.symbols).filter { $0.1 != 0 }.sorted { $0.1 < $1.1 }
      .map { (name: $0.0, address: $0.1) }
  }

  /// Translated code counts how it is entered.
  let counts: Bool

  private static let saved: [HostRegister] = [.rbx, .rbp, .r12, .r13, .r14, .r15]

  init(origin: UInt, guardsSpeculation: Bool, counts: Bool = false) {
    self.counts = counts
    var a = Assembler(origin: origin)
    func here() -> UInt { origin + UInt(a.position) }
    let leave = a.label()
    enter = here()
    Self.emitEnter(&a)
    exitRelative = here()
    Self.emitAbsolute(&a)
    exitAt = here()
    Self.emitExit(&a, leave)
    let unresolved = a.label()
    syscall = here()
    Self.emitSyscall(&a)
    dispatch = here()
    lookUpAndEnter(&a, unresolved)
    sysret = here()
    Self.emitSysret(&a)
    lookUpAndEnter(&a, unresolved)
    dispatchRelative = here()
    Self.emitAbsolute(&a)
    lookUpAndEnter(&a, unresolved)
    stale = here()
    a.arithmetic(.add, .r13, .state(StateOffset.codePage))
    resolve = here()
    a.bind(unresolved)
    Self.emitResolve(&a, leave)
    returnTo = here()
    emitReturnTo(&a, unresolved)
    memory.emit(&a, guardsSpeculation: guardsSpeculation)
    handlerJumpFlags = here()
    a.saveFlags(.state(StateOffset.hostFlags), temporary: .r15)
    handlerJump = here()
    a.lea(.rsp, .memory(.rsp, -Self.belowState - 8))
    let inHandler = a.label()
    a.jump(inHandler)
    handler = here()
    a.pop(.r15)
    a.lea(.rsp, .memory(.rsp, -Self.belowState))
    a.push(.r15)
    a.bind(inHandler)
    Self.emitHandler(&a, leave)
    interpret = here()
    Self.emitLeave(&a, Step.branch | NativeState.flagsInImage | NativeState.interpret)
    a.jump(leave)
    hot = here()
    Self.emitLeave(&a, Step.branch | NativeState.flagsInImage | NativeState.hot)
    a.jump(leave)
    verify = here()
    Self.emitVerify(&a)
    vectors.emit(&a, hasAVX512: HostFeatures.current.hasAVX512)
    a.resolve()
    code = a.bytes
  }

  private func lookUpAndEnter(_ a: inout Assembler, _ miss: Label) {
    lookUp(&a, miss)
    enterLookedUp(&a)
  }

  /// R13 = RIP of the offset in R13D.
  private static func emitAbsolute(_ a: inout Assembler) {
    a.emit(Form(0x63, wide: true), reg: HostRegister.r13.rawValue, rm: .register(.r13))  // movsxd
    a.arithmetic(.add, .r13, .state(StateOffset.codePage))
  }

  private static func emitResolve(_ a: inout Assembler, _ leave: Label) {
    a.store(.state(StateOffset.rip), .r13)
    VectorThunks.store(&a, offset: 0)
    storeRegisters(&a, 0)
    a.lea(.rsp, .memory(.rsp, -Self.belowState))
    a.move(.rdi, .rsp)
    a.move(.rax, immediate: UInt64(UInt(bitPattern: unsafeBitCast(findSuccessor, to: Int.self))))
    a.call(.rax)
    a.lea(.rsp, .memory(.rsp, Self.belowState))
    a.test(.rax)
    let found = a.label()
    a.jump(if: BlockTranslation.notEqual, found)
    a.move(.rax, immediate: UInt64(Step.branch | NativeState.flagsInImage))
    a.jump(leave)
    a.bind(found)
    a.move(.r15, .rax)
    loadRegisters(&a, 0)
    a.jump(.r15)
  }

  private static func emitEnter(_ a: inout Assembler) {
    for register in saved { a.push(register) }
    a.store(.memory(.rdi, Int32(StateOffset.hostStack)), .rsp)
    a.lea(.rsp, .memory(.rdi, Self.belowState))
    a.move(.r13, .rsi)
    loadRegisters(&a, 0)
    a.jump(.r13)
  }

  private static func emitExit(_ a: inout Assembler, _ leave: Label) {
    emitLeave(&a, Step.branch | NativeState.flagsInImage)
    a.bind(leave)
    // What runs next, the interpreter or the hypervisor, makes no stores without a temporal hint
    // and knows of none.
    a.storeFence()
    a.load(.rsp, .state(StateOffset.hostStack))
    for register in saved.reversed() { a.pop(register) }
    a.ret()
  }

  private static func emitLeave(_ a: inout Assembler, _ result: Int32) {
    a.store(.state(StateOffset.rip), .r13)
    VectorThunks.store(&a, offset: 0)
    storeRegisters(&a, 0)
    a.move(.rax, immediate: UInt64(result))
  }

  /// From RSP in translated code to the state, which Swift code has its stack below.
  private static let belowState = Int32(Place.stateBias)

  /// RSP is 8 below the state here: the return address, or nothing.
  private static func emitHandler(_ a: inout Assembler, _ leave: Label) {
    let offset = 8 + Place.stateBias
    VectorThunks.store(&a, offset: offset)
    storeRegisters(&a, offset)
    a.lea(.rsp, .memory(.rsp, -8))
    a.lea(.rdi, .memory(.rsp, 16))
    a.move(.rsi, .r14)
    a.move(.rax, immediate: UInt64(UInt(bitPattern: unsafeBitCast(runHandler, to: Int.self))))
    a.call(.rax)
    a.lea(.rsp, .memory(.rsp, 8))
    a.test32(.rax)
    let done = a.label()
    a.jump(if: 4, done)
    a.lea(.rsp, .memory(.rsp, 8 + belowState))
    a.arithmetic(.cmp, .register(.rax), immediate: NativeState.goOn, wide: false)
    a.jump(if: BlockTranslation.notEqual, leave)
    a.load(.r15, .state(StateOffset.temporary0))
    loadRegisters(&a, 0)
    a.jump(.r15)
    a.bind(done)
    loadRegisters(&a, offset)
    a.pop(.r15)
    a.lea(.rsp, .memory(.rsp, belowState))
    a.push(.r15)
    a.ret()
  }

  private static func loadRegisters(_ a: inout Assembler, _ offset: Int) {
    for guest in RegisterMap.mapped {
      guard let host = RegisterMap.host(guest) else { continue }
      a.load(host, .state(Int(guest) * 8 + offset))
    }
  }

  private static func storeRegisters(_ a: inout Assembler, _ offset: Int) {
    for guest in RegisterMap.mapped {
      guard let host = RegisterMap.host(guest) else { continue }
      a.store(.state(Int(guest) * 8 + offset), host)
    }
  }

  /// To the code in R15, which knows its linear page. Clobbers flags.
  func enterLookedUp(_ a: inout Assembler) {
    if counts { a.arithmetic(.add, .state(StateOffset.lookups), immediate: 1) }
    a.jump(.r15)
  }

  /// R15 = what leads to the translation of the block at linear address R13, or a jump to `miss`,
  /// also where something is requested (the table is then the empty one). Clobbers R14 and flags.
  ///
  /// - Parameter offset: of the state from RSP.
  func lookUp(_ a: inout Assembler, _ miss: Label, offset: Int = 0) {
    a.multiply32(.r14, .r13, Int32(bitPattern: NativeJumps.factor))
    a.shiftRight(.r14, NativeJumps.shift)
    a.arithmetic(
      .and, .register(.r14), immediate: Int32(bitPattern: NativeJumps.offsetMask), wide: false)
    a.arithmetic(.add, .r14, .state(StateOffset.jumps + offset))
    a.arithmetic(.cmp, .r13, .memory(.r14, Int32(StateOffset.jumpLinear)))
    a.jump(if: BlockTranslation.notEqual, miss)
    a.load(.r15, .state(StateOffset.blockContext + offset))
    a.arithmetic(.cmp, .r15, .memory(.r14, Int32(StateOffset.jumpContext)))
    a.jump(if: BlockTranslation.notEqual, miss)
    a.load(.r15, .memory(.r14, Int32(StateOffset.jumpCode)))
  }
}
