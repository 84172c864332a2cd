// SPDX-License-Identifier: Apache-2.0
//
// The interface between the run loop and a translator of hot blocks. The translator itself is
// X86JIT; this module knows only how to enter and leave its code.
//
// - The run loop counts `Block.heat` down and then offers the block to `PhysicalCPU.translator`,
//   which sets `Block.native`. Dropping the block clears it.
// - Translated code runs with the host's RSP pointing at the CPUState: its fields are
//   [rsp + offset], and the stack for helpers is below it (`NativeStack`).
// - On entry and on exit all registers are in the state and the arithmetic flags in `hostFlags`; on
//   exit `rip` is set. The code returns a `Step`, with `flagsInImage` if the flags are in
//   `hostFlags` instead of `flagResult` and `flagAux`.
// - Translated code exits in bounded time after `CPUState.request` becomes nonzero, and at once
//   when its own block is dropped. `slow` is 0 whenever it runs.

import Glibc
import Host
import Synchronization
import SystemPackage
import X86

/// Translates blocks for one physical CPU.
package protocol BlockTranslator: AnyObject {
  /// Sets `native` of the block, or leaves it alone. Called outside translated code only.
  func translate(_ block: BlockPointer)
  /// Sets `native` of a new block if its translation is known, or leaves it alone. May be called
  /// below translated code.
  ///
  /// - Parameters:
  ///   - page: the linear page that the block is in.
  ///   - bytes: the bytes that it was decoded from, and the rest of its page.
  func recall(_ block: BlockPointer, page: UInt64, bytes: UnsafeRawBufferPointer)
  /// Code that sets `CPUState.codePage` to a linear page and jumps to the block's translation; 0 if
  /// there is no room for it.
  func entry(of block: BlockPointer, page: UInt64) -> UInt
  /// Drops a block with the translation `native`: remembered jumps to it execute what the page
  /// holds now.
  func retire(_ block: BlockPointer)
  /// Gives a hot block better code, or leaves it alone.
  func optimize(_ block: BlockPointer)
  /// Makes the state complete when a handler called by translated code will not return to it.
  ///
  /// - Parameter information: `NativeState.callInformation`.
  func leaveHandler(_ information: UInt32)
}

/// The part of the CPU's state that only translated code uses.
package struct NativeState {
  /// The host's stack pointer outside translated code.
  package var hostStack: UInt64 = 0
  /// See VectorReadiness.
  package var vectorReady: UInt32 = 0
  /// Writable data segments of 4 GiB, as bits by number; for 32-bit code.
  package var wholeSegments: UInt8 = 0
  /// The guest's x87 instruction and data pointers and opcode while its state is in the host's x87
  /// unit.
  package var x87Instruction: UInt64 = 0
  package var x87Data: UInt64 = 0
  package var x87Opcode: UInt64 = 0
  /// The program's own MXCSR.
  package var hostMXCSR: UInt32 = MXCSR.initial
  /// The old destination value of a flag recipe's instruction.
  package var flagSource: UInt64 = 0
  /// Temporaries of one instruction.
  package var temporary0: UInt64 = 0
  package var temporary1: UInt64 = 0
  /// The micro-op that exited with `Step.fault`.
  package var faultingOp: MicroOpPointer?
  /// `NativeJumps`, whether or not a request is pending.
  package var jumpTable: UInt64 = 0
  /// The current `CPUState.blockContext` at CPL 3 and below.
  package var userContext: UInt64 = 0
  package var supervisorContext: UInt64 = 0
  /// Padding between the fields below and those that every access reads. A processor that forwards
  /// stores to loads by the low address bits confuses fields 2 KiB apart: it then stalls at each
  /// TLB check, which made a system call of Linux take twice the time.
  private var distance = InlineArray<82, UInt64>(repeating: 0)
  /// Host addresses of the access groups in the running block.
  package var groupAddresses = InlineArray<16, UInt64>(repeating: 0)
  package static let groupCount = 16
  /// The last pages of accesses in loops: host address, distance from linear addresses, and the
  /// limit of an access's offset, as for the stack's page. A translation clears those that it uses
  /// when it is entered. Each is in one cache line: see StateLayoutTests.
  package var accessPages = InlineArray<64, UInt64>(repeating: 0)
  package static let accessPageCount = 16
  package static let accessPageStride = 32
  /// For loop rounds without checks: all ones if their pages are known; and the values that replace
  /// their bases after the last round.
  package var roundsMask: UInt64 = 0
  package var harmlessBases = InlineArray<4, UInt64>(repeating: 0)
  /// Guest registers, by number, whose host registers loop rounds have borrowed: during calls of
  /// translated code, `gpr` has return addresses in their places.
  package var lentRegisters = InlineArray<12, UInt64>(repeating: 0)
  /// An address with nothing mapped within 2 GiB of it: in the gap between programs and shared
  /// libraries in Linux's address spaces.
  package var harmless: UInt64 = 0x6000_0000_0000
  /// From a base to its replacement: outside all that the program has mapped.
  package static let harmlessDistance: UInt64 = 0x4000_0000_0000
  package var verification = AccessVerification()
  /// Enters code: (state, address) -> step.
  package var enter: (@convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Int32)?
  /// Whether switches between tiers are timed.
  package var isMeasured = false
  package var counts = TierCounts()
  /// The positions of guest accesses in the code.
  package var faultSites = NativeFaultSites()
  /// How often each mnemonic's handler was called: the translator's array.
  package var handlerCounts: UnsafeMutablePointer<UInt64>?
  /// A handler called by translated code is running; the translator's information on the call.
  package var isCalling = false
  package var callInformation: UInt32 = 0
  /// A search for translated code is running: the flags are in `hostFlags`.
  package var isSearching = false
  /// Translated code's handler calls, by number: the translator's array.
  package var handlerSites: UnsafeMutablePointer<NativeHandlerSite>?

  /// `stackLimit` of a known page.
  package static let stackLimit: UInt64 = 4096 - 8 + 1

  /// Bits that translated code returns besides the step: the flags are in `hostFlags`; the block at
  /// RIP must be interpreted.
  package static let flagsInImage: Int32 = 0x100
  package static let interpret: Int32 = 0x200
  /// A handler's caller returns this to continue at `temporary0`.
  package static let goOn: Int32 = 0x400
  /// A VM exit is recorded.
  package static let exited: Int32 = 0x800
  /// The block at RIP is hot: it is worth translating together with its successors.
  package static let hot: Int32 = 0x1000

  /// Entry counters of 32 bits, below 0 when a block is hot. Translations get them in the order in
  /// which they are made, so neighbours share cache lines. They follow the vector state. With more
  /// translations than counters, some share one and become hot sooner.
  package static let heatCount = 1 << 18
}

/// A handler call of translated code.
package struct NativeHandlerSite {
  package var op: MicroOpPointer
  /// The address to return to instead of behind the call; or 0.
  package var back: UInt64
  /// For the translator.
  package var information: UInt32

  package init(op: MicroOpPointer, back: UInt64, information: UInt32) {
    self.op = op
    self.back = back
    self.information = information
  }
}

/// How guest code was run. Times are TSC ticks of the host, taken only if `isMeasured` is set;
/// `translations` and `lookups` are counted by code that was translated for counting.
package struct TierCounts: Sendable {
  /// Blocks begun in translated code, and how many of them from the run loop, through the jump
  /// table, and by a search after a miss in the table; all others came by a jump or by falling
  /// through. A loop's rounds without checks (`LoopRounds`) count as one.
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
  /// The arithmetic flags in the format of `hostFlags`.
  @inline(__always) package var flagImage: UInt64 {
    get {
      let flags = arithmeticFlags
      return (flags & 0xD5) << 8 | (flags >> 11) & 1
    }
    nonmutating set { arithmeticFlags = (newValue >> 8) & 0xD5 | (newValue & 1) << 11 }
  }

  /// Runs a translated block and its successors. False if a VM exit is recorded.
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
  /// The translation of the block at RIP, ready to run and entered into the jump table; 0 if there
  /// is none or an event must be handled first. Called below translated code.
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

  /// Enters a block's translation into the jump table.
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

  /// After an instruction of translated code that ended with `step` instead of continuing, with
  /// flags in `flagResult` and `flagAux`: delivers its exception, and continues in translated code
  /// if nothing else is pending.
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

  /// Translated code exited because the block at RIP is hot, before its first instruction.
  @inline(never) private func optimizeHotBlock() -> Bool {
    if let block = try? block(at: codeLinear), block.pointee.native != 0 {
      owner.translator?.optimize(block)
    }
    return true
  }

  /// Offset of the heat counters from the state.
  package static var heatOffset: Int {
    (CPU.vectorOffset + MemoryLayout<VectorState>.size + 63) & ~63
  }

  /// Offset of a counter from the state.
  package static func heatOffset(_ number: Int) -> Int {
    heatOffset + (number & (NativeState.heatCount - 1)) * MemoryLayout<Int32>.stride
  }
}

/// A jump table's entry: from a linear address to translated code.
package struct NativeJump {
  package var linear: UInt64
  /// `CPUState.blockContext`; never 0 in a valid entry.
  package var context: UInt64
  package var code: UInt
  /// Makes the stride a power of two.
  var padding: UInt64 = 0
}

/// Translated code's table of successors, direct mapped by linear address. The run loop enters each
/// block that it runs. An entry may outlive its translation, which then leads to the current code
/// (`BlockTranslator.retire`); dropping all blocks empties the table.
/// Sendable: the CPU's owner alone uses its tables; others exchange one word (RequestLine).
package struct NativeJumps: @unchecked Sendable {
  /// An entry's offset in bytes is the low half of the linear address times `factor`, shifted right
  /// and masked: its upper bits depend on all of the address.
  @inlinable package static var factor: UInt32 { 0x9E37_79B1 }
  @inlinable package static var shift: UInt8 { 12 }
  @inlinable package static var offsetMask: UInt32 { 0xF_FFE0 }
  private static let count = (Int(offsetMask) + 32) / MemoryLayout<NativeJump>.stride

  /// The empty table.
  static let none = NativeJumps()

  let base: UnsafeMutablePointer<NativeJump>

  /// A zeroed entry never matches: no context is 0.
  init(_ tables: TableMemory) throws(Errno) {
    base = try tables.take(Self.count, of: NativeJump.self)
  }

  /// Zeroed memory, allocated only when touched.
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

/// How other threads make a CPU exit guest code: they set bits of `CPUState.request` and replace
/// translated code's jump table with the empty one, so that its next look-up misses.
/// Sendable: all accesses to its targets are atomic, and those live as long as the CPU.
struct RequestLine: @unchecked Sendable {
  let bits: UnsafeMutablePointer<Atomic<UInt64>>
  let jumps: UnsafeMutablePointer<Atomic<UInt64>>
  let table: UInt64
  /// `NativeJumps.none`: signal handlers raise requests, so this must not be created then.
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

  /// Called by the CPU's own thread: clears bits and returns those that were set.
  func take(_ requests: UInt64) -> UInt64 {
    let old = bits.pointee.bitwiseAnd(~requests, ordering: .sequentiallyConsistent).oldValue
    if old & ~requests == 0 {
      jumps.pointee.store(table, ordering: .sequentiallyConsistent)
      // Another thread may have raised a bit between the two.
      if bits.pointee.load(ordering: .sequentiallyConsistent) != 0 {
        jumps.pointee.store(nowhere, ordering: .sequentiallyConsistent)
      }
    }
    return old & requests
  }
}

/// Memory of a CPUState with a stack below it, and inaccessible guards on both sides: against stack
/// overflow and wrong offsets.
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
