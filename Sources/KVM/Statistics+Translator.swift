// SPDX-License-Identifier: Apache-2.0

import X86CPU
import X86Decoder
import X86JIT

/// What translators tell while they work.
package struct TranslatorReports: Sendable {
  /// Descriptor that each translation is listed on, guest and host code.
  package var listing: Int32?
  /// Descriptor of the file in which `perf` looks up names of generated code.
  package var perfMap: Int32?

  package init(listing: Int32? = nil, perfMap: Int32? = nil) {
    self.listing = listing
    self.perfMap = perfMap
  }

  package static let none = TranslatorReports()

  func makeLog() -> TranslationLog? {
    listing == nil && perfMap == nil ? nil : TranslationLog(listing: listing, perfMap: perfMap)
  }
}

extension Hypervisor {
  /// Completes the reports of the translators. For when no vCPU runs.
  package func finishReports() { translationLog?.finish() }

  /// What the translators of all physical CPUs did, for people to read; exact while no vCPU runs.
  /// Empty without translators.
  package var translatorStatistics: [(name: String, value: UInt64)] {
    let translators = pool.slots.compactMap { $0.cpu.translator as? Translator }
    if translators.isEmpty { return [] }
    var total = Translator.Statistics()
    var uses: [Mnemonic: UInt64] = [:]
    for translator in translators {
      total.add(translator.statistics)
      for use in translator.handlerUse { uses[use.mnemonic, default: 0] &+= use.count }
    }
    let calls = uses.values.reduce(0) { $0 &+ $1 }
    let ranked = uses.sorted { $0.value > $1.value }.prefix(12)
    return [
      (name: "blocks translated", value: total.blocks),
      (name: "  instructions in them", value: total.instructions),
      (name: "  bytes of code", value: total.codeBytes),
      (name: "  left to the interpreter", value: total.refused),
      (name: "  code dropped, full", value: total.resets),
      (name: "handlers called by translated code", value: calls),
    ] + ranked.map { (name: "  \($0.key)", value: $0.value) }
  }
}
