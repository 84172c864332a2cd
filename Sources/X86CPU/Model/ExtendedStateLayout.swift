// SPDX-License-Identifier: Apache-2.0
//
// The XSAVE area of this processor: the host's layout of the offered components, so that the host's
// instructions work on it. PKRU, which the software MMU implements, follows the others if the host
// has no PKRU.

import X86

package struct ExtendedStateComponent: Sendable {
  /// Bit number in XCR0.
  package var number: Int
  /// In bytes, in the standard format.
  package var offset: UInt32
  package var size: UInt32
  /// In the compacted format the component starts at a multiple of 64.
  package var isAligned: Bool
}

package enum ExtendedStateLayout {
  /// The legacy area and the XSAVE header.
  package static let headerEnd: UInt32 = 576

  /// Components above SSE, by number.
  package static let components: [ExtendedStateComponent] = {
    let host = HostCPUID.leaf(0xD).eax
    var list: [ExtendedStateComponent] = []
    for number in wanted where host & 1 << UInt32(number) != 0 {
      let leaf = HostCPUID.leaf(0xD, UInt32(number))
      list.append(
        ExtendedStateComponent(
          number: number, offset: leaf.ebx, size: leaf.eax, isAligned: leaf.ecx & 2 != 0))
    }
    if !list.contains(where: { $0.number == pkru }) {
      let end = list.map { $0.offset + $0.size }.max() ?? headerEnd
      list.append(
        ExtendedStateComponent(
          number: pkru, offset: (end + 63) & ~63, size: 8, isAligned: false))
    }
    return list
  }()

  private static let pkru = 9

  /// AVX, and AVX-512's three if the processor offers it.
  private static var wanted: [Int] {
    var numbers: [Int] = []
    if CPUIDModel.offers(named: "avx") { numbers.append(2) }
    if CPUIDModel.offers(named: "avx512f") { numbers += [5, 6, 7] }
    return numbers + [pkru]
  }

  /// All valid bits of XCR0.
  package static let supported: UInt64 = components.reduce(3) { $0 | 1 << UInt64($1.number) }

  /// Size of the area in the standard format with the components of `mask`.
  package static func standardSize(_ mask: UInt64) -> UInt32 {
    components.filter { mask & 1 << UInt64($0.number) != 0 }
      .map { $0.offset + $0.size }.max() ?? headerEnd
  }

  /// Size of the area in the compacted format with the components of `mask`.
  package static func compactedSize(_ mask: UInt64) -> UInt32 {
    var size = headerEnd
    for component in components where mask & 1 << UInt64(component.number) != 0 {
      if component.isAligned { size = (size + 63) & ~63 }
      size += component.size
    }
    return size
  }

  /// Leaf 0xD; the sizes in EBX are for all components in the mask.
  package static func leaf(_ subleaf: UInt32, xcr0: UInt64 = supported) -> CPUIDLeaf {
    switch subleaf {
    case 0:
      return CPUIDLeaf(
        eax: UInt32(truncatingIfNeeded: supported), ebx: standardSize(xcr0),
        ecx: standardSize(supported), edx: UInt32(truncatingIfNeeded: supported >> 32))
    case 1:
      return CPUIDLeaf(eax: CPUIDModel.word(.leafD_1EAX), ebx: compactedSize(xcr0))
    default:
      guard let component = components.first(where: { $0.number == Int(subleaf) }) else {
        return CPUIDLeaf()
      }
      return CPUIDLeaf(
        eax: component.size, ebx: component.offset, ecx: component.isAligned ? 2 : 0)
    }
  }
}
