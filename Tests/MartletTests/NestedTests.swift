// SPDX-License-Identifier: Apache-2.0
//
// A guest that is a hypervisor: Debian's kernel loads its KVM and runs `martlet run --engine kvm`,
// which boots Debian's kernel again. The inner machine's init, and KVM's log, are the oracle.

import Glibc
import HostTestSupport
import Testing

@Suite(.serialized) struct NestedTests {
  /// What the outer machine starts from, made by Scripts/make-hypervisor.sh.
  private static let image = Result {
    let path = Command.products + "/initramfs-hypervisor.cpio"
    let result = try Command.run(
      [Command.products + "/martlet", path], path: Command.package + "/Scripts/make-hypervisor.sh")
    try #require(result.status == 0, "\(result.errors)")
    return path
  }

  /// - Parameters:
  ///   - cpus: of both machines.
  ///   - options: what init-hypervisor looks for.
  @Test(arguments: [
    ("amd", 1, ""), ("amd", 1, "hypervisor.module=npt=0"), ("amd", 2, "hypervisor.cpus=2"),
    ("amd", 2, "hypervisor.cpus=2 hypervisor.module=npt=0"), ("amd", 1, "hypervisor.rounds=3"),
    ("intel", 1, ""), ("intel", 1, "hypervisor.module=ept=0"), ("intel", 2, "hypervisor.cpus=2"),
    ("intel", 2, "hypervisor.cpus=2 hypervisor.module=ept=0"),
    ("intel", 1, "hypervisor.rounds=3"),
  ])
  func linuxWithKVMBootsLinux(vendor: String, cpus: Int, options: String) throws {
    let result = try Command.run(
      [
        "run", "--engine", "soft", "--vendor", vendor, "--cpus", "\(cpus)", "--memory", "1G",
        "--kernel", BootGuest.path("vmlinuz-cloud-amd64"), "--initrd", Self.image.get(),
        "--append", "panic=-1 quiet " + options,
      ], limit: BootGuest.limit)
    let inner = options.contains("cpus=2") ? 2 : 1
    let rounds = options.contains("rounds=3") ? 3 : 1
    #expect(
      Self.count("MARTLET-GUEST-READY cpus=\(inner)", in: result) == rounds,
      "\(result.output.suffix(3000))")
    #expect(result.output.contains("HYPERVISOR round \(rounds), status 0"))
    #expect(!result.output.contains("HYPERVISOR kernel complains"))
    #expect(!result.output.contains("stays"))
    #expect(result.status == 0, "\(result.errors)")
  }

  private static func count(_ text: String, in result: Command.Result) -> Int {
    result.output.split(whereSeparator: \.isNewline).count { $0.contains(text) }
  }
}
