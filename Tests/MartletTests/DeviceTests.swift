// SPDX-License-Identifier: Apache-2.0
//
// Debian's cloud kernel with its own drivers: on a disk that the host's tools have made and look at
// afterwards, on a network through passt, and on the host's random bytes.

import Glibc
import Host
import HostTestSupport
import KernelFiles
import Testing

@Suite(.serialized) struct DeviceTests {
  private static let initrd = BootGuest.path("initramfs-devices.cpio")

  /// A folder with an ext4 image, and with what is in it.
  private final class Image {
    let folder: String
    let path: String
    /// The hash of the file "data".
    let hash: String

    init() throws {
      var template = Array("/tmp/martlet-disk-XXXXXX".utf8CString)
      folder = try #require(mkdtemp(&template).map { String(cString: $0) })
      path = folder + "/disk.img"
      let busybox = BootGuest.path("busybox")
      try Self.shell(
        """
        mkdir \(folder)/tree && cd \(folder)/tree && cp \(busybox) . &&
        dd if=/dev/urandom of=data bs=64k count=100 2>/dev/null &&
        truncate -s 64M \(path) && mkfs.ext4 -q -d . \(path)
        """)
      hash = String(try Self.shell("sha256sum <\(folder)/tree/data").prefix(64))
    }

    deinit { _ = try? Self.shell("rm -r \(folder)") }

    @discardableResult static func shell(_ line: String) throws -> String {
      let result = try Command.run(
        ["-c", "PATH=$PATH:/usr/sbin:/sbin; \(line)"], path: "/bin/sh")
      try #require(result.status == 0, "\(line): \(result.output)\(result.errors)")
      return result.output
    }

    /// The file system is whole.
    func check() throws { try Self.shell("e2fsck -fn \(path)") }

    /// The hash of a file in the image.
    func hash(of name: String) throws -> String {
      String(try Self.shell("debugfs -R 'cat \(name)' \(path) 2>/dev/null | sha256sum").prefix(64))
    }
  }

  private func arguments(_ task: String, _ disks: [String], _ more: [String]) -> [String] {
    ["run", "--kernel", BootGuest.path("vmlinuz-cloud-amd64"), "--initrd", Self.initrd]
      + disks.flatMap { ["--disk", $0] }
      + ["--append", "quiet panic=-1 devices.task=" + task] + more
  }

  private func boot(
    _ task: String, _ disks: [String], _ more: [String]
  ) throws -> Command.Result {
    try #require(
      BootGuest.isThere && access(Self.initrd, R_OK) == 0,
      "no guests in \(BootGuest.directory): run Scripts/fetch-guest.sh")
    return try Command.run(arguments(task, disks, more), limit: BootGuest.limit)
  }

  /// What a line "DEVICE name ..." says.
  private func says(_ result: Command.Result, _ name: String) -> [String] {
    says(result.output, name)
  }

  private func says(_ output: String, _ name: String) -> [String] {
    output.split(whereSeparator: \.isNewline).compactMap { line in
      line.hasPrefix("DEVICE \(name) ") ? String(line.dropFirst("DEVICE \(name) ".count)) : nil
    }
  }

  @Test(arguments: [
    ["--engine", "soft"], ["--engine", "soft", "--cpus", "4", "--pcpus", "2"],
    ["--engine", "soft", "--translator", "off"],
  ])
  func linuxMountsReadsAndWrites(engine: [String]) throws {
    try mountReadAndWrite(engine)
  }

  @Test(.enabled(if: [.vtx, .svm].contains(KernelKVM.kind), "no usable /dev/kvm"))
  func linuxMountsReadsAndWritesOnTheKernelsKVM() throws {
    try mountReadAndWrite(["--engine", "kvm"])
  }

  private func mountReadAndWrite(_ engine: [String]) throws {
    let image = try Image()
    let second = image.folder + "/second.img"
    try Image.shell("truncate -s 5M \(second)")
    let result = try boot("disk", [image.path, second], engine)
    let about: Comment = "\(result.output.suffix(2000))\(result.errors)"
    #expect(result.status == 0, about)
    #expect(says(result, "vda") == ["131072 0 disk0"], about)
    #expect(says(result, "vdb") == ["10240 0 disk1"], about)
    #expect(says(result, "read") == [image.hash], about)
    #expect(says(result, "program") == ["1", "2", "3"], about)
    let written = try #require(says(result, "wrote").first, about)
    try image.check()
    #expect(try image.hash(of: "written") == written)
    let copy = try Image.shell("head -c 4194304 \(second) | sha256sum")
    #expect(copy.prefix(64) == written)
    // What was trimmed is not kept: the image has less than it was made with.
    #expect(result.output.contains("DEVICE trimmed"), about)
    let blocks = try Image.shell("stat -c %b \(image.path)")
    #expect(try #require(Int(blocks.dropLast())) < 131_072 / 2)
  }

  private static let hasTools = access("/usr/bin/qemu-img", X_OK) == 0

  /// A qcow2 image over a raw one, written to in place; another one behind a temporary overlay.
  @Test(.enabled(if: hasTools, "qemu-utils is not installed")) func linuxUsesAQcow2Image() throws {
    let image = try Image()
    try Image.shell(
      """
      cd \(image.folder) && qemu-img create -q -f qcow2 -b disk.img -F raw a.qcow2 &&
      qemu-img create -q -f qcow2 second.qcow2 5M && sha256sum disk.img second.qcow2 >sums
      """)
    let disks = [image.folder + "/a.qcow2", image.folder + "/second.qcow2,overlay=temporary"]
    let result = try boot("disk", disks, ["--engine", "soft"])
    let about: Comment = "\(result.output.suffix(2000))\(result.errors)"
    #expect(result.status == 0, about)
    #expect(says(result, "vda") == ["131072 0 disk0"], about)
    #expect(says(result, "vdb") == ["10240 0 disk1"], about)
    #expect(says(result, "read") == [image.hash], about)
    let written = try #require(says(result, "wrote").first, about)
    try Image.shell(
      """
      cd \(image.folder) && sha256sum -c sums && qemu-img check -q a.qcow2 &&
      qemu-img convert -O raw a.qcow2 new && mv new disk.img
      """)
    try image.check()
    #expect(try image.hash(of: "written") == written)
  }

  /// Linux reboots twice, and finds its disk and other devices each time.
  @Test(arguments: [
    ["--engine", "soft", "--cpus", "2", "--rng"], ["--engine", "soft", "--decompress", "guest"],
  ])
  func linuxRestarts(engine: [String]) throws {
    let image = try Image()
    let result = try boot("restart", [image.path], engine)
    let about: Comment = "\(result.output.suffix(2000))\(result.errors)"
    #expect(result.status == 0, about)
    #expect(says(result, "start") == (1...3).map { "\($0) \(image.hash)" }, about)
    try image.check()
  }

  private static let hasLoader = {
    let files: [String] = [
      "/usr/share/seabios/bios-256k.bin", "/usr/lib/grub/i386-pc/boot.img",
      "/usr/bin/grub-mkimage",
    ]
    return files.allSatisfy { access($0, R_OK) == 0 }
  }()

  /// SeaBIOS starts GRUB from the disk, and GRUB Linux.
  @Test(
    .enabled(if: hasLoader && hasTools, "seabios, grub-pc-bin or qemu-utils is not installed"),
    arguments: [["--cpus", "1"], ["--cpus", "2"]])
  func aDiskBootsByItsOwnLoader(cpus: [String]) throws {
    let image = try Image()
    let script = Command.package + "/Scripts/make-boot-disk.sh"
    try Image.shell(
      """
      sh \(script) \(image.folder)/boot.img \(BootGuest.path("vmlinuz-cloud-amd64")) \
        \(BootGuest.path("initramfs-marker.cpio")) quiet &&
      qemu-img convert -O qcow2 -c \(image.folder)/boot.img \(image.folder)/boot.qcow2
      """)
    let result = try Command.run(
      [
        "run", "--engine", "soft", "--disk", image.folder + "/boot.qcow2,overlay=temporary",
      ] + cpus, limit: BootGuest.limit)
    let about: Comment = "\(result.output.suffix(2000))\(result.errors)"
    #expect(result.status == 0 && result.errorLines.count == 1, about)
    #expect(result.output.contains("SeaBIOS"), about)
    #expect(Self.withoutControls(result.output).contains("GRUB starts Linux"), about)
    #expect(result.output.contains("MARTLET-GUEST-READY cpus=\(cpus[1])"), about)
  }

  /// Without the sequences that move a terminal's cursor, which GRUB puts where time has it.
  private static func withoutControls(_ text: String) -> String {
    text.replacing(#/\u{1B}\[[0-9;?]*[A-Za-z]/#, with: "")
  }

  @Test func firmwareThatIsNoneIsOneLine() throws {
    let image = try Image()
    func problem(_ firmware: String) throws -> String {
      let result = try Command.run(
        ["run", "--engine", "soft", "--disk", image.path, "--firmware", firmware])
      #expect(result.status == 2 && result.output.isEmpty && result.errorLines.count == 1)
      return result.errors
    }
    #expect(try problem("/nowhere").contains("--firmware /nowhere: no such file"))
    #expect(try problem(image.folder + "/tree/busybox").contains("multiple of 64K"))
    #expect(try problem("uefi,vars=/nowhere/a").contains("cannot be made"))
    #expect(try problem("uefi,vars=\(image.folder)/tree/data").contains("540672"))
  }

  private static let hasUEFI = {
    let files: [String] = [
      "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/lib/grub/x86_64-efi/moddep.lst",
      "/usr/bin/grub-mkimage", "/usr/bin/mcopy", "/sbin/mkfs.vfat",
    ]
    return files.allSatisfy { access($0, R_OK) == 0 }
  }()

  /// OVMF starts GRUB from a disk that has nothing for a BIOS, and GRUB Linux; what OVMF has
  /// written down of the disk is in the file afterwards.
  @Test(
    .enabled(if: hasUEFI, "ovmf, grub-efi-amd64-bin, mtools or dosfstools is not installed"),
    arguments: [["--cpus", "1"], ["--cpus", "2", "--firmware", "uefi", "--memory", "3G"]])
  func aDiskBootsByUEFI(options: [String]) throws {
    let image = try Image()
    let script = Command.package + "/Scripts/make-boot-disk.sh"
    let disk = image.folder + "/efi.img"
    try Image.shell(
      """
      sh \(script) --efi \(disk) \(BootGuest.path("vmlinuz-cloud-amd64")) \
        \(BootGuest.path("initramfs-marker.cpio")) quiet
      """)
    var options = options
    let vars = image.folder + "/vars"
    if let place = options.firstIndex(of: "uefi") { options[place] = "uefi,vars=" + vars }
    let result = try Command.run(
      ["run", "--engine", "soft", "--disk", disk] + options, limit: BootGuest.limit)
    let about: Comment = "\(result.output.suffix(2000))\(result.errors)"
    #expect(result.status == 0 && result.errorLines.count == 1, about)
    #expect(result.output.contains("BdsDxe: starting Boot"), about)
    #expect(result.output.contains("GRUB starts Linux"), about)
    #expect(result.output.contains("MARTLET-GUEST-READY cpus=\(options[1])"), about)
    guard options.contains("--firmware") else { return }
    // "Boot0001", as a variable's name is written.
    try Image.shell("LC_ALL=C grep -qaP 'B\\x00o\\x00o\\x00t\\x000\\x000\\x000\\x001' \(vars)")
    try Image.shell("! cmp -s \(vars) /usr/share/OVMF/OVMF_VARS_4M.fd")
  }

  /// Linux reboots, and OVMF finds its disks each time.
  @Test(.enabled(if: hasUEFI, "ovmf, grub-efi-amd64-bin, mtools or dosfstools is not installed"))
  func aUEFIGuestRestarts() throws {
    let image = try Image()
    let script = Command.package + "/Scripts/make-boot-disk.sh"
    let disk = image.folder + "/efi.img"
    try Image.shell(
      """
      sh \(script) --efi \(disk) \(BootGuest.path("vmlinuz-cloud-amd64")) \(Self.initrd) \
        "quiet panic=-1 devices.task=restart"
      """)
    let result = try Command.run(
      [
        "run", "--engine", "soft", "--memory", "1G", "--firmware", "uefi", "--disk", image.path,
        "--disk", disk,
      ], limit: BootGuest.limit)
    let about: Comment = "\(result.output.suffix(2000))\(result.errors)"
    #expect(result.status == 0, about)
    #expect(says(result, "start") == (1...3).map { "\($0) \(image.hash)" }, about)
    try image.check()
  }

  /// A client of a socket that the monitor has made.
  private func connect(_ path: String) throws -> Int32 {
    let file = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    for _ in 0..<1000 {
      let size = socklen_t(MemoryLayout<sockaddr_un>.size)
      let status = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { Glibc.connect(file, $0, size) }
      }
      if status == 0 { return file }
      usleep(10_000)
    }
    try #require(Bool(false), "no socket at \(path)")
    return file
  }

  /// Linux's console, and a port of which the host has the other end.
  @Test(arguments: [["--cpus", "1"], ["--cpus", "2", "--console", "virtio"]])
  func linuxTalksAtAPort(options: [String]) throws {
    var template = Array("/tmp/martlet-port-XXXXXX".utf8CString)
    let folder = try #require(mkdtemp(&template).map { String(cString: $0) })
    defer { _ = try? Image.shell("rm -r \(folder)") }
    let output = folder + "/output"
    let file = open(output, O_RDWR | O_CREAT, 0o644)
    let null = open("/dev/null", O_RDWR)
    defer { for file in [file, null] { close(file) } }
    let more = ["--engine", "soft", "--port", "agent=\(folder)/socket"] + options
    let process = try Command.start(
      arguments("console", [], more), input: null, output: file, errors: null)
    let client = try connect(folder + "/socket")
    defer { close(client) }
    var heard: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65_536)
    // The line, an answer, then everything back as it comes.
    while true {
      let count = read(client, &chunk, chunk.count)
      if count <= 0 { break }
      let old = heard.count
      heard += chunk[..<count]
      let greeting = "from the guest\n".utf8.count
      if old < greeting, heard.count >= greeting {
        _ = write(client, "from the host\n", "from the host\n".utf8.count)
      }
      var rest = heard[max(old, greeting, 0)...]
      while !rest.isEmpty {
        let done = rest.withUnsafeBytes { write(client, $0.baseAddress, $0.count) }
        if done <= 0 { break }
        rest = rest.dropFirst(done)
      }
    }
    #expect(try Command.wait(process) == 0)
    let text = try Image.shell("cat \(output)")
    let about: Comment = "\(text.suffix(2000))"
    #expect(heard.starts(with: Array("from the guest\n".utf8)), about)
    #expect(heard.count == "from the guest\n".utf8.count + 1 << 20, about)
    // With virtio's console, what init prints before its driver is there reaches nobody.
    if options.contains("virtio") {
      #expect(says(text, "hvc") == ["25 80"], about)
    } else {
      #expect(says(text, "heard") == ["from the host"] && text.contains("DEVICE same"), about)
      #expect(says(text, "port") == ["agent"] && !text.contains("DEVICE hvc"), about)
    }
  }

  @Test func aReadOnlyDiskStaysAsItIs() throws {
    let image = try Image()
    try Image.shell("chmod 444 \(image.path) && sha256sum \(image.path) >\(image.folder)/sum")
    let result = try boot("disk", [image.path + ",readonly=on"], ["--engine", "soft"])
    #expect(result.status == 0 && says(result, "vda") == ["131072 1 disk0"], "\(result.errors)")
    #expect(says(result, "read") == [image.hash] && says(result, "wrote").isEmpty)
    try Image.shell("sha256sum -c \(image.folder)/sum")
  }

  /// The monitor is killed while the guest writes: whatever a sync has confirmed is there.
  @Test func aKilledMonitorLosesNothingThatWasSynced() throws {
    let image = try Image()
    let output = image.folder + "/output"
    let file = open(output, O_RDWR | O_CREAT, 0o644)
    let null = open("/dev/null", O_RDWR)
    defer { for file in [file, null] { close(file) } }
    let process = try Command.start(
      arguments("sync", [image.path], ["--engine", "soft"]), input: null,
      output: file, errors: null)
    var synced = 0
    for _ in 0..<6000 where synced < 20 {
      usleep(20_000)
      let text = (try? Image.shell("grep -a -c 'DEVICE synced' \(output) || true")) ?? ""
      synced = Int(text.dropLast()) ?? 0
    }
    kill(process, SIGKILL)
    _ = try Command.wait(process)
    #expect(synced >= 20)
    // The journal is replayed, as after a power failure; then nothing is left to mend.
    try Image.shell("e2fsck -fy \(image.path) >/dev/null; test $? -le 1")
    try image.check()
    let number = try Image.shell("debugfs -R 'cat number' \(image.path) 2>/dev/null")
    #expect(try #require(Int(number.dropLast())) >= synced)
  }

  @Test func whatCannotBeADiskIsOneLine() throws {
    let image = try Image()
    let kernel = try Command.temporaryFile(TinyKernel.printing("done").bytes)
    defer { unlink(kernel) }
    try Image.shell("cd \(image.folder) && : >empty && truncate -s 1000 odd")
    func problem(_ disk: String) throws -> String {
      let result = try Command.run(
        ["run", "--engine", "soft", "--memory", "32M", "--kernel", kernel, "--disk", disk])
      #expect(result.status == 2 && result.output.isEmpty && result.errorLines.count == 1)
      return result.errors
    }
    #expect(try problem("/nowhere/image").contains("--disk /nowhere/image: no such file"))
    #expect(try problem(image.folder).contains("not a file or block device"))
    #expect(try problem(image.folder + "/empty").contains("empty"))
    #expect(try problem(image.folder + "/odd").contains("1000 bytes"))
    #expect(try problem(image.path + "," + image.path).contains("unknown option"))
    // One disk twice.
    let twice = try Command.run(
      [
        "run", "--engine", "soft", "--memory", "32M", "--kernel", kernel, "--disk", image.path,
        "--disk", image.path,
      ])
    #expect(twice.status == 2 && twice.errors.contains("in use by another program"))
  }

  // MARK: Network and random bytes

  /// A web server of the host, which serves a folder.
  private final class Server {
    let port: Int
    private let process: pid_t

    init(folder: String) throws {
      let null = open("/dev/null", O_RDWR)
      defer { close(null) }
      port = 20_000 + Int(getpid()) % 20_000
      process = try Command.start(
        ["httpd", "-f", "-p", "127.0.0.1:\(port)", "-h", folder], path: BootGuest.path("busybox"),
        input: null, output: null, errors: null)
    }

    deinit {
      kill(process, SIGKILL)
      _ = try? Command.wait(process)
    }
  }

  private static let hasPasst = access("/usr/bin/passt", X_OK) == 0

  /// Down from the host, and up again through a port that is published.
  @Test(.enabled(if: hasPasst, "passt is not installed"), arguments: [["--engine", "soft"]])
  func linuxReachesTheNetwork(engine: [String]) throws {
    let image = try Image()
    let server = try Server(folder: image.folder + "/tree")
    let published = server.port + 20_000
    let output = image.folder + "/output"
    let fetch = "\(BootGuest.path("busybox")) wget -q -O - http://127.0.0.1:\(published)"
    try Image.shell(
      """
      (while ! grep -aq 'DEVICE serves' \(output) 2>/dev/null; do
        [ -d \(image.folder) ] || exit; sleep 0.1
      done
      \(fetch)/data | sha256sum >\(image.folder)/sum; \(fetch)/cgi-bin/stop) >/dev/null 2>&1 &
      """)
    let file = open(output, O_RDWR | O_CREAT, 0o644)
    let null = open("/dev/null", O_RDWR)
    defer { for file in [file, null] { close(file) } }
    let net = ["--net", "user,host=on,publish=\(published):80"]
    let task = "net devices.port=\(server.port)"
    let process = try Command.start(
      arguments(task, [], engine + net), input: null, output: file, errors: file)
    let status = try Command.wait(process, limit: BootGuest.limit)
    let text = try Image.shell("cat \(output)")
    let about: Comment = "\(text.suffix(2000))"
    #expect(status == 0, about)
    #expect(says(text, "mtu") == ["65520 52:54:00:12:34:56"], about)
    #expect(says(text, "address") == ["10.0.2.15/24 10.0.2.2"], about)
    #expect(says(text, "received") == [image.hash], about)
    #expect(try Image.shell("cat \(image.folder)/sum").prefix(64) == image.hash, about)
    withExtendedLifetime(server) {}
  }

  @Test func aNetworkWithoutPasstIsOneLine() throws {
    let kernel = try Command.temporaryFile(TinyKernel.printing("done").bytes)
    defer { unlink(kernel) }
    let program = Command.products + "/martlet"
    let result = try Command.run(
      ["-c", "PATH=/nowhere exec \(program) run --engine soft --kernel \(kernel) --net user"],
      path: "/bin/sh")
    #expect(result.status == 2 && result.errorLines.count == 1)
    #expect(result.errors.contains("--net user: passt is missing; apt-get install passt"))
  }

  @Test func linuxReadsTheHostsRandomBytes() throws {
    let result = try boot("random", [], ["--engine", "soft", "--rng"])
    let about: Comment = "\(result.output.suffix(2000))\(result.errors)"
    #expect(result.status == 0 && says(result, "rng") == ["virtio_rng.0"], about)
    #expect(says(result, "bytes") == ["65536"], about)
  }

  // MARK: Sockets, memory, a full disk

  /// A machine that runs while the test does something, and what it prints.
  private final class Running {
    let folder: String
    let process: pid_t

    /// - Parameter shell: what stands before the program.
    init(_ arguments: [String], shell: String = "exec") throws {
      var template = Array("/tmp/martlet-running-XXXXXX".utf8CString)
      folder = try #require(mkdtemp(&template).map { String(cString: $0) })
      let output = open(folder + "/output", O_RDWR | O_CREAT, 0o644)
      let null = open("/dev/null", O_RDWR)
      defer { for file in [output, null] { close(file) } }
      let words = [Command.products + "/martlet"] + arguments
      process = try Command.start(
        ["-c", "\(shell) \"$0\" \"$@\""] + words, path: "/bin/sh", input: null, output: output,
        errors: output)
    }

    deinit { _ = try? Image.shell("rm -r \(folder)") }

    var output: String { (try? Image.shell("cat \(folder)/output")) ?? "" }

    func waits(for text: String) -> Bool {
      for _ in 0..<BootGuest.limit * 20 {
        if output.contains(text) { return true }
        usleep(50_000)
      }
      return false
    }

    func end() throws -> Int32 { try Command.wait(process, limit: BootGuest.limit) }
  }

  /// Sends everything, ends its half, and returns what has come until the other end was closed.
  private func exchange(_ file: Int32, _ bytes: [UInt8]) -> [UInt8] {
    var (heard, chunk, rest): ([UInt8], [UInt8], ArraySlice<UInt8>) = (
      [], [UInt8](repeating: 0, count: 65_536), bytes[...]
    )
    var isEnding = false
    while true {
      let wants = rest.isEmpty ? Int16(POLLIN) : Int16(POLLIN | POLLOUT)
      var waiting = pollfd(fd: file, events: wants, revents: 0)
      guard poll(&waiting, 1, 60_000) > 0 else { return heard }
      if waiting.revents & Int16(POLLOUT) != 0 {
        let done = rest.prefix(4096).withUnsafeBytes { write(file, $0.baseAddress, $0.count) }
        if done > 0 { rest = rest.dropFirst(done) }
      }
      if rest.isEmpty, !isEnding {
        shutdown(file, Int32(SHUT_WR))
        isEnding = true
      }
      guard waiting.revents & Int16(POLLIN | POLLHUP) != 0 else { continue }
      let count = read(file, &chunk, chunk.count)
      if count <= 0 { return heard }
      heard += chunk[..<count]
    }
  }

  /// Asks for a port of the guest; the line that answers.
  private func ask(_ file: Int32, _ port: Int) -> String {
    let line = "CONNECT \(port)\n"
    _ = write(file, line, line.utf8.count)
    var answer: [UInt8] = []
    var byte: UInt8 = 0
    while read(file, &byte, 1) == 1, byte != UInt8(ascii: "\n") { answer.append(byte) }
    return String(decoding: answer, as: UTF8.self)
  }

  /// A program of the host at a path, which takes one client and talks as a function says.
  private func listen(
    _ path: String, _ talk: @escaping @Sendable (Int32) -> Void
  ) throws {
    let file = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let size = socklen_t(MemoryLayout<sockaddr_un>.size)
    let status = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(file, $0, size) }
    }
    try #require(status == 0 && Glibc.listen(file, 4) == 0)
    _ = try HostThread(name: "listener") {
      let client = accept(file, nil, nil)
      if client >= 0 { talk(client) }
      for file in [client, file] { close(file) }
    }
  }

  private static let hasSocketProgram = access(BootGuest.path("vsock"), X_OK) == 0

  /// Connections both ways, many at a time, refused ones, halves that end alone.
  @Test(
    .enabled(if: hasSocketProgram, "no static program for the guest: no C compiler"),
    arguments: [["--cpus", "1"], ["--cpus", "2", "--sandbox", "required"]])
  func linuxHasSockets(options: [String]) throws {
    signal(SIGPIPE, SIG_IGN)
    var template = Array("/tmp/martlet-vsock-XXXXXX".utf8CString)
    let folder = try #require(mkdtemp(&template).map { String(cString: $0) })
    defer { _ = try? Image.shell("rm -r \(folder)") }
    let path = folder + "/guest"
    try listen(path + "_1234") { client in
      var chunk = [UInt8](repeating: 0, count: 65_536)
      while true {
        let count = read(client, &chunk, chunk.count)
        if count <= 0 { return }
        var rest = chunk[..<count]
        while !rest.isEmpty {
          let done = rest.withUnsafeBytes { write(client, $0.baseAddress, $0.count) }
          if done <= 0 { return }
          rest = rest.dropFirst(done)
        }
      }
    }
    try listen(path + "_1235") { client in
      _ = write(client, "the host ends\n", 14)
      shutdown(client, Int32(SHUT_WR))
      var chunk = [UInt8](repeating: 0, count: 65_536)
      while read(client, &chunk, chunk.count) > 0 {}
    }
    let machine = try Running(
      arguments("vsock", [], ["--engine", "soft", "--vsock", "cid=9,path=" + path] + options))
    #expect(machine.waits(for: "listens 52") && machine.waits(for: "listens 53"))
    // Nobody listens there, and something that is no request.
    for text in ["", "CONNECT 77\n", "HELLO\n", String(repeating: "x", count: 100)] {
      let file = try connect(path)
      _ = write(file, text, text.utf8.count)
      if text.isEmpty { shutdown(file, Int32(SHUT_WR)) }
      var byte: UInt8 = 0
      #expect(read(file, &byte, 1) <= 0, "\(text)")
      close(file)
    }
    for count in [3, 1 << 21, 0] {
      let file = try connect(path)
      #expect(ask(file, 52).hasPrefix("OK "))
      let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }
      #expect(exchange(file, bytes) == bytes, "\(count)")
      close(file)
    }
    let files = try (0..<20).map { _ in try connect(path) }
    for (number, file) in files.enumerated() {
      #expect(ask(file, 53).hasPrefix("OK "))
      let bytes = [UInt8](repeating: 1, count: 1000 * number)
      #expect(write(file, bytes, bytes.count) == bytes.count)
      shutdown(file, Int32(SHUT_WR))
    }
    #expect(try machine.end() == 0)
    for file in files { close(file) }
    let text = machine.output
    let about: Comment = "\(text.suffix(3000))"
    #expect(text.contains("DEVICE same"), about)
    #expect(says(text, "refused") == ["connect: Connection reset by peer"], about)
    #expect(says(text, "held") == (0..<20).map { "\($0 * 1000)" }, about)
    #expect(says(text, "heard") == ["the host ends"], about)
  }

  /// The guest fills its balloon, and takes from it before it ends a program; its free pages go
  /// back to the host.
  @Test func linuxGivesMemoryBack() throws {
    let result = try boot(
      "balloon", [],
      ["--engine", "soft", "--memory", "512M", "--balloon", "target=300M", "--stats"])
    let about: Comment = "\(result.output.suffix(2000))\(result.errors)"
    #expect(result.status == 0, about)
    func kilobytes(_ name: String) throws -> Int {
      try #require(says(result, name).first.flatMap { Int($0.split(separator: " ").last ?? "") })
    }
    let (free, inflated) = (try kilobytes("total"), try kilobytes("inflated"))
    #expect((180_000...230_000).contains(free - inflated), about)
    #expect(result.output.contains("DEVICE again"), about)
    #expect(try kilobytes("deflated") > inflated + 50_000, about)
    let line = try #require(result.errorLines.first { $0.hasPrefix("balloon: ") }, about)
    let numbers = line.split(separator: " ").compactMap { Int($0) }
    #expect(numbers.count == 3 && numbers[1] >= 200 && numbers[2] >= 100, about)
  }

  /// The host has no room for what the guest writes: the guest waits until there is some.
  @Test(
    .enabled(if: access("/usr/bin/prlimit", X_OK) == 0, "prlimit is not installed"),
    arguments: ["raw", "qcow2"])
  func aFullDiskPausesTheGuest(format: String) throws {
    let image = try Image()
    try Image.shell(
      format == "raw"
        ? "truncate -s 16M \(image.folder)/second"
        : "qemu-img create -q -f qcow2 \(image.folder)/second 16M")
    // A soft limit of 4 MiB for the size of files. The first disk is larger, and not written to.
    let machine = try Running(
      arguments(
        "full", [image.path + ",readonly", "\(image.folder)/second"], ["--engine", "soft"]),
      shell: "ulimit -S -f 8192; exec")
    #expect(machine.waits(for: "disk1:"))
    let line =
      machine.output.split(whereSeparator: \.isNewline).first { $0.contains("disk1:") } ?? ""
    #expect(line.contains("\(image.folder)/second") && line.contains("the guest is paused"))
    usleep(500_000)
    #expect(!machine.output.contains("DEVICE wrote") && !machine.output.contains("DEVICE failed"))
    try Image.shell("prlimit --pid \(machine.process) --fsize=unlimited:unlimited")
    kill(machine.process, SIGCONT)
    #expect(try machine.end() == 0)
    let text = machine.output
    let about: Comment = "\(text.suffix(2000))"
    let written = says(text, "wrote")
    #expect(written.count == 1 && written == says(text, "read"), about)
    #expect(text.contains("the guest goes on"), about)
    let raw =
      format == "raw"
      ? "cat second" : "qemu-img check -q second && qemu-img convert -O raw second raw && cat raw"
    let hash = try Image.shell("cd \(image.folder) && (\(raw)) | head -c 8388608 | sha256sum")
    #expect(hash.prefix(64) == written.first ?? "", about)
  }

  @Test func aFullDiskIsAnErrorIfAskedFor() throws {
    let image = try Image()
    try Image.shell("truncate -s 16M \(image.folder)/second")
    let machine = try Running(
      arguments(
        "full", [image.path + ",readonly", "\(image.folder)/second,on-full=error"],
        ["--engine", "soft"]),
      shell: "ulimit -S -f 8192; exec")
    #expect(try machine.end() == 0)
    #expect(machine.output.contains("DEVICE failed") && !machine.output.contains("is paused"))
  }
}
