// SPDX-License-Identifier: Apache-2.0
//
// Images that are not used, and why; images that nobody has made: whatever their bytes are, they
// give an error or contents, and no end and no endless loop. A program that is killed while it
// writes leaves a whole image.

import Devices
import Glibc
import Host
import HostTestSupport
import SystemPackage
import TestRandom
import Testing

@Suite(.enabled(if: ImageRig.hasTools, ImageRig.missing)) struct Qcow2RefusalTests {
  let rig: ImageRig

  init() throws { rig = try ImageRig() }

  /// The text of an error for the user.
  private func reason(_ name: String, _ change: (inout ImageOptions) -> Void = { _ in }) -> String {
    var error = rig.failure(name, change)
    while case .backing(_, let inner) = error { error = inner }
    if case .unusable(let text) = error { return text }
    return error.map { "\($0)" } ?? "none"
  }

  /// Overwrites a byte.
  private func patch(_ name: String, _ offset: Int, _ value: UInt8) throws {
    let file = open(rig.path(name), O_RDWR)
    defer { close(file) }
    try #require(pwrite(file, [value], 1, offset) == 1)
  }

  @Test(
    arguments: [
      (4, 9, "version"), (35, 1, "encrypted"), (79, 4, "external data file"),
      (79, 0x20, "incompatible bit 5"), (79, 2, "corrupt"), (99, 7, "width"),
      (103, 1, "header size"),
      (23, 8, "cluster size"), (23, 60, "cluster size"), (47, 1, "L1 table"), (36, 255, "L1 table"),
      (39, 0, "L1 table size"), (55, 1, "refcount table"), (56, 255, "refcount table"),
      (24, 255, "L1 table size"), (60, 255, "snapshot"), (63, 1, "snapshot"),
      (31, 1, "badSize"), (104, 9, "not a"),
    ] as [(Int, UInt8, String)])
  func headersThatAreRefused(offset: Int, value: UInt8, text: String) throws {
    try rig.shell("qemu-img create -q -f qcow2 a.qcow2 8M")
    if offset == 104 {
      // Another format's name for it: raw, and no multiple of a sector.
      try patch("a.qcow2", 0, 0)
      #expect(reason("a.qcow2") { $0.format = .qcow2 }.contains(text))
    } else {
      try patch("a.qcow2", offset, value)
      #expect(reason("a.qcow2").contains(text), "\(reason("a.qcow2"))")
    }
    if text == "corrupt" { #expect(rig.failure("a.qcow2") { $0.isReadOnly = true } == nil) }
  }

  @Test func chainsHaveBounds() throws {
    try rig.shell("qemu-img create -q -f raw base 1M && mkdir sub")
    func make(_ name: String, over base: String, _ format: String = "qcow2") throws {
      try rig.shell("qemu-img create -q -u -f qcow2 -b '\(base)' -F \(format) \(name) 1M")
    }
    // Relative to the file that names it.
    try make("sub/a", over: "../base", "raw")
    try make("b", over: "sub/a")
    #expect(rig.failure("b") == nil)
    try make("loop", over: "loop2")
    try make("loop2", over: "loop")
    try make("self", over: "./self")
    #expect(reason("loop").contains("its own backing file"))
    #expect(reason("self").contains("its own backing file"))
    try make("lost", over: "nowhere", "raw")
    #expect(
      rig.failure("lost")
        == .backing(path: rig.path("nowhere"), .cannotOpen(.noSuchFileOrDirectory)))
    try make("far", over: "nbd://localhost", "raw")
    #expect(reason("far").contains("not a local file"))
    try make("other", over: "base", "vmdk")
    #expect(reason("other").contains("format vmdk"))
    for number in 1...70 {
      let isFirst = number == 1
      try make("c\(number)", over: isFirst ? "base" : "c\(number - 1)", isFirst ? "raw" : "qcow2")
    }
    #expect(rig.failure("c60") == nil)
    #expect(reason("c70").contains("more than 64"))
  }

  @Test func locksCoverTheChain() throws {
    try rig.shell("qemu-img create -q -f raw base 1M")
    try rig.shell("qemu-img create -q -f qcow2 -b base -F raw a 1M && cp a b")
    let first = try rig.open("a")
    #expect(rig.failure("a") == .isInUse)
    #expect(rig.failure("base") == .isInUse)
    #expect(rig.failure("b") == nil)
    withExtendedLifetime(first) {}
  }

  /// A guest that has a raw disk, of which nobody said that it is raw, cannot make it qcow2.
  @Test func aRawDiskStaysRaw() throws {
    try rig.shell("truncate -s 1M raw")
    let header: [UInt8] = [0x51, 0x46, 0x49, 0xFB, 0, 0, 0, 3] + [UInt8](repeating: 0, count: 504)
    do {
      let image = try rig.open("raw")
      #expect(throws: Errno.notPermitted) { try rig.write(image, 0, header) }
      try rig.write(image, 512, header + header)
      try rig.write(image, 0, [UInt8](repeating: 1, count: 4096))
      #expect(try rig.read(image, 0, 512) == [UInt8](repeating: 1, count: 512))
    }
    let image = try rig.open("raw") { $0.format = .raw }
    try rig.write(image, 0, header)
    #expect(try rig.read(image, 0, 512) == header)
  }

  // MARK: Damaged images

  /// Images of all kinds with little in them, whose tables are near their starts.
  private func seeds() throws -> [[UInt8]] {
    let kinds = [
      "cluster_size=512", "compat=0.10,cluster_size=512", "cluster_size=16k,extended_l2=on",
      "cluster_size=512,refcount_bits=1", "cluster_size=4k,lazy_refcounts=on",
      "cluster_size=4k,compression_type=zstd",
    ]
    return try kinds.map { kind in
      try rig.shell(
        """
        rm -f a && qemu-img create -q -f qcow2 -o \(kind) a 256k &&
        qemu-io -c 'write -P 1 0 20k' -c 'write -z 32k 16k' -c 'write -c -P 3 64k 16k' \
          -c 'write -P 2 200k 9k' a >/dev/null
        """)
      if !kind.contains("bits=1") {
        try rig.shell("qemu-img snapshot -c s a && qemu-io -c 'write -P 4 0 5k' a >/dev/null")
      }
      return try rig.file("a")
    }
  }

  @Test func damagedImagesEndNothing() throws {
    var random = SplitMix(seed: 20_261_201)
    let seeds = try seeds()
    let edges: [UInt8] = [0, 1, 0x7F, 0x80, 0xFF]
    var opened = 0
    for round in 0..<1500 {
      var bytes = seeds[round % seeds.count]
      for _ in 0...random.below(4) {
        // Headers and tables more often than contents.
        let place = random.oneIn(2) ? random.below(120) : random.below(bytes.count)
        let byte = random.oneIn(2) ? random.byte() : edges[random.below(edges.count)]
        // A whole number at times.
        let width = random.oneIn(3) ? 8 : 1
        for offset in 0..<width where place + offset < bytes.count { bytes[place + offset] = byte }
      }
      if random.oneIn(8) { bytes.removeLast(random.below(bytes.count)) }
      try rig.makeFile("b", bytes)
      guard let image = try? rig.open("b", { if random.oneIn(4) { $0.isReadOnly = true } }) else {
        continue
      }
      opened += 1
      // Sizes that the damage has made may be huge.
      let size = min(Int(clamping: image.size), 1 << 20)
      for _ in 0..<20 {
        let offset = random.below(size / 512) * 512
        let count = min(512 * (1 + random.below(64)), size - offset)
        switch random.below(5) {
        case 0: try? image.discard(at: UInt64(offset), count: UInt64(count))
        case 1: try? image.writeZeroes(at: UInt64(offset), count: UInt64(count), mayDiscard: true)
        case 2: try? rig.write(image, offset, [UInt8](repeating: 9, count: count))
        case 3: try? image.flush()
        default: _ = try? rig.read(image, offset, count)
        }
      }
      // The end of the disk as well.
      if image.size >= 4096 { _ = try? rig.read(image, Int(clamping: image.size - 4096), 4096) }
      try? image.finish()
    }
    #expect(opened > 300)
  }

  // MARK: A program that is killed

  @Test(arguments: [
    "cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=64", "extended_l2=on",
    "lazy_refcounts=on,cluster_size=4k", "compat=0.10", "cluster_size=4k with base",
  ])
  func whatWasFlushedIsThereAfterAKill(kind: String) throws {
    let sectors = 4096
    let options = kind.replacing(" with base", with: "")
    let base = kind.contains("base") ? "-b base -F raw" : ""
    try rig.shell("truncate -s 1M base")
    try rig.shell("qemu-img create -q -f qcow2 -o \(options) \(base) a \(sectors * 512)")
    var random = SplitMix(seed: 17)
    // What may be in a sector: the operation that a flush has confirmed last, or a later one.
    var confirmed = [Set<Int>](repeating: [0], count: sectors)
    for _ in 0..<8 {
      let seed = random.next() >> 1
      let output = open(rig.path("output"), O_RDWR | O_CREAT | O_TRUNC, 0o644)
      defer { close(output) }
      let process = try Command.start(
        [rig.path("a"), "\(seed)"], program: "martlet-image-writer", input: output,
        output: output, errors: output)
      usleep(UInt32(20_000 + random.below(120_000)))
      kill(process, SIGKILL)
      #expect(try Command.wait(process) == 128 + SIGKILL)
      let text = String(decoding: try rig.file("output"), as: UTF8.self)
      let flushed = Int(text.split(separator: "\n").last ?? "0") ?? 0
      #expect(text.allSatisfy { $0.isNumber || $0 == "\n" }, "\(text.suffix(200))")
      // Nothing is wrong but room that is lost (3).
      let status = try Command.run(["-c", "qemu-img check \(rig.path("a"))"], path: "/bin/sh")
      #expect(status.status == 0 || status.status == 3, "\(kind): \(status.output)")
      try compare(seed, flushed, sectors, &confirmed)
    }
  }

  /// A host that has no room, again and again: each operation succeeds when it is repeated, and
  /// what is left is whole.
  @Test(arguments: [
    "cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=64", "extended_l2=on",
    "compat=0.10", "raw",
  ])
  func whatHadNoRoomCanBeRepeated(kind: String) throws {
    let (sectors, count) = (4096, 1500)
    if kind == "raw" {
      try rig.shell("truncate -s \(sectors * 512) a")
    } else {
      try rig.shell("qemu-img create -q -f qcow2 -o \(kind) a \(sectors * 512)")
    }
    let result = try Command.run(
      [rig.path("a"), "77", "\(count)"], program: "martlet-image-writer")
    try #require(result.status == 0, "\(kind): \(result.errors)")
    // A raw file has its size from the start.
    let failures = Int(result.errors.dropLast().split(separator: " ").last ?? "") ?? 0
    #expect(failures > (kind == "raw" ? 0 : 20), "\(kind): \(failures)")
    if kind != "raw" { try rig.check("a") }
    var expected = [Int](repeating: 0, count: sectors)
    for operation in DiskOperations(seed: 77, sectors: sectors).prefix(count)
    where operation.kind != .flush {
      for sector in operation.sectors {
        expected[sector] = operation.kind == .zero ? 0 : operation.number
      }
    }
    let bytes = try rig.contents(try rig.open("a"))
    for sector in 0..<sectors {
      let start = sector * 512
      let word = bytes[start..<start + 8].reversed().reduce(0) { $0 << 8 | Int($1) }
      #expect(word == expected[sector], "\(kind), sector \(sector)")
    }
  }

  /// Compares the sectors with what they may be, and takes what they are for the next round.
  private func compare(
    _ seed: UInt64, _ flushed: Int, _ sectors: Int, _ confirmed: inout [Set<Int>]
  ) throws {
    // More than the program can have done.
    for operation in DiskOperations(seed: seed, sectors: sectors).prefix(flushed + 3000) {
      if operation.kind == .flush { continue }
      for sector in operation.sectors {
        let value = operation.kind == .zero ? 0 : operation.number
        if operation.number <= flushed { confirmed[sector] = [] }
        confirmed[sector].insert(value)
      }
    }
    let image = try rig.open("a")
    let bytes = try rig.contents(image)
    for sector in 0..<sectors {
      let start = sector * 512
      let word = bytes[start..<start + 8].reversed().reduce(0) { $0 << 8 | Int($1) }
      #expect(confirmed[sector].contains(word), "sector \(sector): \(word) \(flushed)")
      confirmed[sector] = [word]
      // Of one piece.
      #expect(Set(bytes[start + 16..<start + 512]).count == 1)
    }
  }
}
