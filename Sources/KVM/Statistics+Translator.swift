// SPDX-License-Identifier: Apache-2.0
//
// Statistics of the translators of all physical CPUs, for `--stats`.

import Host
import X86CPU
import X86Decoder
import X86JIT

/// Output of translators while they work.
package struct TranslatorReports: Sendable {
  /// Descriptor for a listing of each translation, guest and host code.
  package var listing: Int32?
  /// Descriptor of the file in which `perf` looks up generated code's names.
  package var perfMap: Int32?
  /// Count entries into translated code, and measure times.
  package var measures: Bool

  package init(listing: Int32? = nil, perfMap: Int32? = nil, measures: Bool = false) {
    self.listing = listing
    self.perfMap = perfMap
    self.measures = measures
  }

  package static let none = TranslatorReports()

  func makeLog() -> TranslationLog? {
    listing == nil && perfMap == nil ? nil : TranslationLog(listing: listing, perfMap: perfMap)
  }
}

extension Hypervisor {
  /// Completes the translators' reports, and stores their translations. Call it while no vCPU runs.
  package func finishReports() {
    translationLog?.finish()
    translationStore?.flush()
  }

  /// Opens the store of translations, or says what is wrong with it.
  static func open(
    _ settings: TranslationStoreSettings?, _ options: TranslationOptions
  ) -> (store: TranslationStore?, problem: String?) {
    guard let settings else { return (nil, nil) }
    do throws(PrivateFolderError) {
      let store = try TranslationStore(settings, options)
      let problem = "translation cache \(settings.path): was damaged; what was sound is used"
      return (store, store.wasRepaired ? problem : nil)
    } catch {
      return (nil, "translation cache \(settings.path): not used: \(error)")
    }
  }

  /// Statistics of all physical CPUs' translators, for people to read; exact while no vCPU runs.
  /// Empty without translators.
  package var translatorStatistics: [(name: String, value: UInt64)] {
    let translators = pool.slots.compactMap { $0.cpu.translator as? Translator }
    if translators.isEmpty { return [] }
    var total = Translator.Statistics()
    var tiers = TierCounts()
    var uses: [Mnemonic: UInt64] = [:]
    var (compared, differing) = (0 as UInt64, 0 as UInt64)
    for translator in translators {
      total.add(translator.statistics)
      tiers.add(translator.tiers)
      compared &+= translator.verification.count
      differing &+= translator.verification.differences
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
      (name: "  regions", value: total.regions),
      (name: "blocks from the translation cache", value: total.recalled),
      (name: "  regions from it", value: total.recalledRegions),
      (name: "handlers called by translated code", value: calls),
    ] + ranked.map { (name: "  \($0.key)", value: $0.value) } + Self.rows(tiers)
      + (compared == 0
        ? []
        : [
          (name: "accesses compared with a walk", value: compared),
          (name: "  that differ", value: differing),
        ])
  }
  /// Counts of entries and times; empty if nothing was measured.
  private static func rows(_ tiers: TierCounts) -> [(name: String, value: UInt64)] {
    if tiers.guestTicks == 0 { return [] }
    func share(_ part: UInt64, _ whole: UInt64) -> String {
      "\(Double(part &* 1000 / max(whole, 1)) / 10) %"
    }
    func milliseconds(_ ticks: UInt64) -> UInt64 { ticks / max(HostTSC.kilohertz, 1) }
    let all = max(tiers.translations, 1)
    let direct = all &- min(all, tiers.entries &+ tiers.lookups &+ tiers.searches)
    let translated = tiers.translatedTicks &+ tiers.translatorTicks
    let interpreter = tiers.guestTicks &- min(tiers.guestTicks, translated)
    let times = [
      ("interpreter", interpreter), ("translator", tiers.translatorTicks),
      ("translated code, its handlers included", tiers.translatedTicks),
    ]
    return [
      (name: "blocks run in translated code", value: all),
      (name: "  by a direct way (\(share(direct, all)))", value: direct),
      (name: "  by the table of jumps (\(share(tiers.lookups, all)))", value: tiers.lookups),
      (name: "  by a search (\(share(tiers.searches, all)))", value: tiers.searches),
      (name: "  by the run loop (\(share(tiers.entries, all)))", value: tiers.entries),
      (name: "time between VM entries and exits, ms", value: milliseconds(tiers.guestTicks)),
    ]
      + times.map {
        (name: "  \($0.0) (\(share($0.1, tiers.guestTicks)))", value: milliseconds($0.1))
      }
  }
}
