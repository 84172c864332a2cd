// SPDX-License-Identifier: Apache-2.0
//
// The elements of a gather or scatter: which are selected, where each of them is, and which of them
// are done in a state that a fault has left (SDM volume 2, VGATHERDPS, VPSCATTERDD).

import X86
import X86CPU
import X86Decoder

struct ElementAccesses {
  struct Element {
    var number: Int
    var access: MemoryAccess
  }

  let isScatter: Bool
  /// Selected ones, from the lowest.
  private(set) var all: [Element] = []
  private let instruction: Instruction
  private let size: Int
  private let count: Int
  private let data: Int
  /// VEX's mask register, or EVEX's.
  private let mask: Int
  private let isEVEX: Bool
  private let before: UnsafeRawPointer

  init(_ i: Instruction, _ r: Registers, _ vectors: UnsafePointer<VectorState>) {
    instruction = i
    isEVEX = i.prefixes.contains(.evex)
    isScatter = i.operands[0].kind == .memory
    size = i.encoding.vexW ? 8 : 4
    count = Int(i.encoding.vectorLength) / max(size, i.indexElementSize)
    data = Int(i.operands[isScatter ? 1 : 0].number)
    mask = Int(isEVEX ? i.encoding.evexMask : i.encoding.vvvv)
    before = UnsafeRawPointer(vectors)
    for number in 0..<count where isSelected(number, before) {
      let place = Int(i.index) * 64 + number * i.indexElementSize
      let index =
        i.indexElementSize == 8
        ? before.load(fromByteOffset: place, as: Int64.self)
        : Int64(before.load(fromByteOffset: place, as: Int32.self))
      let base = Footprint.segmentBase(i, r)
      let start = Footprint.address(i, r, i.memoryIndex ?? 0) &- base
      let offset = start &+ UInt64(bitPattern: index) &<< UInt64(i.scale)
      let access = MemoryAccess(
        address: Footprint.masked(offset, i) &+ base, size: UInt64(size), writes: isScatter,
        vectors: MemoryAccess.vectors(i), hasParts: true)
      all.append(Element(number: number, access: access))
    }
  }

  /// Vector registers that may change.
  var registers: [Int] { isScatter ? [] : isEVEX ? [data] : [data, mask] }

  private func isSelected(_ number: Int, _ state: UnsafeRawPointer) -> Bool {
    if isEVEX {
      let bits = state.load(fromByteOffset: Comparison.opmask + mask * 8, as: UInt64.self)
      return bits >> UInt64(number) & 1 != 0
    }
    let last = mask * 64 + number * size + size - 1
    return state.load(fromByteOffset: last, as: UInt8.self) & 0x80 != 0
  }

  /// The elements that are done; nil where the state is none that this fault may leave.
  func done(_ state: UnsafePointer<VectorState>, _ fault: Fault, onHost: Bool) -> Set<Int>? {
    let after = UnsafeRawPointer(state)
    guard hasAllowedMask(after) else { return nil }
    let missing = all.filter { isSelected($0.number, after) }
    // All below the one that faults are done.
    guard let first = missing.first, first.access.permits(fault, onHost: onHost) else { return nil }
    return Set(all.map(\.number)).subtracting(missing.map(\.number))
  }

  private func hasAllowedMask(_ after: UnsafeRawPointer) -> Bool {
    if isEVEX {
      return (0..<8).allSatisfy { n in
        let place = Comparison.opmask + n * 8
        let old = before.load(fromByteOffset: place, as: UInt64.self)
        let new = after.load(fromByteOffset: place, as: UInt64.self)
        return n == mask ? new & ~old == 0 : new == old
      }
    }
    // The manual widens elements above those that are gathered, too.
    return (0..<64 / size).allSatisfy { number in
      let new = bytes(after, mask, number)
      let isWidened = isSelected(number, before) && new.allSatisfy { $0 == 0xFF }
      return isWidened || isOldOrZero(new, mask, number)
    }
  }

  private func isOldOrZero(_ new: [UInt8], _ register: Int, _ number: Int) -> Bool {
    new == bytes(before, register, number) || new.allSatisfy { $0 == 0 }
  }

  /// Whether elements of the destination are what memory has where they are done, and else as
  /// before.
  func hasLoaded(
    _ state: UnsafePointer<VectorState>, _ done: Set<Int>, _ load: (UInt64, UInt64) -> UInt64?
  ) -> Bool {
    let after = UnsafeRawPointer(state)
    return (count..<64 / size).allSatisfy { isOldOrZero(bytes(after, data, $0), data, $0) }
      && (0..<count).allSatisfy { number in
        let new = bytes(after, data, number)
        guard done.contains(number), let element = all.first(where: { $0.number == number }) else {
          return new == bytes(before, data, number)
        }
        let value = load(element.access.address, UInt64(size))
        return value == new.reversed().reduce(0) { $0 << 8 | UInt64($1) }
      }
  }

  private func bytes(_ state: UnsafeRawPointer, _ register: Int, _ number: Int) -> [UInt8] {
    (0..<size).map {
      state.load(fromByteOffset: register * 64 + number * size + $0, as: UInt8.self)
    }
  }
}
