// SPDX-License-Identifier: Apache-2.0
//
// Texts of options: what they are read as, and that each bad one is named in the error; and
// which engine is taken where a device is missing.

import Devices
import KVMClient
import SystemPackage
import Testing
import VMM

@Suite struct ConfigurationTests {
  @Test(arguments: [
    ("512M", 512 << 20), ("1G", 1 << 30), ("65536K", 64 << 20), ("64", 64 << 20), ("1g", 1 << 30),
  ])
  func sizesHaveSuffixes(text: String, bytes: Int) throws {
    var configuration = Configuration()
    try configuration.setMemory(text)
    #expect(configuration.memory == bytes)
  }

  @Test(arguments: [
    "", "M", "-1M", "12X", "1.5G", "0", "1M", "999999999T", "9223372036854775807", "100T",
    // Two letters in upper case.
    "512ß", "ﬁ",
  ])
  func badSizesAreNamed(text: String) {
    var configuration = Configuration()
    let error = #expect(throws: RunError.self) { try configuration.setMemory(text) }
    #expect(error?.description.hasPrefix("--memory \(text): ") == true && error?.status == 2)
  }

  @Test func disksHaveOptions() throws {
    var configuration = Configuration()
    try configuration.setDisks(["a.img", "b,,c.img,readonly=on", "d,readonly=off"])
    #expect(configuration.disks.map(\.path) == ["a.img", "b,c.img", "d"])
    #expect(configuration.disks.map(\.isReadOnly) == [false, true, false])
    let texts = ["a,readonly", "a,format=qcow2,overlay=temporary", "a,snapshot=b c"]
    try configuration.setDisks(texts)
    let options = configuration.disks.map(\.options)
    #expect(options.map(\.isReadOnly) == [true, false, true])
    #expect(options.map(\.format) == [nil, .qcow2, nil] && options[2].snapshot == "b c")
    #expect(options.map { $0.overlayFolder != nil } == [false, true, false])
    try configuration.setDisks(["a,on-full=error", "b,on-full=pause", "c"])
    #expect(configuration.disks.map(\.pausesWhenFull) == [false, true, true])
  }

  @Test func socketsHaveAddressAndPath() throws {
    let given = try VsockConfiguration("cid=7,path=/run/a=b.sock")
    #expect(given.address == 7 && given.path == "/run/a=b.sock")
    #expect(try VsockConfiguration("path=a").address == 3)
  }

  @Test(arguments: [
    "", "cid=3", "path=", "cid=2,path=a", "cid=4294967295,path=a", "cid=x,path=a", "path=a,port=1",
    "path=" + String(repeating: "a", count: 100),
  ])
  func badSocketsAreNamed(text: String) {
    let error = #expect(throws: RunError.self) { _ = try VsockConfiguration(text) }
    #expect(error?.description.hasPrefix("--vsock \(text): ") == true && error?.status == 2)
  }

  @Test func balloonsHaveOptions() throws {
    func options(_ text: String) throws -> BalloonDevice.Options {
      try BalloonConfiguration(text, memory: 512 << 20).options
    }
    #expect(try options("on") == BalloonDevice.Options())
    let all = try options("target=128M,deflate-on-oom=off,reporting=off")
    #expect(all.size == 384 << 20 && !all.deflatesWhenShort && !all.reportsFreePages)
    #expect(try options("target=512").size == 0)
  }

  @Test(arguments: [
    "", "off", "target=", "target=0", "target=513M", "target=-1", "reporting", "deflate-on-oom=1",
    "target=1M,",
  ])
  func badBalloonsAreNamed(text: String) {
    let error = #expect(throws: RunError.self) {
      _ = try BalloonConfiguration(text, memory: 512 << 20)
    }
    #expect(error?.description.hasPrefix("--balloon \(text): ") == true && error?.status == 2)
  }

  @Test(arguments: [
    "", ",readonly=on", "a,readonly=1", "a,", "a,b", "a,format=vmdk", "a,overlay=on", "a,on-full",
    "a,on-full=stop",
  ])
  func badDisksAreNamed(text: String) {
    var configuration = Configuration()
    let error = #expect(throws: RunError.self) { try configuration.setDisks([text]) }
    #expect(error?.description.hasPrefix("--disk \(text): ") == true && error?.status == 2)
    #expect(throws: RunError.self) {
      try configuration.setDisks([String](repeating: "a", count: 32))
    }
  }

  @Test func firmwareIsNamed() throws {
    var configuration = Configuration()
    func set(_ text: String?) throws -> FirmwareChoice? {
      try configuration.setFirmware(text)
      return configuration.firmware
    }
    #expect(try set(nil) == nil && set("bios") == .bios && set("a,b") == .file("a,b"))
    #expect(try set("uefi") == .uefi(variables: nil))
    #expect(try set("uefi,vars=a,,b") == .uefi(variables: "a,b"))
    try configuration.setDisks(["a"])
    #expect(try set(nil) == .automatic)
    for text in ["", "uefi,", "uefi,vars=", "uefi,code=a"] {
      #expect(throws: RunError.self) { try configuration.setFirmware(text) }
    }
  }

  @Test func networksHaveOptions() throws {
    #expect(try NetworkConfiguration.parse("none") == nil)
    let plain = try #require(try NetworkConfiguration.parse("user"))
    #expect(plain.address.bytes == [0x52, 0x54, 0, 0x12, 0x34, 0x56] && !plain.reachesHost)
    let full = try #require(
      try NetworkConfiguration.parse(
        "user,host=on,publish=8080:80,publish=22,mac=02:00:00:0a:0B:ff"))
    #expect(full.reachesHost && full.address.bytes == [2, 0, 0, 10, 11, 255])
    #expect(full.published.map(\.host) == [8080, 22] && full.published.map(\.guest) == [80, 22])
  }

  @Test(arguments: [
    "", "tap", "none,host=on", "user,", "user,host", "user,mac=1:2:3:4:5:6",
    "user,mac=03:00:00:00:00:00",
    "user,publish=0", "user,publish=65536", "user,publish=1:2:3", "user,publish=",
    "user,publish=a:b",
  ])
  func badNetworksAreNamed(text: String) {
    let error = #expect(throws: RunError.self) { try NetworkConfiguration.parse(text) }
    #expect(error?.description.hasPrefix("--net \(text): ") == true && error?.status == 2)
  }

  @Test(arguments: ["", "K", "0", "63K", "513M", "9223372036854775807M", "-64K", "256ß", "ŉ"])
  func badCodeSizesAreNamed(text: String) {
    var configuration = Configuration()
    let error = #expect(throws: RunError.self) { try configuration.setTranslatorCodeSize(text) }
    #expect(
      error?.description == "--translator-code-size \(text): give a size from 64K to 512M")
  }

  @Test func translationCachesHaveSizes() throws {
    var configuration = Configuration()
    try configuration.setTranslationCache("/a/b,size=64M")
    #expect(configuration.translationCache == TranslationCache(path: "/a/b", limit: 64 << 20))
    try configuration.setTranslationCache("/a/b")
    #expect(configuration.translationCache?.limit == 256 << 20)
    try configuration.setTranslationCache("off")
    #expect(configuration.translationCache == nil)
    try configuration.setTranslationCache("on,size=2G")
    #expect(
      configuration.translationCache
        == TranslationCache.defaultPath.map { TranslationCache(path: $0, limit: 2 << 30) })
  }

  @Test(arguments: [
    "", ",size=1M", "a,size=", "a,size=0", "on,size=17G", "a,size=1K", "a,size=ŉ",
    "a,size=8589934593G",
  ])
  func badTranslationCachesAreNamed(text: String) {
    var configuration = Configuration()
    let error = #expect(throws: RunError.self) { try configuration.setTranslationCache(text) }
    #expect(error?.description.hasPrefix("--translation-cache \(text): give") == true)
  }

  @Test(arguments: ["0", "-1", "255", "x", "", "99999999999999999999"])
  func badProcessorCountsAreNamed(text: String) {
    var configuration = Configuration()
    let error = #expect(throws: RunError.self) { try configuration.setProcessors(text) }
    #expect(error?.description == "--cpus \(text): give a number from 1 to 254")
    #expect(throws: RunError.self) { try configuration.setPhysicalProcessors(text) }
  }

  @Test(arguments: ["", "-1", "3601", "x", "1.5"]) func badTimesAreNamed(text: String) {
    var configuration = Configuration()
    #expect(throws: RunError.self) { try configuration.setShutdownTime(text) }
  }

  @Test func portsHaveNamesAndSockets() throws {
    var configuration = Configuration()
    try configuration.setPorts(["a=/tmp/s=1", "b.c=d"])
    #expect(configuration.ports.map(\.name) == ["a", "b.c"])
    #expect(configuration.ports.map(\.path) == ["/tmp/s=1", "d"])
    let long = String(repeating: "x", count: 120)
    for text in ["", "a", "=b", "a=", "a b=c", "a/b=c", "a=" + long, long + "=a"] {
      #expect(throws: RunError.self) { try configuration.setPorts([text]) }
    }
    #expect(throws: RunError.self) { try configuration.setPorts(["a=b", "a=c"]) }
    #expect(throws: RunError.self) {
      try configuration.setPorts((0..<15).map { "p\($0)=s\($0)" })
    }
    try configuration.setConsole("virtio")
    #expect(configuration.commandLine == "console=hvc0")
    #expect(throws: RunError.self) { try configuration.setConsole("vga") }
  }

  @Test func listingsThatCannotBeWrittenAreNamed() {
    var configuration = Configuration()
    let error = #expect(throws: RunError.self) {
      try configuration.setTranslationListing("/nowhere/listing")
    }
    #expect(
      error?.description.hasPrefix("--print-translations /nowhere/listing: cannot write") == true)
    #expect(configuration.translationListing == nil)
  }

  @Test func theUsersTextIsAdded() {
    var configuration = Configuration()
    #expect(configuration.commandLine == "console=ttyS0")
    configuration.append = "quiet"
    #expect(configuration.commandLine == "console=ttyS0 quiet")
  }
}

@Suite struct EngineSupplyTests {
  private let missing = EngineSupply(
    device: DeviceTransport(path: "/dev/no-kvm"),
    software: { (_: Configuration) throws(Errno) in DeviceTransport(path: "/dev/soft") })

  @Test func aMissingDeviceIsNamed() throws {
    var configuration = Configuration()
    try configuration.setEngine("kvm")
    #expect(
      throws: RunError(
        "--engine kvm: /dev/no-kvm is missing; load the kvm module, or give --engine soft")
    ) {
      _ = try missing.choose(configuration)
    }
    configuration.physicalProcessors = 1
    #expect(throws: RunError.self) { _ = try missing.choose(configuration) }
  }

  @Test func autoTakesTheSoftwareWhereThereIsNoDevice() throws {
    let engine = try missing.choose(Configuration())
    #expect(engine.transport.name == "/dev/soft")
    #expect(engine.reason.contains("/dev/no-kvm is missing"))
  }

  @Test func aProgramWithoutSoftwareSaysSo() throws {
    let supply = EngineSupply(device: DeviceTransport(path: "/dev/no-kvm"), software: nil)
    #expect(throws: RunError.self) { _ = try supply.choose(Configuration()) }
  }
}

@Suite struct EscapeKeysTests {
  @Test func commandsAreSplitFromInput() {
    var keys = EscapeKeys()
    #expect(keys.take([0x61, 1]) == [.input(0x61)])
    #expect(keys.take([1, 0x62]) == [.input(1), .input(0x62)])
    #expect(keys.take([1, UInt8(ascii: "a"), 1, UInt8(ascii: "A")]) == [.input(1), .input(1)])
    #expect(keys.take([1, UInt8(ascii: "h"), 1, UInt8(ascii: "?")]) == [.help, .help])
    #expect(keys.take([1, UInt8(ascii: "z"), 0x63]) == [.input(0x63)])
    #expect(keys.take([1, UInt8(ascii: "x")]) == [.quit])
  }
}
