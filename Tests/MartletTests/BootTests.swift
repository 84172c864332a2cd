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

  /// On the other vendor's processor than most tests: SVM, and AMD's CPUID.
  @Test(arguments: [
    ["--cpus", "1"], ["--cpus", "2"], ["--cpus", "1", "--translator", "off"],
    ["--cpus", "2", "--translator", "off"], ["--cpus", "4", "--pcpus", "1"],
  ])
  func linuxBootsWithSVM(arguments: [String]) throws {
    let result = try boot("vmlinuz-cloud-amd64", ["--vendor", "amd"] + arguments)
    #expect(
      result.output.contains("MARTLET-GUEST-READY cpus=\(arguments[1])"),
      "\(result.output.suffix(2000))")
    #expect(result.output.contains("AuthenticAMD") || result.output.contains("AMD"))
    #expect(result.status == 0, "\(result.errors)")
  }

  /// Everything is translated at once, and again with what follows it.
  @Test(arguments: [1, 2])
  func linuxBootsWithAThresholdOfOne(cpus: Int) throws {
    let arguments = ["--translator-threshold", "1", "--translator-hot-entries", "2"]
    let result = try bootTranslated(cpus, arguments)
    #expect(try Self.count("blocks translated", in: result) > 60_000, "\(result.errors)")
  }

  /// The code memory is so small that all code is dropped again and again.
  @Test(arguments: [
    (1, "1M", "32", 10), (1, "128K", "32", 100), (2, "256K", "32", 50), (2, "2M", "1", 50),
  ])
  func linuxBootsWhileCodeIsDropped(
    cpus: Int, size: String, threshold: String, drops: Int
  ) throws {
    let result = try bootTranslated(
      cpus,
      [
        "--translator-code-size", size, "--translator-threshold", threshold,
        "--translator-hot-entries", "50",
      ])
    #expect(try Self.count("code dropped, full", in: result) >= drops, "\(result.errors)")
  }

  /// Groups, remembered pages and rounds of a whole boot, each compared with the page tables.
  @Test func accessesWithoutALookAgreeWithThePageTables() throws {
    let result = try bootTranslated(1, ["--verify-accesses"])
    #expect(try Self.count("accesses compared with a walk", in: result) > 1_000_000)
    #expect(try Self.count("that differ", in: result) == 0)
  }

  /// A second boot, of one and of several CPUs, takes its translations from the first; a damaged
  /// file does no harm; `martlet cache` shows what there is and removes it.
  @Test func theSecondBootIsWarm() throws {
    var name = Array("/tmp/martlet-warm-XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&name)))
    defer { rmdir(folder) }
    let cache = ["--translation-cache", folder]
    let recalled = "blocks from the translation cache"
    #expect(try Self.count(recalled, in: bootTranslated(1, cache)) < 20_000)
    for cpus in [1, 2] {
      let result = try bootTranslated(cpus, cache)
      #expect(try Self.count(recalled, in: result) > 20_000, "\(result.errors)")
      #expect(try Self.count("regions from it", in: result) > 300, "\(result.errors)")
    }
    // Anything may be wrong with the file's second half.
    let listing = try Command.run(["cache", "--folder", folder])
    let file = try #require(
      listing.output.split(separator: "\n").dropFirst().first?.split(separator: " ").first)
    try Self.damage(folder + "/" + file)
    _ = try bootTranslated(1, cache)
    #expect(listing.output.hasPrefix(folder + ": ") && listing.status == 0)
    let cleared = try Command.run(["cache", "--folder", folder, "--clear"])
    #expect(cleared.status == 0 && cleared.output.contains("removed"))
    #expect(access(folder + "/" + file, F_OK) != 0)
  }

  private static func damage(_ path: String) throws {
    let file = open(path, O_RDWR | O_CLOEXEC)
    try #require(file >= 0)
    defer { close(file) }
    let size = lseek(file, 0, SEEK_END)
    for position in stride(from: size / 2, to: size, by: 997) {
      var byte: UInt8 = 0
      pread(file, &byte, 1, position)
      byte ^= 0x10
      pwrite(file, &byte, 1, position)
    }
  }

  private func bootTranslated(_ cpus: Int, _ arguments: [String]) throws -> Command.Result {
    let result = try boot(
      "vmlinuz-cloud-amd64", ["--cpus", "\(cpus)", "--pcpus", "\(cpus)", "--stats"] + arguments)
    #expect(
      result.output.contains("MARTLET-GUEST-READY cpus=\(cpus)"), "\(result.output.suffix(2000))")
    #expect(result.status == 0, "\(result.errors)")
    return result
  }

  /// The figure of one line of `--stats`.
  private static func count(_ name: String, in result: Command.Result) throws -> Int {
    let line = result.errorLines.first {
      $0.drop { $0 == " " }.hasPrefix(name + ": ")
    }
    return try #require(line.flatMap { Int($0.drop { $0 != ":" }.dropFirst(2)) }, "\(name)")
  }

  /// With the watchdog, which guests of a KVM switch off by themselves, a cycle counter runs for
  /// ever.
  @Test func linuxFindsTheCounters() throws {
    let result = try boot("vmlinuz-cloud-amd64", [], append: "nmi_watchdog=1")
    #expect(result.output.contains("full-width counters, Intel PMU driver."))
    #expect(result.output.contains("NMI watchdog: Enabled."))
    #expect(result.output.contains("MARTLET-GUEST-READY") && result.status == 0)
  }

  @Test func aRestartIsSeen() throws {
    let result = try boot(
      "vmlinuz-cloud-amd64", ["--on-reboot", "exit"], append: "martlet.reboot")
    #expect(result.output.contains("MARTLET-GUEST-READY") && result.status == 8)
  }
}
