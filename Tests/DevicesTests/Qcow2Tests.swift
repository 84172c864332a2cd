// SPDX-License-Identifier: Apache-2.0
//
// qcow2 images of all kinds, with QEMU's tools as the oracle: what they make is read, what is
// written here they find whole and the same.

import Devices
import Glibc
import GuestMemory
import Host
import HostTestSupport
import SystemPackage
import TestRandom
import Testing

@Suite(.enabled(if: ImageRig.hasTools, ImageRig.missing)) struct Qcow2Tests {
  static let kinds = [
    "compat=0.10", "compat=1.1", "compat=0.10,cluster_size=512", "compat=1.1,cluster_size=512",
    "cluster_size=4k,refcount_bits=1", "cluster_size=1k,refcount_bits=64",
    "cluster_size=512,refcount_bits=64", "refcount_bits=8", "cluster_size=2M,refcount_bits=32",
    "refcount_bits=2,cluster_size=8k", "refcount_bits=4", "lazy_refcounts=on",
    "extended_l2=on,cluster_size=16k", "extended_l2=on,cluster_size=128k",
    "preallocation=metadata", "preallocation=falloc,cluster_size=32k", "compression_type=zstd",
  ]
  /// Not a multiple of any cluster.
  static let size = (9 << 20) + 512
  private static let steps = 400

  let rig: ImageRig

  init() throws { rig = try ImageRig() }

  /// Does random things to an image and to a model of its contents.
  private func exercise(
    _ image: any BlockImage, _ model: inout [UInt8], _ random: inout SplitMix, steps: Int
  ) throws {
    for _ in 0..<steps {
      let sectors = model.count / 512
      let offset = random.below(sectors) * 512
      let most = random.oneIn(3) ? 1 << 20 : 16 << 10
      let count = min((1 + random.below(most / 512)) * 512, model.count - offset)
      let range = offset..<offset + count
      switch random.below(8) {
      case 0: #expect(try rig.read(image, offset, count) == Array(model[range]))
      case 1:
        try image.writeZeroes(
          at: UInt64(offset), count: UInt64(count), mayDiscard: random.oneIn(2))
        model.replaceSubrange(range, with: repeatElement(0, count: count))
      case 2:
        try image.discard(at: UInt64(offset), count: UInt64(count))
        // Each byte is what it was, or 0.
        let after = try rig.read(image, offset, count)
        #expect(zip(after, model[range]).allSatisfy { $0 == $1 || $0 == 0 })
        model.replaceSubrange(range, with: after)
      case 3 where random.oneIn(4): try image.flush()
      default:
        let bytes = ImageRig.bytes(&random, count)
        try rig.write(image, offset, bytes)
        model.replaceSubrange(range, with: bytes)
      }
    }
    #expect(try rig.contents(image) == model)
    try image.finish()
  }

  @Test(arguments: kinds) func randomOperations(kind: String) throws {
    try rig.shell("qemu-img create -q -f qcow2 -o \(kind) a.qcow2 \(Self.size)")
    var random = SplitMix(seed: 20_261_130)
    var model = [UInt8](repeating: 0, count: Self.size)
    for _ in 0..<3 {
      try exercise(try rig.open("a.qcow2"), &model, &random, steps: Self.steps / 3)
      try rig.check("a.qcow2")
    }
    try rig.makeFile("model", model)
    try rig.compare("a.qcow2", "model")
  }

  @Test(arguments: kinds, ["raw", "qcow2"])
  func randomOperationsOverABackingFile(kind: String, format: String) throws {
    // Shorter than the disk, and not a whole number of sectors' multiples.
    var random = SplitMix(seed: 7)
    let base = ImageRig.bytes(&random, 5 << 20 | 1536)
    try rig.makeFile("base.raw", base)
    if format == "qcow2" {
      try rig.shell("qemu-img convert -q -O qcow2 -c -o cluster_size=32k base.raw base.qcow2")
    }
    let options = kind.contains("prealloc") ? "compat=1.1" : kind
    try rig.shell(
      "qemu-img create -q -f qcow2 -o \(options) -b base.\(format) -F \(format) a.qcow2 \(Self.size)"
    )
    let hash = try rig.shell("sha256sum base.\(format)")
    var model = base + [UInt8](repeating: 0, count: Self.size - base.count)
    for _ in 0..<2 {
      try exercise(try rig.open("a.qcow2"), &model, &random, steps: Self.steps / 2)
      try rig.check("a.qcow2")
    }
    try rig.makeFile("model", model)
    try rig.compare("a.qcow2", "model")
    #expect(try rig.shell("sha256sum base.\(format)") == hash)
  }

  /// What QEMU has written in every way it can, read and then written to.
  @Test(arguments: kinds) func imagesThatQEMUHasWritten(kind: String) throws {
    try rig.shell("qemu-img create -q -f qcow2 -o \(kind) a.qcow2 9M")
    var random = SplitMix(seed: 3)
    for _ in 0..<4 {
      var commands: [String] = []
      for number in 1...40 {
        let (offset, count) = (random.below(128) * 65536, (1 + random.below(2)) * 65536)
        let part = (offset + random.below(100) * 512, (1 + random.below(100)) * 512)
        let command =
          switch random.below(6) {
          case 0 where !kind.contains("2M"): "write -c -P \(number) \(offset) \(count)"
          case 1: "write -z \(part.0) \(part.1)"
          case 2: "write -z -u \(offset) \(count)"
          case 3: "discard \(offset) \(count)"
          default: "write -P \(number) \(part.0) \(part.1)"
          }
        commands.append(command)
      }
      let list = commands.map { "-c '\($0)'" }.joined(separator: " ")
      try rig.shell("qemu-io -f qcow2 \(list) a.qcow2 >/dev/null 2>&1 || true")
      try rig.shell("qemu-img convert -f qcow2 -O raw a.qcow2 a.raw")
      var model = try rig.file("a.raw")
      let image = try rig.open("a.qcow2")
      #expect(try rig.contents(image) == model)
      try exercise(image, &model, &random, steps: 60)
      try rig.check("a.qcow2")
      try rig.makeFile("model", model)
      try rig.compare("a.qcow2", "model")
    }
  }

  @Test(arguments: [
    "compat=0.10", "cluster_size=4k", "extended_l2=on,cluster_size=16k",
    "cluster_size=512,refcount_bits=8",
  ])
  func snapshotsKeepWhatTheyHave(kind: String) throws {
    try rig.shell("qemu-img create -q -f qcow2 -o \(kind) a.qcow2 \(Self.size)")
    var random = SplitMix(seed: 11)
    var model = [UInt8](repeating: 0, count: Self.size)
    var old: [[UInt8]] = []
    for number in 0..<3 {
      try exercise(try rig.open("a.qcow2"), &model, &random, steps: 80)
      try rig.shell("qemu-img snapshot -c snap\(number) a.qcow2")
      old.append(model)
    }
    try exercise(try rig.open("a.qcow2"), &model, &random, steps: 80)
    try rig.check("a.qcow2")
    for number in 0..<3 {
      let image = try rig.open("a.qcow2") { $0.snapshot = "snap\(number)" }
      #expect(image.isReadOnly)
      #expect(try rig.contents(image) == old[number])
      #expect(throws: Errno.readOnlyFileSystem) { try rig.write(image, 0, [0]) }
    }
    // By number, and what is not there.
    #expect(try rig.contents(try rig.open("a.qcow2") { $0.snapshot = "1" }) == old[0])
    #expect(rig.failure("a.qcow2") { $0.snapshot = "none" } != nil)
    try rig.shell("qemu-img snapshot -a snap1 a.qcow2 && qemu-img snapshot -d snap0 a.qcow2")
    model = old[1]
    try exercise(try rig.open("a.qcow2"), &model, &random, steps: 80)
    try rig.check("a.qcow2")
    #expect(try rig.contents(try rig.open("a.qcow2") { $0.snapshot = "snap2" }) == old[2])
  }

  /// QEMU ends without having written its counts.
  @Test(arguments: ["cluster_size=64k", "cluster_size=4k", "extended_l2=on", "cluster_size=512"])
  func countsThatWereNotWrittenAreMended(kind: String) throws {
    try rig.shell("qemu-img create -q -f qcow2 -o lazy_refcounts=on,\(kind) a.qcow2 9M")
    let writes = (0..<40).map { "-c 'write -P \($0 + 1) \($0 * 200_704) 8k'" }
    let list = writes.joined(separator: " ")
    try rig.shell("qemu-io \(list) -c flush -c abort a.qcow2 >/dev/null 2>&1 || true")
    let info = "qemu-img info -U --output=json a.qcow2"
    #expect(try rig.shell("\(info) | grep -c '\"dirty-flag\": true' || true") == "1\n")
    let image = try rig.open("a.qcow2")
    for number in 0..<40 {
      let expected = [UInt8](repeating: UInt8(number + 1), count: 8 << 10)
      #expect(try rig.read(image, number * 200_704, 8 << 10) == expected)
    }
    var model = try rig.contents(image)
    var random = SplitMix(seed: 5)
    try exercise(image, &model, &random, steps: 100)
    #expect(try rig.shell("\(info) | grep -c '\"dirty-flag\": true' || true") == "0\n")
    try rig.check("a.qcow2")
  }

  /// Reads and writes of several threads, each in its own sectors of shared clusters.
  @Test(arguments: ["cluster_size=64k", "extended_l2=on", "cluster_size=512"])
  func threadsDoNotDisturbEachOther(kind: String) throws {
    try rig.shell("qemu-img create -q -f qcow2 -o \(kind) a.qcow2 4M")
    let image = try rig.open("a.qcow2")
    let threads = 4
    let bad = SharedNumber()
    try HostThread.all(threads) { thread in
      guard let memory = try? GuestMemory(size: 1 << 16, lowEnd: 1 << 16, highStart: 1 << 32) else {
        return
      }
      var random = SplitMix(seed: UInt64(thread))
      var model: [Int: UInt8] = [:]
      for _ in 0..<2000 {
        let sector = random.below(2048) * threads + thread - 1
        var buffers = GuestBuffers(memory)
        _ = buffers.append(0, count: 512)
        do {
          if random.oneIn(3) {
            try image.read(at: UInt64(sector * 512), into: buffers)
            let expected = [UInt8](repeating: model[sector] ?? 0, count: 512)
            if memory.read(0, count: 512) != expected { bad.value = sector + 1 }
          } else if random.oneIn(50) {
            try image.flush()
          } else if random.oneIn(10) {
            try image.writeZeroes(at: UInt64(sector * 512), count: 512, mayDiscard: true)
            model[sector] = 0
          } else {
            let byte = random.byte()
            _ = memory.write([UInt8](repeating: byte, count: 512), at: 0)
            try image.write(at: UInt64(sector * 512), from: buffers)
            model[sector] = byte
          }
        } catch {
          bad.value = -1
        }
      }
    }
    #expect(bad.value == 0)
    try image.finish()
    try rig.check("a.qcow2")
  }

  /// The table of counts has to grow several times.
  @Test func aTableOfCountsGrows() throws {
    try rig.shell("qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 a.qcow2 40M")
    let image = try rig.open("a.qcow2")
    var random = SplitMix(seed: 1)
    var model: [UInt8] = []
    for _ in 0..<20 {
      let bytes = ImageRig.bytes(&random, 1 << 20)
      try rig.write(image, model.count, bytes)
      model += bytes
    }
    #expect(try rig.read(image, 0, 8 << 20) == Array(model[..<(8 << 20)]))
    try image.finish()
    try rig.check("a.qcow2")
    try rig.makeFile("model", model)
    try rig.shell("truncate -s 40M model")
    try rig.compare("a.qcow2", "model")
  }

  /// What a discard gives back is used again.
  @Test func roomIsUsedAgain() throws {
    try rig.shell("qemu-img create -q -f qcow2 a.qcow2 64M")
    let image = try rig.open("a.qcow2")
    var random = SplitMix(seed: 1)
    for _ in 0..<10 {
      try rig.write(image, 0, ImageRig.bytes(&random, 8 << 20))
      try image.flush()
      try image.discard(at: 0, count: 8 << 20)
      try image.flush()
    }
    try rig.check("a.qcow2")
    let size = try #require(Int(try rig.shell("stat -c %s a.qcow2").dropLast()))
    let blocks = try #require(Int(try rig.shell("stat -c %b a.qcow2").dropLast()))
    #expect(size < 24 << 20 && blocks * 512 < 2 << 20)
  }

  @Test func aTemporaryOverlayLeavesNothing() throws {
    var random = SplitMix(seed: 1)
    let base = ImageRig.bytes(&random, Self.size)
    try rig.makeFile("base", base)
    try rig.shell("qemu-img convert -q -O qcow2 -c base base.qcow2 && chmod 444 base*")
    for name in ["base", "base.qcow2"] {
      let hash = try rig.shell("sha256sum \(name)")
      let image = try rig.open(name) { $0.overlayFolder = rig.folder }
      #expect(!image.isReadOnly && image.size == UInt64(Self.size))
      var model = base
      try exercise(image, &model, &random, steps: Self.steps)
      #expect(try rig.shell("sha256sum \(name)") == hash)
      #expect(try rig.shell("ls") == "base\nbase.qcow2\n")
      // Readers may share it.
      let other = try rig.open(name) { $0.overlayFolder = rig.folder }
      #expect(try rig.contents(other) == base)
    }
  }
}
