// SPDX-License-Identifier: Apache-2.0
//
// A check of the translator, for tests: accesses without a TLB check of their own, because another
// access checks for them or their page is remembered, are compared with the TLB and, on a miss,
// with a page walk.

import X86

/// The result of such an access, and the outcome of comparisons.
package struct AccessVerification: Sendable {
  /// The access under comparison: its linear address, its host address, and its size with `write`
  /// above.
  package var linear: UInt64 = 0
  package var host: UInt64 = 0
  package var information: UInt64 = 0
  /// R13 to R15 of translated code during the comparison.
  package var kept = InlineArray<3, UInt64>(repeating: 0)
  /// The save area of vector registers during the comparison.
  package var area: UInt64 = 0
  /// Accesses compared, and mismatches.
  package var count: UInt64 = 0
  package var differences: UInt64 = 0
  /// The first mismatch: linear address, host address, the walk's or 0, information, RIP of the
  /// code page.
  package var first = InlineArray<5, UInt64>(repeating: 0)

  package static let write: UInt64 = 1 << 32
  package static let sizeMask: UInt64 = 0xFFFF_FFFF
}

extension CPU {
  /// Compares the access in `native.verification` with a walk.
  package func verifyAccess() {
    let found = s.pointee.native.verification
    let isWrite = found.information & AccessVerification.write != 0
    let size = found.information & AccessVerification.sizeMask
    let expected = walk(found.linear, size: size, isWrite ? .write : .read)
    if expected == found.host { return }
    s.pointee.native.verification.differences &+= 1
    if found.differences > 0 { return }
    s.pointee.native.verification.first = [
      found.linear, found.host, expected ?? 0, found.information, s.pointee.codePage,
    ]
  }

  /// The host address of an access that may take the fast path; else nil.
  private func walk(_ linear: UInt64, size: UInt64, _ kind: AccessKind) -> UInt64? {
    let offset = linear & Page.offsetMask
    guard offset &+ size <= Page.size, !isLongMode || isCanonical(linear),
      let translation = try? translate(linear, kind, bank: currentBank),
      let page = physicalPage(translation.physical | offset, kind)
    else { return nil }
    if kind == .write && CodePages.contains(page.host, s.pointee.codePages) { return nil }
    return page.host | offset
  }
}
