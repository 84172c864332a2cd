// SPDX-License-Identifier: Apache-2.0
//
// IA32_ARCH_CAPABILITIES of this processor: guest code is host code that runs in a process, so it
// has the host's defects of speculative execution, and an immunity is offered only where the host's
// kernel says that the host has it ("Not affected" in /sys/devices/system/cpu/vulnerabilities).
//
// What the host does about the others does not reach into the guest. The guest's user and kernel
// code share this process, and so its branch predictors: no file makes us immune against Spectre,
// there are no IBRS_ALL, BHI_NO and PBRSB_NO, and no switches (IA32_SPEC_CTRL, IA32_PRED_CMD), as a
// process has none that works between parts of itself. A RET of translated code is an indirect jump
// of the host, which RSBA says: a retpoline protects nothing here.
//
// Indirect target selection depends on where a branch lies in its cache line; some processors are
// affected. A Linux that is not told ITS_NO sends each RET of its kernel through a thunk in another
// page. That is slow here, and changes nothing about where the host's branches lie.

import Host
import X86

package enum HostVulnerabilities {
  /// The immunities with the files that all have to say so.
  private static let table: [(ArchitecturalCapabilities, [String])] = [
    (.noRogueDataCacheLoad, ["meltdown", "l1tf"]), (.skipCacheFlush, ["l1tf"]),
    (.noStoreBypass, ["spec_store_bypass"]), (.noDataSampling, ["mds"]),
    (.noPageSizeMachineCheck, ["itlb_multihit"]), (.noTransactionAbort, ["tsx_async_abort"]),
    (.noStaleData, ["mmio_stale_data"]), (.noGatherSampling, ["gather_data_sampling"]),
    (.noRegisterFileSampling, ["reg_file_data_sampling"]),
    (.noTargetSelection, ["indirect_target_selection"]),
  ]

  /// - Parameter report: what the file of that name says; nil where there is none.
  package static func capabilities(_ report: (String) -> String?) -> ArchitecturalCapabilities {
    var all: ArchitecturalCapabilities = [.alternateReturnPredictors]
    for (immunity, files) in table
    where files.allSatisfy({ report($0)?.hasPrefix("Not affected") == true }) {
      all.insert(immunity)
    }
    return all
  }

  /// This host's. The files are read once, before anything shuts the process in.
  package static let capabilities = capabilities(report)

  /// CPUID leaf 80000021H of AMD's processors: SRSO_NO, which spares a guest the detour of its
  /// returns, in EAX; TSA_SQ_NO and TSA_L1_NO, which spare it VERW, in ECX.
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
