// SPDX-License-Identifier: Apache-2.0
//
// Debian's kernels boot to a marker that their init prints, on the software engine. The guests come
// from Scripts/fetch-guest.sh; where they are missing the tests fail and say how to get them.

import Glibc
import HostTestSupport
import Testing

/// What the tests boot.
enum BootGuest {
  static let directory = Command.package + "/.guest"
  static let initrd = directory + "/initramfs-marker.cpio"
  /// Seconds until a boot has failed.
  static let limit: UInt64 = 300

  static func path(_ kernel: String) -> String { directory + "/" + kernel }

  static let isThere: Bool =
    ["vmlinuz-cloud-amd64", "vmlinuz-amd64", "initramfs-marker.cpio"].allSatisfy {
      access(path($0), R_OK) == 0
    }
}

@Suite(.serialized) struct BootTests {
  func boot(_ kernel: String, _ arguments: [String], append: String = "") throws -> Command.Result {
    try #require(
      BootGuest.isThere,
      "no guests in \(BootGuest.directory): run Scripts/fetch-guest.sh, which needs apt and a network"
    )
    return try Command.run(
      [
        "run", "--engine", "soft", "--kernel", BootGuest.path(kernel), "--initrd",
        BootGuest.initrd, "--append", "panic=-1 " + append,
      ] + arguments, limit: BootGuest.limit)
  }

  @Test(
    arguments: ["vmlinuz-cloud-amd64", "vmlinuz-amd64"],
    [
      ["--cpus", "1"], ["--cpus", "2"], ["--cpus", "4"], ["--cpus", "4", "--pcpus", "1"],
      ["--cpus", "1", "--translator", "off"], ["--cpus", "4", "--translator", "off"],
      ["--cpus", "1", "--decompress", "guest"],
    ])
  func linuxReachesInitAndPowersOff(kernel: String, arguments: [String]) throws {
    let result = try boot(kernel, arguments)
    #expect(
      result.output.contains("MARTLET-GUEST-READY cpus=\(arguments[1])"),
      "\(result.output.suffix(2000))")
    #expect(result.status == 0, "\(result.errors)")
  }

  @Test func aRestartIsSeen() throws {
    let result = try boot("vmlinuz-cloud-amd64", [], append: "martlet.reboot")
    #expect(result.output.contains("MARTLET-GUEST-READY") && result.status == 8)
  }
}
