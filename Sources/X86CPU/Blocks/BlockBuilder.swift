// SPDX-License-Identifier: Apache-2.0
//
// From RIP to a block: translation of the code page, decoding, lowering.

import Host
import X86
import X86Decoder

/// A linear page with executable code, and its host page.
package struct ExecutePage {
  /// Linear page with the block context's low bits, or all ones.
  var tag: UInt64
  var context: UInt64
  var host: UInt64

  static let invalid = ExecutePage(tag: .max, context: .max, host: 0)
}

extension CPU {
  /// The block at RIP, built if necessary.
  ///
  /// - Throws: the fault of fetching or decoding the first instruction.
  @inline(__always) func block(at linear: UInt64) throws(GuestException) -> BlockPointer {
    let slot = s.pointee.jumpCache + Int((linear ^ linear >> 12) & BlockCache.jumpCacheMask)
    if slot.pointee.linear == linear, slot.pointee.context == s.pointee.blockContext,
      let block = slot.pointee.block, block.pointee.isValid
    {
      return block
    }
    return try findBlock(at: linear, slot)
  }

  /// The block at a linear address if it has a translation and no event is pending. Bypasses the
  /// jump cache: searches for translated code mostly miss there, and would only touch more memory.
  @inline(__always) func translatedBlock(at linear: UInt64) -> BlockPointer? {
    guard let host = knownExecuteAddress(linear), let block = knownBlock(host),
      block.pointee.native != 0
    else { return nil }
    return block
  }

  /// The block at a host address if it is cached, within one page, and no undetected writes are
  /// possible.
  @inline(__always) private func knownBlock(_ host: UInt64) -> BlockPointer? {
    let modeKey = s.pointee.modeKey
    let block = s.pointee.blocks._withUnsafeGuaranteedRef {
      $0.hasCopies ? nil : $0.find(host: host, modeKey: modeKey)
    }
    guard let block, block.pointee.secondPage == 0 else { return nil }
    return block
  }

  @inline(never) private func findBlock(
    at linear: UInt64, _ slot: UnsafeMutablePointer<JumpCacheEntry>
  ) throws(GuestException) -> BlockPointer {
    let host = try executeAddress(linear)
    if let block = knownBlock(host) {
      slot.pointee = JumpCacheEntry(
        linear: linear, context: s.pointee.blockContext, block: block)
      return block
    }
    return try findBlock(at: linear, host, slot)
  }

  @inline(never) private func findBlock(
    at linear: UInt64, _ host: UInt64, _ slot: UnsafeMutablePointer<JumpCacheEntry>
  ) throws(GuestException) -> BlockPointer {
    let owner = owner
    let comparison = owner.comparison
    owner.compareCode(host & Page.mask)
    let modeKey = s.pointee.modeKey
    var block = s.pointee.blocks._withUnsafeGuaranteedRef { $0.find(host: host, modeKey: modeKey) }
    if let found = block, found.pointee.secondPage != 0 {
      let second = try executeAddress(nextLinear(linear & Page.mask, Page.size)) & Page.mask
      owner.compareCode(second)
      if second != found.pointee.secondPage || !found.pointee.isValid {
        owner.blocks.drop(page: found.pointee.host & Page.mask)
        block = nil
      }
    }
    let result: BlockPointer
    if let block { result = block } else { result = try buildBlock(linear, host) }
    // A comparison may have begun while the block was built.
    if comparison == owner.comparison {
      slot.pointee = JumpCacheEntry(
        linear: linear, context: s.pointee.blockContext, block: result)
    }
    return result
  }

  private func nextLinear(_ linear: UInt64, _ offset: UInt64) -> UInt64 {
    is64Bit ? linear &+ offset : (linear &+ offset) & 0xFFFF_FFFF
  }

  @inline(__always) private func executeSlot(
    _ linear: UInt64
  ) -> UnsafeMutablePointer<ExecutePage> {
    s.pointee.executePages + Int((linear >> Page.shift) & PhysicalCPU.executePagesMask)
  }

  /// Host address of code at a linear address, if code of its page was executed before.
  @inline(__always) private func knownExecuteAddress(_ linear: UInt64) -> UInt64? {
    let slot = executeSlot(linear)
    guard slot.pointee.tag == linear & Page.mask,
      slot.pointee.context == s.pointee.blockContext
    else { return nil }
    return slot.pointee.host | linear & Page.offsetMask
  }

  /// Host address of code at a linear address.
  func executeAddress(_ linear: UInt64) throws(GuestException) -> UInt64 {
    if let known = knownExecuteAddress(linear) { return known }
    let page = linear & Page.mask
    let slot = executeSlot(linear)
    if is64Bit && !isCanonical(linear) { throw .generalProtection }
    let bank = s.pointee.cpl == 3 ? TLB.user : TLB.supervisor
    let translation = try translate(linear, .execute, bank: bank)
    noteExecuted(linear, translation)
    guard let physical = physicalPage(translation.physical, .execute, isUser: translation.user)
    else {
      throw eptViolation(
        translation.physical | linear & Page.offsetMask, .execute,
        .linear(linear, translation))
    }
    if physical.host == s.pointee.virtualAPIC.accessPage {
      throw apicAccessExit(linear, .fetch, linear)
    }
    slot.pointee = ExecutePage(
      tag: page, context: s.pointee.blockContext, host: physical.host)
    return physical.host | linear & Page.offsetMask
  }

  private func buildBlock(_ linear: UInt64, _ host: UInt64) throws(GuestException) -> BlockPointer {
    let owner = owner
    let cache = owner.blocks
    cache.makeRoom()
    let page = host & Page.mask
    owner.markCode(page)
    owner.keepCopy(page)
    let mode = CodeMode(rawValue: s.pointee.codeMode) ?? .bits64
    let ops = cache.nextOps
    let room = Int(Page.size - host & Page.offsetMask)
    let bytes = try snapshotOfCode(host, room)
    var offset = 0
    var count = 0
    var ended = false
    var endsInBranch = false
    var watched: Instruction?
    while !ended && count < BlockCache.maximumInstructions && offset < room {
      let rest = UnsafeRawBufferPointer(start: bytes + offset, count: min(16, room - offset))
      let instruction: Instruction
      do throws(DecodeError) {
        instruction = try Decoder.decode(rest, mode: mode)
      } catch {
        if count > 0 { break }
        if error == .truncated { return try buildCrossingBlock(linear, host, mode) }
        throw error == .tooLong ? .generalProtection : .invalidOpcode
      }
      lower(instruction, offset: UInt16(offset), into: ops + count)
      offset += Int(instruction.length)
      count += 1
      ended = !instruction.attributes.isDisjoint(with: [.branch, .serializes])
      endsInBranch = instruction.attributes.contains(.branch)
      if isWatched(instruction) {
        watched = instruction
        ended = true
      }
    }
    terminate(ops + count, offset)
    if let watched { BusLock.watch(watched, ops + (count - 1)) }
    let block = cache.add(
      Block(
        host: host, secondPage: 0, ops: ops, modeKey: s.pointee.modeKey, count: UInt16(count),
        length: UInt16(offset), isValid: true, endsInBranch: endsInBranch, nextInHash: -1,
        nextInPage: -1,
        signature: CodeSignature.of(UnsafeRawBufferPointer(start: bytes, count: offset))),
      opsUsed: count + 1)
    if let translator = owner.translator, watched == nil {
      translator.recall(
        block, page: linear & Page.mask,
        bytes: UnsafeRawBufferPointer(start: bytes, count: min(room, Self.longestBlock)))
    }
    return block
  }

  /// Bytes of the largest block.
  private static let longestBlock = BlockCache.maximumInstructions * 16

  /// Copies the bytes of the longest possible block; `room` of them are in the first page.
  private func snapshotOfCode(
    _ host: UInt64, _ room: Int
  ) throws(GuestException) -> UnsafeRawPointer {
    let buffer = owner.bounce
    try copyCode(from: host, to: buffer, count: min(room, Self.longestBlock))
    return UnsafeRawPointer(buffer)
  }

  /// Copies code for decoding. The caller holds references, so a fault on vanished memory must not
  /// abort it (`GuardedCall`).
  private func copyCode(
    from host: UInt64, to buffer: UnsafeMutableRawPointer, count: Int
  ) throws(GuestException) {
    let source = UnsafeRawPointer(bitPattern: UInt(host))
    if !GuardedCopy.copy(from: source, to: buffer, count: count) {
      throw owner.codeVanished(UInt(host))
    }
  }

  /// One instruction across a page boundary.
  private func buildCrossingBlock(
    _ linear: UInt64, _ host: UInt64, _ mode: CodeMode
  ) throws(GuestException) -> BlockPointer {
    let cache = owner.blocks
    let first = Int(Page.size - host & Page.offsetMask)
    let second = try executeAddress(nextLinear(linear & Page.mask, Page.size))
    let (page, secondPage) = (host & Page.mask, second & Page.mask)
    // While marking one page, this CPU may learn that the other was written.
    repeat {
      owner.markCode(page)
      owner.markCode(secondPage)
    } while !CodePages.shared.isReady(page)
    owner.keepCopy(page)
    owner.keepCopy(secondPage)
    var bytes = InlineArray<32, UInt8>(repeating: 0)
    let buffer = owner.bounce
    try copyCode(from: host, to: buffer, count: first)
    try copyCode(from: second, to: buffer + first, count: 15)
    for n in 0..<(first + 15) { bytes[n] = buffer.load(fromByteOffset: n, as: UInt8.self) }
    let instruction: Instruction
    do throws(DecodeError) {
      instruction = try unsafe withUnsafeBytes(of: &bytes) { buffer throws(DecodeError) in
        try Decoder.decode(UnsafeRawBufferPointer(rebasing: buffer[..<(first + 15)]), mode: mode)
      }
    } catch {
      throw error == .invalidOpcode ? .invalidOpcode : .generalProtection
    }
    let signature = withUnsafeBytes(of: &bytes) {
      CodeSignature.of(UnsafeRawBufferPointer(rebasing: $0[..<Int(instruction.length)]))
    }
    let ops = cache.nextOps
    lower(instruction, offset: 0, into: ops)
    terminate(ops + 1, Int(instruction.length))
    if isWatched(instruction) { BusLock.watch(instruction, ops) }
    return cache.add(
      Block(
        host: host, secondPage: second & Page.mask, ops: ops, modeKey: s.pointee.modeKey, count: 1,
        length: UInt16(instruction.length), isValid: true,
        endsInBranch: instruction.attributes.contains(.branch), nextInHash: -1, nextInPage: -1,
        signature: signature),
      opsUsed: 2)
  }

  private func lower(_ instruction: Instruction, offset: UInt16, into op: MicroOpPointer) {
    Lowering.lower(instruction, offset: offset, into: op, for: self)
  }

  private func isWatched(_ instruction: Instruction) -> Bool {
    s.pointee.modeKey & ModeKey.busLock != 0 && BusLock.locks(instruction)
  }

  private func terminate(_ op: MicroOpPointer, _ offset: Int) {
    let zero = (raw + CPU.zeroOffset).assumingMemoryBound(to: UInt64.self)
    op.initialize(
      to: MicroOp(
        handler: endOfBlock, dst: raw, src: raw, base: zero, index: zero, immediate: 0,
        displacement: 0, segmentBaseOffset: 0, offset: UInt16(offset), length: 0, scale: 0,
        addressFlags: 0, segment: 0, operandSize: 0, addressSize: 0, register0: 0, register1: 0))
  }
}
