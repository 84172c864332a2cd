// SPDX-License-Identifier: Apache-2.0
//
// Measures the software processor and the KVM API from inside. Scripts/bench.sh runs it; the format
// of its lines is documented in docs/benchmarks.md.
//
//     martlet-bench [loops] [verbs] [exits]      default: all three
//
//     mips NAME MILLIONS-OF-INSTRUCTIONS-PER-SECOND            the interpreter's
//     translated NAME MILLIONS-OF-INSTRUCTIONS-PER-SECOND      the translator's
//     exit ENGINE NAME NANOSECONDS

import Glibc
import SystemPackage

let sections: [(name: String, measure: () throws -> Void)] = [
  ("loops", measureLoops),
  ("verbs", measureVerbs),
  ("exits", measureExits),
]

let wanted = CommandLine.arguments.dropFirst()
if let unknown = wanted.first(where: { name in !sections.contains { $0.name == name } }) {
  let names = sections.map(\.name).joined(separator: ", ")
  let message = "martlet-bench: no section \(unknown); there are \(names)\n"
  try FileDescriptor.standardError.writeAll(message.utf8)
  exit(2)
}
for section in sections where wanted.isEmpty || wanted.contains(section.name) {
  try section.measure()
}
