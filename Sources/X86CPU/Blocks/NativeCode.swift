// SPDX-License-Identifier: Apache-2.0
//
// What the run loop and a translator of hot blocks agree on. The translator itself is X86JIT; this
// module knows only how its code is entered and left.
//
// - The run loop counts `Block.heat` down and offers the block to `PhysicalCPU.translator`, which
//   sets `Block.native`. Dropping a block clears it.
// - Translated code runs with the host's stack pointer at the CPUState, so that its fields are
//   [rsp + offset]; the stack for helpers is below it (`NativeStack`).
// - It is entered with every register in the state and the arithmetic flags in `hostFlags`, and
//   left the same way with `rip` set. What it returns is a `Step`, with `flagsInImage` where the
//   flags are in `hostFlags` instead of `flagResult` and `flagAux`.
// - It is left in bounded time after `CPUState.request` becomes other than 0, and at once when its
//   own block is dropped. `slow` is 0 whenever it runs.

import Glibc
import Host
import Synchronization
import SystemPackage
import X86

/// Translates blocks for one physical CPU.
package protocol BlockTranslator: AnyObject {
  /// Sets `native` of the block, or leaves it alone. Called outside translated code only.
  func translate(_ block: BlockPointer)
  /// Sets `native` of a new block if it is known how, or leaves it alone. It may be called below
  /// translated code.
  ///
  /// - Parameters:
  ///   - page: the linear page that the block is in.
  ///   - bytes: what it was decoded from, and what follows that in its page.
  func recall(_ block: BlockPointer, page: UInt64, bytes: UnsafeRawBufferPointer)
  /// Code that sets `CPUState.codePage` to a linear page and goes on with the block's
  /// translation; 0 where there is no room for it.
  func entry(of block: BlockPointer, page: UInt64) -> UInt
  /// A block is dropped whose translation is `native`: whoever still comes there, by a way that is
  /// remembered, goes on with what the page holds now.
  func retire(_ block: BlockPointer)
  /// Gives a hot block better code, or leaves it alone.
  func optimize(_ block: BlockPointer)
  /// Makes the state whole where a handler that translated code called will not return.
  ///
  /// - Parameter information: `NativeState.callInformation`.
  func leaveHandler(_ information: UInt32)
}

/// The part of the CPU's state that is translated code's own.
package struct NativeState {
  /// The host's stack pointer outside.
  package var hostStack: UInt64 = 0
  /// See VectorReadiness.
  package var vectorReady: UInt32 = 0
  /// Data segments of 4 GiB that can be written, as bits by number; of 32-bit code.
  package var wholeSegments: UInt8 = 0
  /// The guest's x87 instruction and data pointers and opcode while its state is in the host's
  /// unit.
  package var x87Instruction: UInt64 = 0
  package var x87Data: UInt64 = 0
  package var x87Opcode: UInt64 = 0
  /// MXCSR as the program has it.
  package var hostMXCSR: UInt32 = MXCSR.initial
  /// What the destination of a flag recipe's instruction held before.
  package var flagSource: UInt64 = 0
  /// Temporaries of one instruction.
  package var temporary0: UInt64 = 0
  package var temporary1: UInt64 = 0
  /// The micro-op that left with `Step.fault`.
  package var faultingOp: MicroOpPointer?
  /// `NativeJumps`, whatever is requested.
  package var jumpTable: UInt64 = 0
  /// `CPUState.blockContext` at CPL 3 and below, as they are now.
  package var userContext: UInt64 = 0
  package var supervisorContext: UInt64 = 0
  /// The upper halves of the windows' linear addresses, if code that runs now may use them, and if
  /// code at CPL 3 might (`LinearWindow`).
  package var windowHigh = WindowSet.none
  package var userWindow = WindowSet.none
  /// Keeps what follows away from the fields that every access looks at. A processor that forwards
  /// stores to loads by the low bits of addresses takes fields 2 KiB apart for one: it then waits
  /// at each look at the TLB, which made a system call of Linux take twice the time.
  private var distance = InlineArray<78, UInt64>(repeating: 0)
  /// Host addresses of groups of accesses in the block that runs.
  package var groupAddresses = InlineArray<16, UInt64>(repeating: 0)
  package static let groupCount = 16
  /// Pages that accesses of loops were last found in: host address, what to add to linear ones, and
  /// the offset that an access must stay below, as of the stack's page. A translation forgets those
  /// that it uses where it is entered. Each has its words in one cache line: see StateLayoutTests.
  package var accessPages = InlineArray<64, UInt64>(repeating: 0)
  package static let accessPageCount = 16
  package static let accessPageStride = 32
  /// Of rounds without looks: all ones if their pages are known; and what takes the place of their
  /// bases behind the last round.
  package var roundsMask: UInt64 = 0
  package var harmlessBases = InlineArray<4, UInt64>(repeating: 0)
  /// Guest registers, by number, whose host registers are lent to rounds: calls of translated code
  /// have their return addresses where `gpr` has these.
  package var lentRegisters = InlineArray<12, UInt64>(repeating: 0)
  /// An address that leads nowhere, nor does any within 2 GiB of it: in the middle of what is
  /// between programs and shared libraries in an address space of Linux.
  package var harmless: UInt64 = 0x6000_0000_0000
  /// From a base to what takes its place: out of what the program has mapped.
  package static let harmlessDistance: UInt64 = 0x4000_0000_0000
  package var verification = AccessVerification()
  /// Enters code: (state, address) -> step.
  package var enter: (@convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Int32)?
  /// Whether times are taken at the switches between tiers.
  package var isMeasured = false
  package var counts = TierCounts()
  /// Where in the code guests' accesses are.
  package var faultSites = NativeFaultSites()
  /// How often each mnemonic was left to its handler: the translator's array.
  package var handlerCounts: UnsafeMutablePointer<UInt64>?
  /// A handler runs that translated code has called, with what the translator knows of the call.
  package var isCalling = false
  package var callInformation: UInt32 = 0
  /// A search runs for translated code: the flags are in `hostFlags`.
  package var isSearching = false
  /// What translated code leaves to handlers, by number: the translator's array.
  package var handlerSites: UnsafeMutablePointer<NativeHandlerSite>?
  package var windows = WindowSet()

  /// `stackLimit` of a page that is known.
  package static let stackLimit: UInt64 = 4096 - 8 + 1

  /// Bits of what translated code returns besides the step: the flags are in `hostFlags`; the block
  /// at RIP must be interpreted.
  package static let flagsInImage: Int32 = 0x100
  package static let interpret: Int32 = 0x200
  /// What a handler's caller returns to go on with the code at `temporary0`.
  package static let goOn: Int32 = 0x400
  /// A VM exit is recorded.
  package static let exited: Int32 = 0x800
  /// The block at RIP has been entered so often that it is worth translating with those after it.
  package static let hot: Int32 = 0x1000

  /// Counters of entries, below 0 where a block is hot: 32 bits each, numbered as translations are
  /// made, so that those of a program's part lie together. They lie behind the vector state. Where
  /// there are more translations than counters some share one and are hot the sooner.
  package static let heatCount = 1 << 18
}

/// An instruction that translated code leaves to its handler.
package struct NativeHandlerSite {
  package var op: MicroOpPointer
  /// Where to go on in place of behind the call; or 0.
  package var back: UInt64
  /// The translator's.
  package var information: UInt32

  package init(op: MicroOpPointer, back: UInt64, information: UInt32) {
    self.op = op
    self.back = back
    self.information = information
  }
}

/// How a guest's code was run. Times are the host's time-stamp counter and taken only where
/// `isMeasured` says so; `translations` and `lookups` are counted by code that was made to count.
package struct TierCounts: Sendable {
  /// Blocks begun in translated code, and how many of them from the run loop, through the table of
  /// jumps, and by a search below translated code where the table had none; all others came by a
  /// jump or by falling through. A loop's rounds without looks (`LoopRounds`) are one.
  package var translations: UInt64 = 0
  package var entries: UInt64 = 0
  package var lookups: UInt64 = 0
  package var searches: UInt64 = 0
  /// Ticks from VM entries to VM exits, in translated code (its handlers included), and
  /// translating.
  package var guestTicks: UInt64 = 0
  package var translatedTicks: UInt64 = 0
  package var translatorTicks: UInt64 = 0

  package init() {}

  package mutating func add(_ other: TierCounts) {
    translations &+= other.translations
    entries &+= other.entries
    lookups &+= other.lookups
    searches &+= other.searches
    guestTicks &+= other.guestTicks
    translatedTicks &+= other.translatedTicks
    translatorTicks &+= other.translatorTicks
  }
}

extension CPU {
  /// The arithmetic flags as `hostFlags` has them.
  @inline(__always) package var flagImage: UInt64 {
    get {
      let flags = arithmeticFlags
      return (flags & 0xD5) << 8 | (flags >> 11) & 1
    }
    nonmutating set { arithmeticFlags = (newValue >> 8) & 0xD5 | (newValue & 1) << 11 }
  }

  /// Runs a translated block and those that follow it. False where a VM exit is recorded.
  @inline(never) func runNative(_ block: BlockPointer) -> Bool {
    let state = s
    guard let enter = state.pointee.native.enter,
      let code = UnsafeMutableRawPointer(bitPattern: block.pointee.native)
    else { return true }
    enterJump(to: block, at: state.pointee.rip)
    state.pointee.codePage = state.pointee.rip & Page.mask
    state.pointee.hostFlags = flagImage
    updateVectorReadiness()
    state.pointee.native.counts.entries &+= 1
    let start = state.pointee.native.isMeasured ? HostTSC.read() : 0
    let result = enter(raw, code)
    if start != 0 {
      state.pointee.native.counts.translatedTicks &+= HostTSC.read() &- start
    }
    if result & NativeState.exited != 0 { return false }
    if result & NativeState.flagsInImage != 0 { flagImage = state.pointee.hostFlags }
    let step = result & 0xFF
    if step == Step.branch {
      if result & NativeState.hot != 0 { return optimizeHotBlock() }
      guard result & NativeState.interpret != 0, let next = try? self.block(at: codeLinear) else {
        return true
      }
      return interpret(next)
    }
    guard let op = state.pointee.native.faultingOp else { return processEvents() }
    return finish(step, op)
  }
}

extension CPU {
  /// The translation of the block at RIP, entered into the table of ways and ready to be run; 0
  /// where there is none, or something else has to be looked at first. Called below translated
  /// code.
  package func nativeSuccessor() -> UInt {
    let state = s
    if state.requests != 0 || state.pointee.slow != 0 || state.pointee.activity != 0 {
      return 0
    }
    let linear = codeLinear
    guard let block = translatedBlock(at: linear) ?? (try? block(at: linear)),
      block.pointee.native != 0
    else { return 0 }
    enterJump(to: block, at: linear)
    state.pointee.codePage = linear & Page.mask
    state.pointee.native.counts.searches &+= 1
    return block.pointee.native
  }

  /// Lets translated code find a block's translation at a linear address.
  @inline(__always) private func enterJump(to block: BlockPointer, at linear: UInt64) {
    let page = linear & Page.mask
    if block.pointee.nativePage != page || block.pointee.nativeEntry == 0 {
      block.pointee.nativeEntry = owner.translator?.entry(of: block, page: page) ?? 0
      block.pointee.nativePage = page
      if block.pointee.nativeEntry == 0 { return }
    }
    NativeJumps(address: s.pointee.native.jumpTable).enter(
      linear: linear, context: s.pointee.blockContext, code: block.pointee.nativeEntry)
  }

  /// After an instruction of translated code that ended with `step` otherwise than by going on,
  /// flags being in `flagResult` and `flagAux`: takes its exception, and goes on in translated code
  /// if nothing else is to be looked at.
  ///
  /// - Returns: `NativeState.goOn` or `exited`, or the step to leave with.
  package func leaveHandler(_ step: Int32, _ op: MicroOpPointer) -> Int32 {
    let state = s
    switch step {
    case Step.branch: break
    case Step.reload:
      if mayHaveEvents { return step }
    case Step.fault:
      if !finish(step, op) { return NativeState.exited }
    default: return step
    }
    let code = nativeSuccessor()
    if code == 0 { return Step.branch }
    state.pointee.native.temporary0 = UInt64(code)
    state.pointee.hostFlags = flagImage
    updateVectorReadiness()
    return NativeState.goOn
  }

  /// The block at RIP was left as hot before its first instruction.
  @inline(never) private func optimizeHotBlock() -> Bool {
    if let block = try? block(at: codeLinear), block.pointee.native != 0 {
      owner.translator?.optimize(block)
    }
    return true
  }

  /// Where the heat counters begin.
  package static var heatOffset: Int {
    (CPU.vectorOffset + MemoryLayout<VectorState>.size + 63) & ~63
  }

  /// Offset of a counter from the state.
  package static func heatOffset(_ number: Int) -> Int {
    heatOffset + (number & (NativeState.heatCount - 1)) * MemoryLayout<Int32>.stride
  }
}

/// One way from a linear address to translated code.
package struct NativeJump {
  package var linear: UInt64
  /// `CPUState.blockContext`; never 0 for a way that exists.
  package var context: UInt64
  package var code: UInt
  /// Makes the stride a power of two.
  var padding: UInt64 = 0
}

/// The table in which translated code finds its successors, direct mapped by linear address. The
/// run loop enters what it is about to run. A way may outlive its translation, which then leads on
/// (`BlockTranslator.retire`); dropping all of them empties the table.
/// Sendable: its tables belong to whoever has the CPU; others exchange one word (RequestLine).
package struct NativeJumps: @unchecked Sendable {
  /// An entry's offset in bytes is the low half of the linear address times `factor`, shifted right
  /// and masked: its upper bits depend on all of the address.
  @inlinable package static var factor: UInt32 { 0x9E37_79B1 }
  @inlinable package static var shift: UInt8 { 12 }
  @inlinable package static var offsetMask: UInt32 { 0xF_FFE0 }
  private static let count = (Int(offsetMask) + 32) / MemoryLayout<NativeJump>.stride

  /// The table that leads nowhere.
  static let none = NativeJumps()

  let base: UnsafeMutablePointer<NativeJump>

  /// Zeroes lead nowhere: no context is 0.
  init(_ tables: TableMemory) throws(Errno) {
    base = try tables.take(Self.count, of: NativeJump.self)
  }

  /// Memory that is 0 and not there until it is touched.
  private init() {
    base = calloc(Self.count, MemoryLayout<NativeJump>.stride).unsafelyUnwrapped
      .bindMemory(to: NativeJump.self, capacity: Self.count)
  }

  init(address: UInt64) {
    base = UnsafeMutablePointer(bitPattern: UInt(address)).unsafelyUnwrapped
  }

  var address: UInt64 { UInt64(UInt(bitPattern: base)) }

  @inline(__always) func enter(linear: UInt64, context: UInt64, code: UInt) {
    let hash = UInt32(truncatingIfNeeded: linear) &* Self.factor
    let place = Int(hash >> Self.shift & Self.offsetMask)
    UnsafeMutableRawPointer(base).storeBytes(
      of: NativeJump(linear: linear, context: context, code: code), toByteOffset: place,
      as: NativeJump.self)
  }

  func empty() { memset(base, 0, Self.count * MemoryLayout<NativeJump>.stride) }
}

/// How other threads ask a CPU to leave guest code: the bits of `CPUState.request`, and translated
/// code's table, which is exchanged for the empty one so that its next look-up fails.
/// Sendable: every access to what it points to is atomic, and that lives as long as the CPU.
struct RequestLine: @unchecked Sendable {
  let bits: UnsafeMutablePointer<Atomic<UInt64>>
  let jumps: UnsafeMutablePointer<Atomic<UInt64>>
  let table: UInt64
  /// `NativeJumps.none`: signal handlers raise requests, so nothing may be made then.
  private let nowhere: UInt64

  init(_ cpu: CPU, table: NativeJumps) {
    let offset = MemoryLayout<CPUState>.offset(of: \.request)!
    bits = (cpu.raw + offset).assumingMemoryBound(to: Atomic<UInt64>.self)
    let field = MemoryLayout<CPUState>.offset(of: \.jumps)!
    jumps = (cpu.raw + field).assumingMemoryBound(to: Atomic<UInt64>.self)
    self.table = table.address
    nowhere = NativeJumps.none.address
    cpu.s.pointee.native.jumpTable = table.address
    jumps.pointee.store(table.address, ordering: .sequentiallyConsistent)
  }

  func raise(_ requests: UInt64) {
    bits.pointee.bitwiseOr(requests, ordering: .sequentiallyConsistent)
    jumps.pointee.store(nowhere, ordering: .sequentiallyConsistent)
  }

  /// By the CPU's own thread: clears bits and returns those that were set.
  func take(_ requests: UInt64) -> UInt64 {
    let old = bits.pointee.bitwiseAnd(~requests, ordering: .sequentiallyConsistent).oldValue
    if old & ~requests == 0 {
      jumps.pointee.store(table, ordering: .sequentiallyConsistent)
      // Someone may have raised a bit between the two.
      if bits.pointee.load(ordering: .sequentiallyConsistent) != 0 {
        jumps.pointee.store(nowhere, ordering: .sequentiallyConsistent)
      }
    }
    return old & requests
  }
}

/// Memory of a CPUState with room for a stack below it, and guards on both sides that nothing can
/// access: of a stack that is too deep, and of an offset that is wrong.
enum NativeStack {
  private static let size = 256 << 10

  static func allocate(stateSize: Int) throws(Errno) -> UnsafeMutableRawPointer {
    let whole = wholeSize(stateSize)
    let map = mmap(nil, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    guard let map, map != MAP_FAILED else { throw Errno(rawValue: errno) }
    let inside = whole - 2 * Mapping.guardSize
    guard mprotect(map + Mapping.guardSize, inside, PROT_READ | PROT_WRITE) == 0 else {
      let error = Errno(rawValue: errno)
      munmap(map, whole)
      throw error
    }
    return map + Mapping.guardSize + size
  }

  private static func wholeSize(_ stateSize: Int) -> Int {
    size + ((stateSize + 4095) & ~4095) + 2 * Mapping.guardSize
  }

  static func deallocate(state: UnsafeMutableRawPointer, stateSize: Int) {
    munmap(state - size - Mapping.guardSize, wholeSize(stateSize))
  }
}
