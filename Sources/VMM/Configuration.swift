// SPDX-License-Identifier: Apache-2.0
//
// The user's configuration of a machine, checked as far as possible without opening anything.

import Devices
import Glibc
import LinuxBoot
import SystemPackage
import X86

/// The engines that a user can select.
package enum EngineChoice: String, Sendable, CaseIterable {
  case auto
  case soft
  case kvm
}

/// The effect of a guest's reboot.
package enum RebootAction: String, Sendable, CaseIterable {
  case restart
  case exit
}

/// A machine to run.
package struct Configuration: Sendable {
  package var kernel: String?
  package var initrd: String?
  package var append = ""
  /// The firmware that boots the disks; nil: a kernel is given, or the built-in guest runs.
  package var firmware: FirmwareChoice?
  /// The monitor decompresses a compressed kernel if possible, instead of the guest.
  package var decompresses = true
  /// Bytes.
  package var memory = 512 << 20
  package var processors = 1
  /// Physical CPUs of the software engine; nil: as many as the host has.
  package var physicalProcessors: Int?
  /// The vendor of the software engine's processors; nil: the host's vendor.
  package var vendor: SiliconVendor?
  /// The software engine translates hot code.
  package var translates = false
  /// Thresholds and code memory of the translator; nil: its defaults. See
  /// `Configuration+Translator.swift`.
  package var translatorThreshold: UInt32?
  package var translatorHotEntries: Int32?
  package var translatorCodeBytes: Int?
  /// Whether translated code's accesses are harmless when the host mispredicts.
  package var guardsSpeculation = true
  /// Whether translated code's accesses are compared with a page walk, for tests.
  package var verifiesAccesses = false
  /// Where translations are kept between runs; nil: nowhere.
  package var translationCache: TranslationCache?
  /// Descriptors of the translator's reports: guest and host code, and names for `perf`.
  package var translationListing: Int32?
  package var perfMap: Int32?
  package var disks: [DiskConfiguration] = []
  package var network: NetworkConfiguration?
  /// The terminal is the virtio console instead of the serial port.
  package var usesVirtioConsole = false
  /// Named ports of the virtio console.
  package var ports: [PortConfiguration] = []
  /// The guest has a source of random bytes.
  package var hasEntropy = false
  /// Sockets between guest and host.
  package var sockets: VsockConfiguration?
  package var balloon: BalloonConfiguration?
  package var onReboot = RebootAction.restart
  /// Seconds that a guest has for powering off after SIGTERM; 0: none.
  package var shutdownTime = 30
  package var engine = EngineChoice.auto
  package var statistics = false

  /// The kernel's command line before the user's own text.
  package static let defaultCommandLine = "console=ttyS0"
  package static let virtioCommandLine = "console=hvc0"
  /// Limit of 8-bit APIC identifiers.
  package static let maximumProcessors = 254
  /// Limit of the software engine's physical CPUs.
  package static let maximumPhysicalProcessors = 64

  package init() {}

  /// Address space that a run may need in addition to what is mapped when the guest starts, with a
  /// large margin: it stops run-away allocation. Threads' stacks and heaps, code memories, tables
  /// by the size of guest memory.
  package var addressReserve: UInt64 {
    let physical =
      physicalProcessors
      ?? min(Self.maximumPhysicalProcessors, sysconf(Int32(_SC_NPROCESSORS_ONLN)))
    return (2 << 30) + UInt64(processors) * (192 << 20) + UInt64(max(physical, 1)) * (1 << 30)
      + UInt64(memory) / 4
  }

  /// The kernel's command line.
  package var commandLine: String {
    let console = usesVirtioConsole ? Self.virtioCommandLine : Self.defaultCommandLine
    return append.isEmpty ? console : console + " " + append
  }
}

extension Configuration {
  /// Sets the memory from text such as "512M", "2G", "65536K"; a bare number counts MiB.
  package mutating func setMemory(_ text: String) throws(RunError) {
    guard let size = Self.bytes(text) else {
      throw RunError("--memory \(text): not a size; write it like 512M or 2G")
    }
    let bytes = size & ~4095
    guard bytes >= GuestMap.minimumMemory else {
      throw RunError(
        "--memory \(text): too small; give at least \(GuestMap.minimumMemory >> 20)M")
    }
    let limit = min(GuestMap.maximumMemory, Self.hostMemory)
    guard bytes <= limit else {
      throw RunError(
        "--memory \(text): over the limit, this machine has \(limit >> 20)M; give less")
    }
    memory = bytes
  }

  /// Bytes, from text such as "512M", "2G", "65536K"; a bare number counts MiB. nil where it is no
  /// size.
  static func bytes(_ text: String) -> Int? {
    let units = ["K": 10, "M": 20, "G": 30, "T": 40]
    // Some letters are two in upper case, so that no Character can be made of them.
    let shift = text.last.flatMap { units[$0.uppercased()] }
    let digits = shift == nil ? text[...] : text.dropLast()
    guard let number = Int(digits), number >= 0, number <= Int.max >> (shift ?? 20) else {
      return nil
    }
    return number << (shift ?? 20)
  }

  /// Bytes of memory of this machine.
  package static var hostMemory: Int {
    sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
  }

  /// Sets the number of CPUs.
  package mutating func setProcessors(_ text: String) throws(RunError) {
    guard let number = Int(text), (1...Self.maximumProcessors).contains(number) else {
      throw RunError("--cpus \(text): give a number from 1 to \(Self.maximumProcessors)")
    }
    processors = number
  }

  /// Sets the number of physical CPUs of the software engine.
  package mutating func setPhysicalProcessors(_ text: String) throws(RunError) {
    guard let number = Int(text), (1...Self.maximumPhysicalProcessors).contains(number) else {
      throw RunError("--pcpus \(text): give a number from 1 to \(Self.maximumPhysicalProcessors)")
    }
    physicalProcessors = number
  }

  /// Sets the disks from texts such as "debian.img,readonly=on".
  package mutating func setDisks(_ texts: [String]) throws(RunError) {
    guard texts.count <= DiskConfiguration.maximumCount else {
      throw RunError("--disk: more than \(DiskConfiguration.maximumCount); give fewer")
    }
    disks = try texts.map { (text) throws(RunError) in try DiskConfiguration(text) }
  }

  /// Selects who decompresses a compressed kernel.
  package mutating func setDecompression(_ text: String) throws(RunError) {
    switch text {
    case "host": decompresses = true
    case "guest": decompresses = false
    default: throw RunError("--decompress \(text): give host or guest")
    }
  }

  /// Lists translations in a file; "-" is standard error. An existing file is overwritten.
  package mutating func setTranslationListing(_ path: String) throws(RunError) {
    if path == "-" {
      translationListing = STDERR_FILENO
    } else {
      translationListing = try Self.create(path, option: "--print-translations \(path)")
    }
  }

  /// Writes names of translated code to `perf`'s map file.
  package mutating func setPerfMap() throws(RunError) {
    perfMap = try Self.create(
      "/tmp/perf-\(getpid()).map", option: "--perf-map", flags: O_NOFOLLOW)
  }

  /// A new file, open for as long as the program runs.
  private static func create(
    _ path: String, option: String, flags: Int32 = 0
  ) throws(RunError) -> Int32 {
    let descriptor = unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | flags, 0o644)
    guard descriptor >= 0 else {
      throw RunError("\(option): cannot write \(path): \(Errno(rawValue: errno))")
    }
    return descriptor
  }

  /// Sets the vendor by its name.
  package mutating func setVendor(_ text: String) throws(RunError) {
    guard let choice = SiliconVendor(rawValue: text) else {
      throw RunError("--vendor \(text): unknown vendor; give intel or amd")
    }
    vendor = choice
  }

  /// Sets the firmware: by name, by file, or the default for disks without a kernel.
  package mutating func setFirmware(_ text: String?) throws(RunError) {
    guard let text else {
      if kernel == nil, initrd == nil, !disks.isEmpty { firmware = .automatic }
      return
    }
    if kernel != nil {
      throw RunError("--firmware \(text): boots a disk's own kernel; leave out --kernel")
    }
    firmware = try FirmwareChoice(text)
  }

  /// Sets the effect of a reboot.
  package mutating func setRebootAction(_ text: String) throws(RunError) {
    guard let action = RebootAction(rawValue: text) else {
      throw RunError("--on-reboot \(text): give restart or exit")
    }
    onReboot = action
  }

  /// Sets the guest's device for the terminal.
  package mutating func setConsole(_ text: String) throws(RunError) {
    switch text {
    case "serial": usesVirtioConsole = false
    case "virtio": usesVirtioConsole = true
    default: throw RunError("--console \(text): give serial or virtio")
    }
  }

  /// Sets the ports of the virtio console.
  package mutating func setPorts(_ texts: [String]) throws(RunError) {
    guard texts.count < ConsoleDevice.maximumPorts else {
      throw RunError("--port: more than \(ConsoleDevice.maximumPorts - 1); give fewer")
    }
    ports = try texts.map { (text) throws(RunError) in try PortConfiguration(text) }
    guard Set(ports.map(\.name)).count == ports.count else {
      throw RunError("--port: two of the same name; give each its own")
    }
  }

  /// Sets how long a guest may take to power off after SIGTERM.
  package mutating func setShutdownTime(_ text: String) throws(RunError) {
    guard let number = Int(text), (0...3600).contains(number) else {
      throw RunError("--shutdown-time \(text): give seconds, 0 to 3600")
    }
    shutdownTime = number
  }

  /// Sets the engine by its name.
  package mutating func setEngine(_ text: String) throws(RunError) {
    guard let choice = EngineChoice(rawValue: text) else {
      throw RunError("--engine \(text): unknown engine; give auto, soft or kvm")
    }
    engine = choice
  }
}
