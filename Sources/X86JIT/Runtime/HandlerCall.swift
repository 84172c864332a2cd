// SPDX-License-Identifier: Apache-2.0
//
// One instruction of translated code executed by its interpreter handler.

import X86
import X86CPU
import X86Decoder

/// What the call needs to know about the instruction besides its micro-op.
struct HandlerInformation {
  /// Bits 11:0 offset of the block in its page, 17:12 instructions of the block after this one, 18
  /// the handler needs the flags, 19 it may write them, 30:20 mnemonic, 31 the instruction is not
  /// lowered: it may change what translated code knows of the vector state.
  var rawValue: UInt32

  init(rawValue: UInt32) { self.rawValue = rawValue }

  init(
    blockOffset: Int, remaining: Int, reads: Bool, writes: Bool, mnemonic: Mnemonic,
    isHandler: Bool
  ) {
    rawValue =
      UInt32(truncatingIfNeeded: blockOffset) | UInt32(truncatingIfNeeded: remaining) << 12
      | (reads ? 1 << 18 : 0) | (writes ? 1 << 19 : 0) | UInt32(mnemonic.rawValue & 0x7FF) << 20
      | (isHandler ? 1 << 31 : 0)
  }

  var blockOffset: UInt64 { UInt64(rawValue & 0xFFF) }
  var remaining: UInt64 { UInt64(rawValue >> 12 & 0x3F) }
  var reads: Bool { rawValue & 1 << 18 != 0 }
  var writes: Bool { rawValue & 1 << 19 != 0 }
  var mnemonic: Int { Int(rawValue >> 20 & 0x7FF) }
  var isHandler: Bool { rawValue >> 31 != 0 }
}

typealias HandlerCall =
  @convention(c) (UnsafeMutableRawPointer, UInt32) -> Int32

/// Runs the handler of a site's micro-op; the registers are in the state. Returns 0 to go on behind
/// the call, `NativeState.goOn` to go on at `temporary0`, or what to leave with, the flags then
/// being in `flagResult` and `flagAux`.
let runHandler: HandlerCall = { state, number in
  let c = CPU(state)
  let native = c.s
  let site = native.pointee.native.handlerSites.unsafelyUnwrapped[Int(number)]
  let op = site.op
  let information = HandlerInformation(rawValue: site.information)
  native.pointee.native.handlerCounts?[information.mnemonic] &+= 1
  native.pointee.blockRIP = native.pointee.codePage &+ information.blockOffset
  if information.reads { c.flagImage = native.pointee.hostFlags }
  let handler = op.pointee.handler
  native.pointee.native.callInformation = information.rawValue
  native.pointee.native.isCalling = true
  native.pointee.running = op
  let step = handler(state, UnsafeMutableRawPointer(op))
  native.pointee.running = nil
  native.pointee.native.isCalling = false
  if step == Step.next {
    // A dropped block's micro-ops have another handler: what follows may be other code now.
    if unsafeBitCast(op.pointee.handler, to: Int.self) == unsafeBitCast(handler, to: Int.self) {
      if information.writes { native.pointee.hostFlags = c.flagImage }
      if information.isHandler { c.updateVectorReadiness() }
      if site.back == 0 { return 0 }
      native.pointee.native.temporary0 = site.back
      return NativeState.goOn
    }
    native.pointee.rip = c.nextRIP(op)
    // The instruction was in the shadow of an STI that was translated, if there is one.
    native.pointee.interruptibility &= ~Interruptibility.blockingBySTI
  }
  if !information.reads { c.flagImage = native.pointee.hostFlags }
  native.pointee.retired &-= information.remaining
  native.pointee.native.faultingOp = op
  return c.leaveHandler(step == Step.next ? Step.branch : step, op)
}

extension Translator {
  /// As after a handler that ended with `Step.fault`.
  package func leaveHandler(_ information: UInt32) {
    let information = HandlerInformation(rawValue: information)
    let cpu = processor.cpu
    if !information.reads { cpu.flagImage = cpu.s.pointee.hostFlags }
    cpu.s.pointee.retired &-= information.remaining &+ 1
  }
}

typealias SuccessorSearch = @convention(c) (UnsafeMutableRawPointer) -> UInt

/// The translation at RIP, or 0.
let findSuccessor: SuccessorSearch = { state in
  let cpu = CPU(state)
  cpu.s.pointee.native.isSearching = true
  let code = cpu.nativeSuccessor()
  cpu.s.pointee.native.isSearching = false
  return code
}
