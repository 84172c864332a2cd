// SPDX-License-Identifier: Apache-2.0
//
// Programs under `martlet kvm`: an ordinary client of the KVM API, and QEMU where it is installed.

import Glibc
import HostTestSupport
import Testing

@Suite struct PreloadTests {
  @Test(arguments: [
    "device", "descriptors", "pointers", "fork", "signals", "halt", "threads", "writes", "race",
    "remaps",
    "process", "faults", "userfault", "late", "ring", "cancel", "mask", "contention", "coalesced",
    "events",
  ])
  func client(_ check: String) throws {
    let program = Command.products + "/martlet-kvm-client"
    let result = try Command.run(["kvm", "--", program, check])
    let skipped = "\(check): skipped: "
    if result.status == 0 && result.output.hasPrefix(skipped) {
      let reason = result.output.dropFirst(skipped.count).prefix { $0 != "\n" }
      return Skips.note("client(_:) \(check)", String(reason))
    }
    #expect(result.status == 0 && result.output == "\(check): ok\n", "\(result)")
  }

  /// On AMD's processor.
  @Test(arguments: [
    "device", "signals", "halt", "threads", "writes", "faults", "late", "ring", "mask",
    "contention", "coalesced", "events",
  ])
  func clientWithSVM(_ check: String) throws {
    let program = Command.products + "/martlet-kvm-client"
    let result = try Command.run(["kvm", "--vendor", "amd", "--", program, check])
    let skipped = "\(check): skipped: "
    if result.status == 0 && result.output.hasPrefix(skipped) {
      let reason = result.output.dropFirst(skipped.count).prefix { $0 != "\n" }
      return Skips.note("clientWithSVM(_:) \(check)", String(reason))
    }
    #expect(result.status == 0 && result.output == "\(check): ok\n", "\(result)")
    let refused = try Command.run(["kvm", "--vendor", "via", "--", program, check])
    #expect(refused.status == 64 && refused.errors.contains("--vendor: give intel or amd"))
  }

  /// Without userfaultfd.
  @Test(arguments: ["writes", "race", "remaps", "process"])
  func comparedWrites(_ check: String) throws {
    let program = Command.products + "/martlet-kvm-client"
    let result = try Command.run(
      ["kvm", "--client-writes", "compared", "--", program, check])
    #expect(result.status == 0 && result.output == "\(check): ok\n", "\(result)")
  }

  /// Slot memory that goes while the guest runs, with the translator and without.
  @Test(arguments: ["vanish", "stress", "truncation", "segment", "own", "clock"], ["on", "off"])
  func vanishingMemory(_ check: String, _ translator: String) throws {
    let program = Command.products + "/martlet-kvm-client"
    let result = try Command.run(["kvm", "--translator", translator, "--", program, check])
    #expect(result.status == 0 && result.output == "\(check): ok\n", "\(result)")
  }

  /// A client's own bug ends it as ever.
  @Test func crash() throws {
    let program = Command.products + "/martlet-kvm-client"
    let result = try Command.run(["kvm", "--", program, "crash"])
    #expect(result.status == 128 + SIGSEGV, "\(result)")
  }

  @Test func statusAndStatistics() throws {
    let program = Command.products + "/martlet-kvm-client"
    let result = try Command.run(["kvm", "--stats", "--", program, "signals"])
    #expect(result.status == 0)
    let status = try Command.run(["kvm", "--", "/bin/sh", "-c", "exit 43"])
    #expect(status.status == 43 && status.errors == "")
    let signal = try Command.run(["kvm", "--", "/bin/sh", "-c", "kill -TERM $$"])
    #expect(signal.status == 128 + SIGTERM)
    let missing = try Command.run(["kvm", "--", "/nonexistent/program"])
    #expect(missing.status == 127 && missing.errors.contains("No such file"))
  }
}
