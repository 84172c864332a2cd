// SPDX-License-Identifier: Apache-2.0
//
// An ordinary client of `/dev/kvm`, made to be run by `martlet kvm`: it knows nothing of this
// package but the kernel's API. Each argument names a check; the first that fails ends it with
// status 1 and says why. One that cannot run here says "skipped".

import CHost
import Glibc

let checks: [(name: String, check: () throws -> Void)] = [
  ("device", deviceChecks), ("descriptors", descriptorChecks), ("pointers", pointerChecks),
  ("fork", forkChecks), ("signals", signalChecks), ("halt", haltChecks),
  ("threads", threadChecks), ("writes", writeChecks), ("race", raceChecks), ("remaps", remapChecks),
  ("process", processChecks), ("faults", faultChecks),
  ("userfault", userFaultChecks), ("late", latePageChecks), ("ring", ringChecks),
  ("cancel", cancelChecks), ("mask", maskChecks), ("contention", contentionChecks),
  ("coalesced", coalescedChecks), ("events", eventChecks),
  ("vanish", vanishChecks), ("stress", stressChecks), ("truncation", truncationChecks),
  ("segment", segmentChecks), ("own", ownFaultChecks), ("clock", clockPageChecks),
  ("crash", crashChecks),
]

struct Failure: Error { var text: String }

/// The host has not what a check needs.
struct Skip: Error { var text: String }

func expect(
  _ condition: Bool, _ text: @autoclosure () -> String = "", line: Int = #line
) throws {
  if !condition { throw Failure(text: "line \(line): \(text()) (errno \(errno))") }
}

for name in CommandLine.arguments.dropFirst() {
  guard let check = checks.first(where: { $0.name == name }) else { exit(2) }
  do {
    try check.check()
    print("\(name): ok")
  } catch let skip as Skip {
    print("\(name): skipped: \(skip.text)")
  } catch {
    print("\(name): \(error)")
    exit(1)
  }
}
