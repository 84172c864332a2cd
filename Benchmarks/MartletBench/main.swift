// SPDX-License-Identifier: Apache-2.0
//
// Measures the software processor and the KVM API from inside. Scripts/bench.sh runs it; the format
// of its lines is documented in docs/benchmarks.md.
//
//     martlet-bench [loops] [verbs] [exits] [latency]      default: all four
//     martlet kvm -- martlet-bench client                  exits and latency as a client has them
//
//     mips NAME MILLIONS-OF-INSTRUCTIONS-PER-SECOND            the interpreter's
//     translated NAME MILLIONS-OF-INSTRUCTIONS-PER-SECOND      the translator's
//     exit ENGINE NAME NANOSECONDS
//     latency ENGINE NAME MEDIAN-NANOSECONDS 99TH-PERCENTILE

import Glibc
import SystemPackage

let sections: [(name: String, measure: () throws -> Void)] = [
  ("loops", measureLoops),
  ("verbs", measureVerbs),
  ("exits", measureExits),
  ("latency", measureLatency),
]
/// Not among those that run by default.
let clientSection = (name: "client", measure: measureClient)
let allSections = sections + [clientSection]

/// `/dev/kvm` as `martlet kvm` presents it.
func measureClient() throws {
  try measureDeviceExits("client")
  try measureDeviceLatency("client")
}

let wanted = CommandLine.arguments.dropFirst()
if let unknown = wanted.first(where: { name in !allSections.contains { $0.name == name } }) {
  let names = allSections.map(\.name).joined(separator: ", ")
  let message = "martlet-bench: no section \(unknown); there are \(names)\n"
  try FileDescriptor.standardError.writeAll(message.utf8)
  exit(2)
}
for section in wanted.isEmpty ? sections : allSections
where wanted.isEmpty || wanted.contains(section.name) {
  try section.measure()
}
