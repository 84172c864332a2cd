// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CHost
import Defence
import Glibc
import Host
import KVMLoopback
import SystemPackage
import VMM

@main
struct Martlet: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "martlet",
    abstract: "Runs virtual machines, with or without hardware virtualization.",
    subcommands: [Run.self, KVMCommand.self, DoctorCommand.self])

  /// The engines of this program.
  static let engines = EngineSupply { (configuration) throws(Errno) in
    try LoopbackTransport(
      physicalCPUs: configuration.physicalProcessors, translates: configuration.translates,
      threshold: configuration.translatorThreshold,
      hotEntries: configuration.translatorHotEntries,
      codeBytes: configuration.translatorCodeBytes,
      guardsSpeculation: configuration.guardsSpeculation,
      verifiesAccesses: configuration.verifiesAccesses,
      listing: configuration.translationListing, perfMap: configuration.perfMap,
      measures: configuration.statistics)
  }

  /// Name and version, for crash reports.
  static let version = "unreleased"
  static let description = "martlet \(version), \(isDebug ? "debug" : "release") build"
  private static var isDebug: Bool {
    #if DEBUG
      true
    #else
      false
    #endif
  }

  /// One line on standard error.
  static func say(_ text: String) { writeText(STDERR_FILENO, "martlet: \(text)\n") }
}

struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run",
    abstract: "Starts a machine with its serial port on this terminal.",
    discussion: """
      Ctrl-A X quits, Ctrl-A H lists the keys. The exit status is 0 when the guest powers off or \
      the user quits, the guest's own (odd) status when it writes to the debug-exit port, 2 for \
      unusable input, 4 when the guest crashes, 6 when it halts for ever, 8 when it asks for a \
      restart, 10 when the engine fails, 128 and the number for a signal.
      """)

  @Option(help: "Linux kernel: a bzImage, or an ELF vmlinux with a PVH note.")
  var kernel: String?

  @Option(help: "Initial RAM disk.")
  var initrd: String?

  @Option(
    help: ArgumentHelp(
      "Disk: a file with the bytes of a disk, or a block device. Can be given several times.",
      discussion: "The guest's drivers find it by virtio (/dev/vda and on).",
      valueName: "file[,readonly=on]"))
  var disk: [String] = []

  @Option(
    help: ArgumentHelp(
      "Network: user (connections of this host, without privileges, by passt) or none.",
      discussion:
        "mac=ADDRESS is the card's; host=on lets the guest reach this host at the gateway 10.0.2.2; "
        + "publish=8080:80, once or several times, leads the host's port 8080 to the guest's port 80.",
      valueName: "user[,option=value...]|none"))
  var net = "none"

  @Flag(help: "Give the guest the host's random bytes (virtio-rng).")
  var rng = false

  @Option(help: "Text to add to the kernel's command line, which begins with console=ttyS0.")
  var append = ""

  @Option(help: "Who decompresses a bzImage: host (faster, where it can) or guest.")
  var decompress = "host"

  @Option(help: "Memory, with a suffix K, M, G or T.")
  var memory = "512M"

  @Option(help: "Virtual CPUs.")
  var cpus = "1"

  @Option(help: "Physical CPUs of the software engine (default: the host's).")
  var pcpus: String?

  @Option(help: "What runs the guest: auto, soft (the software KVM) or kvm (the kernel's).")
  var engine = "auto"

  @Option(help: "Translate hot guest code to host code (software engine): on or off.")
  var translator = "on"

  @Option(help: Run.count("Translate a block when it has run this often (default: 32)."))
  var translatorThreshold: String?

  @Option(
    help: Run.count(
      "Translate a block with those that follow it when it was entered this often (default: 2000).")
  )
  var translatorHotEntries: String?

  @Option(
    help: ArgumentHelp(
      "Memory for translated code of each physical CPU, 64K to 512M; all code is dropped when it "
        + "is full (default: 128M).",
      valueName: "size"))
  var translatorCodeSize: String?

  @Option(
    help: ArgumentHelp(
      "Make what the host executes by a wrong guess harmless in translated code: on or off.",
      discussion: "Off, a guest can learn what is in this program's memory."))
  var speculationGuard = "on"

  @Flag(
    help: ArgumentHelp(
      "Compare the accesses of translated code that do without a look at the TLB with a walk of the "
        + "page tables; --stats counts them.",
      discussion: "For tests of the translator: slow."))
  var verifyAccesses = false

  @Option(
    help: "Least level of diagnostics on standard error: trace (every exit), debug, ... critical.")
  var log = Diagnostics.defaultLevel

  @Flag(help: "Print counts and times at the end.")
  var stats = false

  @Option(
    help: ArgumentHelp(
      "List guest code and the host code made of it in a file (-: standard error).",
      valueName: "file"))
  var printTranslations: String?

  @Flag(help: "Write names of translated code to /tmp/perf-PID.map, where perf looks for them.")
  var perfMap = false

  @Option(
    help: ArgumentHelp(
      "Give away what a guest that takes this program over could use: on (what the host offers), "
        + "required (all of it, or no run) or off (for debuggers).",
      valueName: "on|required|off"))
  var sandbox = "on"

  @Option(help: .hidden)
  var misbehave: String?

  func run() throws {
    let status: Int32
    do throws(RunError) {
      status = try runMachine()
    } catch {
      Martlet.say(error.description)
      throw ExitCode(error.status)
    }
    if status != ExitStatus.success { throw ExitCode(status) }
  }

  private func runMachine() throws(RunError) -> Int32 {
    RawTerminal.prepare()
    CrashReporter.install(program: Martlet.description)
    try Diagnostics.start(level: log)
    let configuration = try makeConfiguration()
    let engine = try Martlet.engines.choose(configuration)
    var hooks = RunHooks()
    let sandbox = try makeSandbox(configuration, engine)
    HostThread.atStart { name in
      VirtualMachine.blockSignals()
      CrashReporter.prepareThread()
      sandbox?.confineThread(name)
    }
    if let sandbox {
      hooks.confine = { () throws(Errno) in try sandbox.confineMain() }
    }
    if let misbehave, !Misbehaviour.plan(misbehave, &hooks) {
      throw RunError("--misbehave \(misbehave): unknown")
    }
    let machine = try VirtualMachine.make(configuration, engine: engine)
    Martlet.say(engine.reason)
    let outcome = try machine.run(hooks: hooks)
    if let message = outcome.message { Martlet.say(message) }
    if stats { writeText(STDERR_FILENO, machine.statistics + "\n") }
    return outcome.status
  }

  /// nil where none is wanted.
  private func makeSandbox(
    _ configuration: Configuration, _ engine: Engine
  ) throws(RunError) -> Sandbox? {
    guard ["on", "required", "off"].contains(sandbox) else {
      throw RunError("--sandbox \(sandbox): give on, required or off")
    }
    if sandbox == "off" { return nil }
    let settings = SandboxSettings(
      usesDevice: engine.isDevice,
      reportDirectory: CrashReporter.reportDirectory,
      addressReserve: configuration.addressReserve)
    let made: Sandbox
    do throws(Errno) {
      made = try Sandbox(settings)
    } catch {
      throw RunError("--sandbox \(sandbox): cannot be had: \(error); give --sandbox off")
    }
    for line in made.missing { Martlet.say("sandbox: \(line)") }
    if sandbox == "required", !made.missing.isEmpty {
      throw RunError("--sandbox required: not all of it is there")
    }
    return made
  }

  private func makeConfiguration() throws(RunError) -> Configuration {
    var configuration = Configuration()
    configuration.kernel = kernel
    configuration.initrd = initrd
    configuration.append = append
    configuration.statistics = stats
    try configuration.setDecompression(decompress)
    try configuration.setMemory(memory)
    try configuration.setProcessors(cpus)
    try configuration.setDisks(disk)
    configuration.network = try NetworkConfiguration.parse(net)
    configuration.hasEntropy = rng
    if let pcpus { try configuration.setPhysicalProcessors(pcpus) }
    try configuration.setEngine(engine)
    try setTranslator(&configuration)
    if let printTranslations { try configuration.setTranslationListing(printTranslations) }
    if perfMap { try configuration.setPerfMap() }
    return configuration
  }

  private func setTranslator(_ configuration: inout Configuration) throws(RunError) {
    try configuration.setTranslator(translator)
    try configuration.setSpeculationGuard(speculationGuard)
    configuration.verifiesAccesses = verifyAccesses
    if let translatorThreshold { try configuration.setTranslatorThreshold(translatorThreshold) }
    if let translatorHotEntries { try configuration.setTranslatorHotEntries(translatorHotEntries) }
    if let translatorCodeSize { try configuration.setTranslatorCodeSize(translatorCodeSize) }
  }

  private static func count(_ text: String) -> ArgumentHelp { ArgumentHelp(text, valueName: "n") }
}

struct DoctorCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor",
    abstract: "Tells what this machine offers, which engine a run would take, and what to mend.")

  func run() {
    for line in Doctor(Martlet.engines).report() + Sandbox.offers { print(line) }
  }
}
