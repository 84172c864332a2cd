// SPDX-License-Identifier: Apache-2.0
//
// The transport to the hypervisor in this process. It returns the same numbers, structs and errors
// as the kernel, so clients cannot distinguish them.

import CHost
import Host
import KVM
import KVMClient
import SystemPackage
import X86
import X86CPU
import X86JIT

/// Our KVM as a transport: its ioctls are calls into this process.
package final class LoopbackTransport: KVMTransport {
  package let name = "the software KVM"
  package let hypervisor: Hypervisor

  /// - Parameters:
  ///   - physicalCPUs: the number of software processors; nil: as many as the host.
  ///   - silicon: their vendor; nil: the host's vendor.
  ///   - translates: whether they translate hot code.
  ///   - threshold: executions of a block until it is translated; nil, as for the next two: the
  ///     translator's own choice.
  ///   - hotEntries: entries of a translation until it is translated with its successors.
  ///   - codeBytes: code memory of each processor.
  ///   - guardsSpeculation: whether translated code's accesses are harmless under misprediction.
  ///   - verifiesAccesses: whether translated code's accesses are compared with a walk.
  ///   - listing: descriptor for a listing of each translation.
  ///   - perfMap: descriptor of the file in which `perf` looks up names of generated code.
  ///   - store: folder for translations of earlier runs, and its size limit in bytes.
  ///   - measures: measure times, and count in translated code, for `statistics`.
  ///   - warn: prints the lines of a warning.
  package init(
    physicalCPUs: Int? = nil, silicon: SiliconVendor? = nil, translates: Bool = false,
    threshold: UInt32? = nil, hotEntries: Int32? = nil, codeBytes: Int? = nil,
    guardsSpeculation: Bool = true, verifiesAccesses: Bool = false, listing: Int32? = nil,
    perfMap: Int32? = nil, store: (path: String, limit: Int)? = nil, measures: Bool = false,
    warn: @escaping @Sendable ([String]) -> Void = { _ in }
  ) throws(Errno) {
    var tuning = TranslatorTuning.standard
    if let threshold { tuning.threshold = threshold }
    if let hotEntries { tuning.hotEntries = hotEntries }
    if let codeBytes { tuning.codeBytes = codeBytes }
    tuning.guardsSpeculation = guardsSpeculation
    tuning.verifiesAccesses = verifiesAccesses
    hypervisor = try Hypervisor(
      physicalCPUs: physicalCPUs, silicon: silicon, translates: translates, tuning: tuning,
      reports: TranslatorReports(listing: listing, perfMap: perfMap, measures: measures),
      store: store.map { TranslationStoreSettings(path: $0.path, limit: $0.limit) },
      entryFailures: EntryFailureReports(warn: warn))
  }

  /// Suffixes of files with translations.
  package static let storeSuffixes = [TranslationFile.suffix, TranslationFile.temporarySuffix]

  /// What is wrong with the translations of earlier runs; one line.
  package var storeProblem: String? { hypervisor.storeProblem }

  /// A hypervisor created elsewhere.
  package init(_ hypervisor: Hypervisor) { self.hypervisor = hypervisor }

  package func open() throws(Errno) -> Int32 { hypervisor.open() }

  package func ioctl(
    _ handle: Int32, _ request: UInt32, _ argument: UInt
  ) throws(Errno) -> Int32 {
    try hypervisor.ioctl(handle, request, argument)
  }

  package func mapRun(_ vcpu: Int32, size: Int) throws(Errno) -> UnsafeMutableRawPointer {
    guard size <= Hypervisor.sharedSize else { throw .invalidArgument }
    return try unsafe hypervisor.sharedPages(vcpu)
  }

  /// The pages belong to the vCPU and end with it.
  package func unmapRun(_ vcpu: Int32, _ pages: UnsafeMutableRawPointer, size: Int) {}

  package func close(_ handle: Int32) { hypervisor.close(handle) }

  package func kick(_ vcpu: Int32, thread: ThreadIdentifier) { hypervisor.kick(vcpu) }

  package func noteWrite(_ start: UnsafeRawPointer, count: Int) {
    unsafe PhysicalCPU.noteHostWrite(start, count: count)
  }

  package func finishReports() { hypervisor.finishReports() }

  package func statistics() -> [(name: String, value: UInt64)] {
    let total = hypervisor.totalStatistics
    let exits = total.byCause
    var rows = [(name: "VM exits", value: exits.reduce(0) { $0 &+ $1.count })]
    rows += exits.map { (name: "  \($0.cause)", value: $0.count) }
    rows.append((name: "halts", value: total.halts))
    // The processor does not count instructions in all modes; then there is no figure.
    if total.instructions > 0 {
      rows.append((name: KVMStatistic.instructions, value: total.instructions))
    }
    return rows + hypervisor.cacheStatistics + hypervisor.translatorStatistics
  }
}
