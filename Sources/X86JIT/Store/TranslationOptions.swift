// SPDX-License-Identifier: Apache-2.0
//
// What code depends on besides the guest's instructions: with any of it different, a translation is
// of another kind and is not used.

import Host
import X86
import X86CPU

package struct TranslationOptions: Sendable, Equatable {
  package var guardsSpeculation: Bool
  package var countsInstructions: Bool
  /// Code counts how it is entered.
  package var measures: Bool
  /// Memory may disappear (`GuardedCall`).
  package var guardsAccesses: Bool
  /// Whose processor the guest runs on.
  package var silicon: SiliconVendor

  package init(
    guardsSpeculation: Bool, countsInstructions: Bool, measures: Bool, guardsAccesses: Bool,
    silicon: SiliconVendor = .intel
  ) {
    self.guardsSpeculation = guardsSpeculation
    self.countsInstructions = countsInstructions
    self.measures = measures
    self.guardsAccesses = guardsAccesses
    self.silicon = silicon
  }

  /// Of these options on this host, with this build.
  var kind: TranslationKind {
    var bytes: [UInt8] = []
    func add(_ value: UInt64) { withUnsafeBytes(of: value) { bytes += $0 } }
    let isAMD = silicon == .amd
    for option in [guardsSpeculation, countsInstructions, measures, guardsAccesses, isAMD] {
      add(option ? 1 : 0)
    }
    for word in HostFeatures.current.words { add(UInt64(word)) }
    add(HostFeatures.current.xcr0)
    let anchor = unsafeBitCast(findSuccessor, to: UnsafeRawPointer.self)
    for number in ProgramBuild.identity(anchor: anchor) { add(number) }
    // Where shared code is; its own bytes may have addresses of this run.
    let thunks = Thunks(origin: 0, guardsSpeculation: guardsSpeculation, counts: measures)
    for symbol in thunks.symbols { add(UInt64(symbol.address)) }
    add(UInt64(thunks.code.count))
    return TranslationKind(bytes)
  }
}
