// SPDX-License-Identifier: Apache-2.0
//
// IA32_ARCH_CAPABILITIES of this processor. Guest code is host code in a process, so it has the
// host's vulnerabilities of speculative execution, and an immunity is offered only if the host's
// kernel reports it ("Not affected" in /sys/devices/system/cpu/vulnerabilities).
//
// The host's mitigations do not extend into the guest. The guest's user and kernel code share this
// process, and so its branch predictors. So Spectre immunity, IBRS_ALL, BHI_NO and PBRSB_NO are
// never offered, nor are IA32_SPEC_CTRL and IA32_PRED_CMD, as a process has no such control between
// parts of itself. A RET of translated code is an indirect jump of the host, which RSBA says: a
// retpoline is useless here.
//
// Indirect target selection depends on a branch's position in its cache line; some processors are
// affected. Without ITS_NO, Linux sends each RET of its kernel through a thunk in another page.
// That is slow here, and does not change the position of the host's branches.

import Host
import X86

package enum HostVulnerabilities {
  /// The immunities, with the files that must all report them.
  private static let table: [(ArchitecturalCapabilities, [String])] = [
    (.noRogueDataCacheLoad, ["meltdown", "l1tf"]), (.skipCacheFlush, ["l1tf"]),
    (.noStoreBypass, ["spec_store_bypass"]), (.noDataSampling, ["mds"]),
    (.noPageSizeMachineCheck, ["itlb_multihit"]), (.noTransactionAbort, ["tsx_async_abort"]),
    (.noStaleData, ["mmio_stale_data"]), (.noGatherSampling, ["gather_data_sampling"]),
    (.noRegisterFileSampling, ["reg_file_data_sampling"]),
    (.noTargetSelection, ["indirect_target_selection"]),
  ]

  /// - Parameter report: the contents of the file of that name; nil if there is none.
  package static func capabilities(_ report: (String) -> String?) -> ArchitecturalCapabilities {
    var all: ArchitecturalCapabilities = [.alternateReturnPredictors]
    for (immunity, files) in table
    where files.allSatisfy({ report($0)?.hasPrefix("Not affected") == true }) {
      all.insert(immunity)
    }
    return all
  }

  /// This host's immunities. The files are read once, before the sandbox closes.
  package static let capabilities = capabilities(report)

  /// CPUID leaf 80000021H of AMD's processors: SRSO_NO in EAX saves a guest the detour of its
  /// returns; TSA_SQ_NO and TSA_L1_NO in ECX save it VERW.
  package static let leaf21: CPUIDLeaf = {
    func isImmune(_ file: String) -> Bool { report(file)?.hasPrefix("Not affected") == true }
    return CPUIDLeaf(
      eax: isImmune("spec_rstack_overflow") ? 1 << 29 : 0,
      ecx: isImmune("tsa") ? 1 << 1 | 1 << 2 : 0)
  }()

  private static func report(_ name: String) -> String? {
    (try? contentsOfFile("/sys/devices/system/cpu/vulnerabilities/" + name)).map {
      String(decoding: $0, as: UTF8.self)
    }
  }
}
