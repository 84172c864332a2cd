// SPDX-License-Identifier: Apache-2.0
//
// Memory for the analysis of a translation's instructions: arrays indexed by instruction. Each
// translation reuses it from the start, so that translating allocates nothing and counts no
// references. Pointers into it (`BlockCode`, `AccessPlan`) are valid until the next translation.

import X86
import X86CPU
import X86Decoder

final class TranslationMemory {
  /// Instructions of the largest region, and of a block that turns out not to fit in.
  static let capacity = BlockCode.maximumInstructions + 64

  let instructions = UnsafeMutablePointer<Instruction>.allocate(capacity: capacity)
  let kinds = UnsafeMutablePointer<LoweringKind>.allocate(capacity: capacity)
  let effects = UnsafeMutablePointer<FlagEffect>.allocate(capacity: capacity)
  let liveAfter = UnsafeMutablePointer<FlagSet>.allocate(capacity: capacity)
  /// See `AccessPlan`.
  let groups = UnsafeMutablePointer<AccessGroup>.allocate(capacity: capacity)
  let group = UnsafeMutablePointer<Int>.allocate(capacity: capacity)
  let relative = UnsafeMutablePointer<Int64>.allocate(capacity: capacity)
  let keys = UnsafeMutablePointer<AccessPlan.Key?>.allocate(capacity: capacity)
  let looks = UnsafeMutablePointer<AccessPlan.Look>.allocate(capacity: capacity)
  let openGroups = UnsafeMutablePointer<AccessPlan.OpenGroup>.allocate(capacity: capacity)
  /// See `LoopAccess`.
  let loopPages = UnsafeMutablePointer<Int8>.allocate(capacity: capacity)
  /// The blocks, the first being that which is entered.
  let codes = UnsafeMutablePointer<BlockCode>.allocate(capacity: BlockCode.maximumBlocks)
  private(set) var codeCount = 0
  /// Bytes of a block as they are now.
  let bytes = UnsafeMutableRawPointer.allocate(byteCount: Int(Page.size), alignment: 16)
  private var used = 0

  deinit {
    instructions.deallocate()
    kinds.deallocate()
    effects.deallocate()
    liveAfter.deallocate()
    groups.deallocate()
    group.deallocate()
    relative.deallocate()
    keys.deallocate()
    looks.deallocate()
    openGroups.deallocate()
    loopPages.deallocate()
    codes.deallocate()
    bytes.deallocate()
  }

  /// The next translation begins.
  func removeAll() {
    used = 0
    codeCount = 0
  }

  /// The place of a block's first instruction; nil where there is no room for so many.
  func reserve(_ count: Int) -> Int? {
    guard count <= Self.capacity - used else { return nil }
    defer { used += count }
    return used
  }

  /// Adds a block to the translation; false where it cannot be translated, or no more fit.
  func append(_ block: BlockPointer, host: HostFeatures) -> Bool {
    guard codeCount < BlockCode.maximumBlocks else { return false }
    let before = used
    guard let code = BlockCode(block, host: host, memory: self) else {
      used = before
      return false
    }
    (codes + codeCount).initialize(to: code)
    codeCount += 1
    return true
  }
}
