// SPDX-License-Identifier: Apache-2.0
//
// This machine's support for running guests, as lines for the user, with remedies for what is
// missing.

import Glibc
import Host
import KVMClient
import SystemPackage

/// The report of `martlet doctor`.
package struct Doctor {
  private let supply: EngineSupply

  package init(_ supply: EngineSupply) { self.supply = supply }

  /// CPU features that matter, with their use.
  private static let features: [(flag: String, use: String)] = [
    ("vmx", "Intel's hardware virtualization"), ("svm", "AMD's hardware virtualization"),
    ("fsgsbase", "CPU state at a segment base"), ("bmi2", "flagless shifts in translated code"),
    ("avx2", "guests' AVX2"), ("avx512f", "guests' AVX-512"), ("invpcid", ""), ("la57", ""),
  ]

  /// All lines.
  package func report() -> [String] {
    var lines = processorLines() + memoryLines() + deviceLines() + [clientLine(), networkLine()]
    do throws(RunError) {
      lines.append("run: " + (try supply.choose(Configuration()).reason))
    } catch {
      lines.append("run: cannot: \(error)")
    }
    return lines
  }

  private func processorLines() -> [String] {
    let text = (try? contentsOfFile("/proc/cpuinfo")).map { String(decoding: $0, as: UTF8.self) }
    func value(_ key: String) -> String? {
      text?.split(separator: "\n").first { $0.hasPrefix(key) }
        .flatMap { $0.split(separator: ":", maxSplits: 1).last }
        .map { String($0.drop { $0 == " " }) }
    }
    let flags = Set((value("flags") ?? "").split(separator: " ").map(String.init))
    let known = Self.features.map { "\($0.flag) \(flags.contains($0.flag) ? "yes" : "no")" }
    return [
      "processor: \(value("model name") ?? "unknown"), \(sysconf(Int32(_SC_NPROCESSORS_ONLN))) online",
      "features: \(known.joined(separator: ", "))",
    ]
  }

  private func memoryLines() -> [String] {
    let available = sysconf(Int32(_SC_AVPHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
    var lines = ["memory: \(Configuration.hostMemory >> 20)M, \(available >> 20)M free"]
    let path = "/sys/kernel/mm/transparent_hugepage/enabled"
    let pages = (try? contentsOfFile(path)).map { String(decoding: $0, as: UTF8.self) } ?? ""
    if pages.contains("[never]") {
      lines.append("huge pages: off; for speed write madvise to \(path)")
    } else {
      lines.append(pages.isEmpty ? "huge pages: unknown" : "huge pages: on request")
    }
    lines.append(Self.limit("address space", RLIMIT_AS, mend: "ulimit -v unlimited"))
    lines.append(Self.limit("open files", RLIMIT_NOFILE, mend: "ulimit -n 1024", least: 64))
    return lines
  }

  /// How `martlet kvm` detects its program's writes to guest memory.
  private func clientLine() -> String {
    let name = "writes of programs under martlet kvm"
    do throws(Errno) {
      _ = try UserFaultDescriptor()
      return "\(name): seen by userfaultfd"
    } catch {
      return "\(name): seen late, by comparing, as userfaultfd says: \(error); "
        + "vm.unprivileged_userfaultfd=1, access to /dev/userfaultfd or root would fix that"
    }
  }

  private func networkLine() -> String {
    "network: --net user "
      + (UserNetwork.find().map { "by \($0)" } ?? "not there; apt-get install passt")
  }

  private static func limit(
    _ name: String, _ resource: __rlimit_resource, mend: String, least: UInt64 = .max >> 1
  ) -> String {
    var limits = rlimit()
    unsafe getrlimit(__rlimit_resource_t(resource.rawValue), &limits)
    let value = UInt64(limits.rlim_cur)
    let text = value == .max ? "unlimited" : "\(value)"
    return "limit of \(name): \(text)" + (value < least ? "; a run may need \(mend)" : "")
  }

  private func deviceLines() -> [String] {
    if let problem = supply.deviceProblem() { return ["kvm: \(problem)"] }
    do throws(Errno) {
      let speed = try supply.deviceSpeed()
      let supervisor = EngineSupply.nanoseconds(speed.supervisor)
      let user = EngineSupply.nanoseconds(speed.user)
      return [
        "kvm: usable, \(supervisor) an instruction in supervisor mode, \(user) in user mode"
          + (speed.isUsable
            ? ""
            : "; it interprets supervisor code, nested virtualization in "
              + "hardware on the host below would fix that")
      ]
    } catch {
      return ["kvm: opens, but fails a probe guest: \(error)"]
    }
  }
}
