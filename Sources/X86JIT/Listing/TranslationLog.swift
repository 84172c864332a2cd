// SPDX-License-Identifier: Apache-2.0
//
// What became of the guest's code, for people: a listing of guest and host code, and the file by
// which `perf` names addresses of generated code. One log serves the translators of all CPUs.
//
//     let log = TranslationLog(listing: descriptor, perfMap: nil)
//     try Translator.install(on: cpu, log: log)
//     ... guests run ...
//     log.finish()                      // how often each translation ran
//
// With a listing, translations count their executions, which costs an addition to memory in each.
// The order of the listing is that of translation. A translation that is gone stays in both files;
// in the map for `perf`, code that was made later at the same place comes later.

import Host
import Synchronization
import X86CPU

/// Where a part of a translation begins, from the start of its code.
package struct CodeMark: Sendable, Equatable {
  package enum Part: Sendable, Equatable {
    /// Before the first instruction.
    case entry
    /// The instruction at this offset from the page's start.
    case instruction(Int)
    /// The way on after the last instruction.
    case end
    /// Out of line: stack accesses to another page, targets that the table does not have, an access
    /// that the TLB has no answer for, vector state that is not loaded, an access without a look
    /// whose memory has gone, ways back to the run loop.
    case stackWays
    case unresolved
    case miss(Int)
    case vectorWays
    case faults
    case exits
  }

  package var position: Int
  package var part: Part
}

/// What a translation consists of.
package struct TranslationSummary: Sendable {
  /// Linear address of its first instruction.
  package var linear: UInt64
  /// Host instructions of each part, in the order of the code.
  package var parts: [(part: CodeMark.Part, hostInstructions: Int)]
}

package final class TranslationLog: Sendable {
  private struct Run {
    var linear: UInt64
    var instructions: Int
    var hostBytes: Int
    var counter: UInt
  }

  private struct State: Sendable {
    /// What is at addresses of code.
    var names: [UInt: String] = [:]
    var runs: [Run] = []
    var summaries: [TranslationSummary] = []
    /// The rest of the memory for counters; it is never freed, as code refers to it.
    var nextCounter: UInt = 0
    var countersLeft = 0
  }

  private let listing: Int32?
  private let perfMap: Int32?
  private let keepsSummaries: Bool
  private let state = Mutex(State())

  /// - Parameters:
  ///   - listing: descriptor that guest and host code of each translation are written to.
  ///   - perfMap: descriptor of the file that `perf` looks symbols up in.
  ///   - keepsSummaries: `summaries` is wanted.
  package init(listing: Int32? = nil, perfMap: Int32? = nil, keepsSummaries: Bool = false) {
    self.listing = listing
    self.perfMap = perfMap
    self.keepsSummaries = keepsSummaries
  }

  /// The translations so far, in the order in which they were made.
  package var summaries: [TranslationSummary] { state.withLock { $0.summaries } }

  private static let countersAtOnce = 4096

  /// Address of a new 64-bit counter; nil where nothing is counted.
  func makeCounter() -> UInt? {
    if listing == nil { return nil }
    return state.withLock { state in
      if state.countersLeft == 0 {
        let memory = UnsafeMutablePointer<UInt64>.allocate(capacity: Self.countersAtOnce)
        memory.initialize(repeating: 0, count: Self.countersAtOnce)
        state.nextCounter = UInt(bitPattern: memory)
        state.countersLeft = Self.countersAtOnce
      }
      state.countersLeft -= 1
      defer { state.nextCounter += UInt(MemoryLayout<UInt64>.stride) }
      return state.nextCounter
    }
  }

  /// Notes the code that the translations of a CPU share.
  func note(_ thunks: Thunks, processor: Int) {
    let symbols = thunks.symbols
    let end = thunks.enter + UInt(thunks.code.count)
    state.withLock { state in
      for (n, symbol) in symbols.enumerated() {
        let next = n + 1 < symbols.count ? symbols[n + 1].address : end
        state.names[symbol.address] = symbol.name
        map(symbol.address, Int(next - symbol.address), "martlet:\(symbol.name)")
      }
    }
  }

  /// Notes a finished translation of the block at a linear address.
  func note(_ translation: BlockTranslation, at linear: UInt64, processor: Int) {
    let name = "guest:0x" + String(linear, radix: 16)
    let start = translation.a.origin
    let size = translation.a.bytes.count
    state.withLock { state in
      state.names[start] = name
      map(start, size, name)
      if keepsSummaries {
        state.summaries.append(
          TranslationListing(translation, linear: linear, names: [:]).summary(linear))
      }
      guard let listing else { return }
      if let counter = translation.counter {
        state.runs.append(
          Run(
            linear: linear, instructions: translation.codes[0].instructions.count, hostBytes: size,
            counter: counter))
      }
      let text = TranslationListing(translation, linear: linear, names: state.names)
      writeText(listing, text.text(name: name, processor: processor))
    }
  }

  private func map(_ address: UInt, _ size: Int, _ name: String) {
    guard let perfMap else { return }
    writeText(perfMap, "\(String(address, radix: 16)) \(String(size, radix: 16)) \(name)\n")
  }

  /// Ends the listing with how often translations ran, those first that executed most of the
  /// guest's instructions. For when no guest runs.
  package func finish() {
    guard let listing else { return }
    let runs = state.withLock { $0.runs }
    let counted = runs.map { run -> (run: Run, count: UInt64) in
      let counter = UnsafePointer<UInt64>(bitPattern: run.counter)
      return (run, counter?.pointee ?? 0)
    }
    let ranked = counted.map { ($0.run, $0.count, $0.count &* UInt64($0.run.instructions)) }
      .sorted { $0.2 > $1.2 }
    let total = max(ranked.reduce(UInt64(0)) { $0 &+ $1.2 }, 1)
    var text = "executions: instructions of the guest, times run, bytes of guest's code made\n"
    for (run, count, instructions) in ranked where count > 0 {
      let share = Double(instructions * 1000 / total) / 10
      text +=
        "\(share)% \(instructions) = \(run.instructions) x \(count), \(run.hostBytes) bytes: "
        + "guest:0x\(String(run.linear, radix: 16))\n"
    }
    writeText(listing, text)
  }
}
