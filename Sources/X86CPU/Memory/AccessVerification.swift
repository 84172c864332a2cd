// SPDX-License-Identifier: Apache-2.0
//
// A check of the translator, for tests: accesses that skip their look at the TLB, because another
// has looked for them or their page is remembered, are compared with a look and, where the TLB has
// no entry, with a walk.

import X86

/// What such an access has found, and how comparisons went.
package struct AccessVerification: Sendable {
  /// Of the access that is being compared: its address, the host's, and its size with `write`
  /// above.
  package var linear: UInt64 = 0
  package var host: UInt64 = 0
  package var information: UInt64 = 0
  /// Registers of translated code meanwhile: R13 to R15.
  package var kept = InlineArray<3, UInt64>(repeating: 0)
  /// Where vector registers are meanwhile.
  package var area: UInt64 = 0
  /// Accesses compared, and those that differed.
  package var count: UInt64 = 0
  package var differences: UInt64 = 0
  /// The first that differed: linear address, host address, that of the walk or 0, information, RIP
  /// of the code page.
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

  /// The host address of an access that may go the fast way; else nil.
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
