// SPDX-License-Identifier: Apache-2.0
//
// The command line: options, their help, and the wiring of engine, sandbox and machine. Help,
// manual pages and completions are generated from the declarations here.

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
    version: "martlet \(version)",
    subcommands: [
      Run.self, KVMCommand.self, DoctorCommand.self, CacheCommand.self, ConnectSockets.self,
    ])

  /// The engines of this program.
  static let engines = EngineSupply { (configuration) throws(Errno) in
    let transport = try LoopbackTransport(
      physicalCPUs: configuration.physicalProcessors, silicon: configuration.vendor,
      translates: configuration.translates,
      threshold: configuration.translatorThreshold,
      hotEntries: configuration.translatorHotEntries,
      codeBytes: configuration.translatorCodeBytes,
      guardsSpeculation: configuration.guardsSpeculation,
      verifiesAccesses: configuration.verifiesAccesses,
      listing: configuration.translationListing, perfMap: configuration.perfMap,
      store: configuration.translationCache.map { (path: $0.path, limit: $0.limit) },
      measures: configuration.statistics, warn: Diagnostics.warn)
    if let problem = transport.storeProblem { say(problem) }
    return transport
  }

  /// The newest heading of CHANGELOG.md.
  static let version = "unreleased"
  /// Name, version and build, for crash reports.
  static let description = "martlet \(version), \(isDebug ? "debug" : "release") build"
  private static var isDebug: Bool {
    #if DEBUG
      true
    #else
      false
    #endif
  }

  static func main() {
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch {
      end(error)
    }
  }

  /// The parser's own `main` prints "Error:" and the usage in several lines; here an error is one
  /// line that begins with the program's name.
  private static func end(_ error: any Error) -> Never {
    let code = exitCode(for: error)
    if code == .success {
      print(fullMessage(for: error))
    } else {
      let message = message(for: error).split(separator: "\n").joined(separator: " ")
      if !message.isEmpty { say(code == .validationFailure ? "\(message)\(helpHint)" : message) }
    }
    exit(withError: code)
  }

  private static var helpHint: String {
    let names = configuration.subcommands.compactMap { $0.configuration.commandName }
    let command = CommandLine.arguments.dropFirst().first.flatMap { names.contains($0) ? $0 : nil }
    return "; see 'martlet \(command.map { $0 + " " } ?? "")--help'"
  }

  /// One line on standard error.
  static func say(_ text: String) { writeText(STDERR_FILENO, "martlet: \(text)\n") }
}

/// README.md has the same options in a table; `DocumentTests` compares them.
struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run",
    abstract: "Runs a machine with its serial port on this terminal.",
    discussion: """
      Ctrl-A X quits, Ctrl-A H lists the keys. The exit status is 0 if the guest powers off or the \
      user quits, odd if the guest writes to the debug-exit port (2*value+1), 2 for unusable \
      input, 4 if the guest crashes, 6 if it halts with interrupts off, 8 if it reboots with --on-reboot exit, 10 if the \
      engine fails, 64 for an unknown option, and 128+n if signal n ends the run.
      """)

  @Option(
    help: ArgumentHelp(
      "Linux kernel: a bzImage, or an ELF vmlinux with a PVH note. (default: the built-in guest)",
      valueName: "file"), completion: .file())
  var kernel: String?

  @Option(
    help: ArgumentHelp("Initial RAM disk. (default: none)", valueName: "file"), completion: .file())
  var initrd: String?

  @Option(
    help: ArgumentHelp(
      "Disk: a qcow2 image, a file with the bytes of a disk, or a block device; the file's start "
        + "says which, unless format=raw or format=qcow2 does. Can be given several times; the "
        + "guest's drivers find them by virtio as /dev/vda and on. readonly keeps the guest from "
        + "writing; with overlay=temporary it writes to a temporary file instead, which is deleted "
        + "at the end; snapshot=NAME shows an internal snapshot. If the host has no room for what is "
        + "written, the guest is paused until it has; with on-full=error it gets an error. Images are locked while the "
        + "machine runs; a comma in a name is written twice.",
      valueName: "file[,option...]"), completion: .file())
  var disk: [String] = []

  @Option(
    help: ArgumentHelp(
      "What boots a disk: bios is SeaBIOS, uefi is OVMF, whose variables are kept in a file with "
        + "vars=FILE, which is made if it is not there; or a file with a BIOS. (default: with a disk "
        + "and no kernel, uefi if only that can boot the disk, otherwise bios)",
      valueName: "bios|uefi[,vars=file]|file"), completion: .file())
  var firmware: String?

  @Option(
    help: ArgumentHelp(
      "Network: user (connections of this host, without privileges, by passt) or none. "
        + "mac=ADDRESS is the card's; host=on lets the guest reach this host at the gateway "
        + "10.0.2.2; publish=8080:80, once or several times, leads the host's port 8080 to the "
        + "guest's port 80.",
      valueName: "user[,option=value...]|none"))
  var net = "none"

  @Option(
    help: ArgumentHelp(
      "What this terminal is to the guest: its serial port, or virtio's console (hvc0 in Linux), "
        + "which is faster and follows the terminal's size. With virtio the kernel's command line "
        + "begins with console=hvc0, and what the guest sends to the serial port is shown, too.",
      valueName: "serial|virtio"), completion: .list(["serial", "virtio"]))
  var console = "serial"

  @Option(
    help: ArgumentHelp(
      "A port of virtio's console with a name, which Linux has in /dev/virtio-ports, and a Unix "
        + "socket of this host that leads to it, for one client at a time. Can be given several times.",
      valueName: "name=socket"))
  var port: [String] = []

  @Flag(help: "Give the guest the host's random bytes (virtio-rng).")
  var rng = false

  @Option(
    help: ArgumentHelp(
      "Stream sockets between host and guest (virtio-vsock). The guest has the address cid, otherwise "
        + "3. A program of the host connects to the Unix socket and writes CONNECT PORT for a port of "
        + "the guest; when the guest connects to port N of address 2, it reaches who listens at the "
        + "path with _N behind it.",
      valueName: "[cid=n,]path=socket"))
  var vsock: String?

  @Option(
    help: ArgumentHelp(
      "Memory balloon: free pages of the guest go back to the host, unless reporting=off. With "
        + "target=SIZE the guest is asked to give the rest of its memory away; it takes some back "
        + "before it ends a program for lack of memory, unless deflate-on-oom=off. --stats prints "
        + "its figures.",
      valueName: "on|option=value[,...]"))
  var balloon: String?

  @Option(
    help: ArgumentHelp(
      "Text to add to the kernel's command line, which begins with console=ttyS0.",
      valueName: "text"))
  var append = ""

  @Option(
    help: ArgumentHelp(
      "Who decompresses a bzImage. host is faster, and places the kernel at a random address unless "
        + "the command line says nokaslr; guest is the fallback when the host cannot decompress.",
      valueName: "host|guest"), completion: .list(["host", "guest"]))
  var decompress = "host"

  @Option(
    help: ArgumentHelp(
      "Guest memory, with a suffix K, M, G or T; a bare number counts MiB.", valueName: "size"))
  var memory = "512M"

  @Option(help: Run.count("Virtual CPUs, 1 to 254."))
  var cpus = "1"

  @Option(
    help: Run.count("Physical CPUs of the software engine, 1 to 64. (default: the host's)"))
  var pcpus: String?

  @Option(
    help: ArgumentHelp(
      "Whose processor the software engine has: intel with VT-x, amd with SVM. "
        + "(default: the host's)",
      valueName: "intel|amd"), completion: .list(["intel", "amd"]))
  var vendor: String?

  @Option(
    help: ArgumentHelp(
      "What a reboot of the guest does: restart the machine, or exit.",
      valueName: "restart|exit"), completion: .list(["restart", "exit"]))
  var onReboot = "restart"

  @Option(
    help: ArgumentHelp(
      "Seconds that the guest has to power off after SIGTERM, which presses its power button, 0 to "
        + "3600. A guest that does not look for the button is ended at once, and so is any by a "
        + "second SIGTERM.",
      valueName: "seconds"))
  var shutdownTime = "30"

  @Option(
    help: ArgumentHelp(
      "What runs the guest: soft is the software KVM, kvm the kernel's, auto chooses by measuring.",
      valueName: "auto|soft|kvm"), completion: .list(["auto", "soft", "kvm"]))
  var engine = "auto"

  @Option(
    help: ArgumentHelp(
      "Translate hot guest code to host code (software engine).", valueName: "on|off"),
    completion: .onOff)
  var translator = "on"

  @Option(
    help: Run.count("Translate a block after it has run this many times. (default: 8)"))
  var translatorThreshold: String?

  @Option(
    help: Run.count(
      "Translate a block again, with its hot successors, after this many entries. (default: 2000)"))
  var translatorHotEntries: String?

  @Option(
    help: ArgumentHelp(
      "Memory for translated code per physical CPU, 64K to 512M. When it is full, all code is "
        + "dropped. (default: 128M)",
      valueName: "size"))
  var translatorCodeSize: String?

  @Option(
    help: ArgumentHelp(
      "Keep translated code from run to run, so that the same programs start faster the next time: "
        + "on keeps it in martlet in $XDG_CACHE_HOME or ~/.cache, up to size=256M. A folder must be "
        + "this user's alone; docs/security.md says what is trusted.",
      valueName: "on|off|folder[,size=n]"), completion: .directory)
  var translationCache = "off"

  @Option(
    help: ArgumentHelp(
      "Protect the program's memory from speculative reads in translated code. With off, a guest "
        + "can learn what is in it; docs/security.md has the cost.",
      valueName: "on|off"), completion: .onOff)
  var speculationGuard = "on"

  @Flag(
    help:
      "Check accesses that skip the TLB lookup against the page tables. Slow; tests the translator."
  )
  var verifyAccesses = false

  @Option(
    help: ArgumentHelp(
      "Lowest level of diagnostics on standard error: trace (every exit to user space), debug, "
        + "info, notice, warning, error or critical.",
      valueName: "level"), completion: .list(Diagnostics.levels))
  var log = Diagnostics.defaultLevel

  @Flag(help: "Print counts and times at the end, on standard error.")
  var stats = false

  @Option(
    help: ArgumentHelp(
      "List guest code and its translation in a file; - is standard error.", valueName: "file"),
    completion: .file())
  var printTranslations: String?

  @Flag(help: "Write the names of translated code to /tmp/perf-PID.map, for perf.")
  var perfMap = false

  @Option(
    help: ArgumentHelp(
      "Give up rights before the guest starts (seccomp, Landlock, limits): on gives up what the "
        + "host supports, required refuses to run if something is missing, off is for debuggers.",
      valueName: "on|required|off"), completion: .list(["on", "required", "off"]))
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
      throw RunError("--misbehave \(misbehave): unknown behaviour")
    }
    let machine = try VirtualMachine.make(configuration, engine: engine)
    Martlet.say(engine.reason)
    let outcome = try machine.run(hooks: hooks)
    if let message = outcome.message { Martlet.say(message) }
    if stats { writeText(STDERR_FILENO, machine.statistics + "\n") }
    return outcome.status
  }

  /// nil with `--sandbox off`.
  private func makeSandbox(
    _ configuration: Configuration, _ engine: Engine
  ) throws(RunError) -> Sandbox? {
    guard ["on", "required", "off"].contains(sandbox) else {
      throw RunError("--sandbox \(sandbox): give on, required or off")
    }
    if sandbox == "off" { return nil }
    let settings = unsafe SandboxSettings(
      usesDevice: engine.isDevice,
      reportDirectory: CrashReporter.reportDirectory,
      addressReserve: configuration.addressReserve)
    let made: Sandbox
    do throws(Errno) {
      made = try Sandbox(settings)
    } catch {
      throw RunError("--sandbox \(sandbox): not available: \(error); give --sandbox off")
    }
    for line in made.missing { Martlet.say("sandbox: \(line)") }
    if sandbox == "required", !made.missing.isEmpty {
      throw RunError("--sandbox required: parts of it are missing; give --sandbox on")
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
    try configuration.setFirmware(firmware)
    configuration.network = try NetworkConfiguration.parse(net)
    configuration.hasEntropy = rng
    if let vsock { configuration.sockets = try VsockConfiguration(vsock) }
    if let balloon {
      configuration.balloon = try BalloonConfiguration(balloon, memory: configuration.memory)
    }
    try configuration.setConsole(console)
    try configuration.setPorts(port)
    if let vendor { try configuration.setVendor(vendor) }
    if let pcpus { try configuration.setPhysicalProcessors(pcpus) }
    try configuration.setRebootAction(onReboot)
    try configuration.setShutdownTime(shutdownTime)
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
    try configuration.setTranslationCache(translationCache)
    if let translatorThreshold { try configuration.setTranslatorThreshold(translatorThreshold) }
    if let translatorHotEntries { try configuration.setTranslatorHotEntries(translatorHotEntries) }
    if let translatorCodeSize { try configuration.setTranslatorCodeSize(translatorCodeSize) }
  }

  private static func count(_ text: String) -> ArgumentHelp { ArgumentHelp(text, valueName: "n") }
}

/// What a monitor starts for `--vsock`; nobody else does.
struct ConnectSockets: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: SocketConnector.command,
    abstract: "Connects to Unix sockets for a machine that is confined.", shouldDisplay: false)

  @Argument(help: .hidden) var base: String

  func run() { SocketConnector.serve(base: base) }
}

extension CompletionKind {
  static var onOff: CompletionKind { .list(["on", "off"]) }
}
