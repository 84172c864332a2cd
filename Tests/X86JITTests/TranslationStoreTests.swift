// SPDX-License-Identifier: Apache-2.0
//
// Translations that are kept from run to run: a "run" here is a machine with a store of its own, of
// one folder.

import Glibc
import Host
import Support
import Testing
import X86
import X86CPU
import X86Decoder
import X86JIT

/// A folder that goes away with its owner.
private final class Folder {
  let path: String

  init() {
    var name = Array("/tmp/martlet-store-XXXXXX".utf8CString)
    path = String(cString: mkdtemp(&name))
  }

  deinit {
    for name in files { unlink(path + "/" + name) }
    rmdir(path)
  }

  var files: [String] {
    ((try? PrivateFolder(opening: path, creates: false).entries()) ?? []).map(\.name)
  }

  /// Of all files.
  var bytes: Int {
    ((try? PrivateFolder(opening: path, creates: false).entries()) ?? []).reduce(0) { $0 + $1.size }
  }

  var file: String { path + "/" + (files.first ?? "none") }

  func store(limit: Int = 1 << 24, guards: Bool = true) throws -> TranslationStore {
    try TranslationStore(
      TranslationStoreSettings(path: path, limit: limit),
      TranslationOptions(
        guardsSpeculation: guards, countsInstructions: true, measures: false,
        guardsAccesses: GuardedCall.isPrepared))
  }
}

@Suite(.serialized) struct TranslationStoreTests {
  private static let code = 0x20000
  /// mov ecx, 100; L: add eax, ecx; mov [rdi], eax; add eax, [rdi]; jz E; dec ecx; jnz L; E: hlt
  private static let loop: [UInt8] = [
    0xB9, 100, 0, 0, 0, 0x01, 0xC8, 0x89, 0x07, 0x03, 0x07, 0x74, 0x04, 0xFF, 0xC9, 0x75, 0xF4,
    0xF4,
  ]

  private struct Result: Equatable {
    var registers: [UInt64]
    var retired: UInt64
  }

  private struct Run {
    var results: [Result]
    var statistics: Translator.Statistics
    var machine: TestMachine
  }

  private func machine(
    _ store: TranslationStore?, threshold: UInt32 = 2, is32Bit: Bool = false, guards: Bool = true
  ) -> TestMachine {
    let m = TestMachine(
      megabytes: 2, threshold: threshold, codeBytes: 1 << 18, hotEntries: 8,
      guardsSpeculation: guards, verifies: false, store: store)
    if is32Bit { m.setProtectedMode() } else { m.setLongMode() }
    return m
  }

  /// Runs code several times, and keeps what was translated.
  private func run(
    _ bytes: [UInt8], at place: Int = code, _ store: TranslationStore?, times: Int = 4,
    threshold: UInt32 = 2, is32Bit: Bool = false, guards: Bool = true
  ) throws -> Run {
    let m = machine(store, threshold: threshold, is32Bit: is32Bit, guards: guards)
    m.load(bytes, at: place)
    var results: [Result] = []
    for _ in 0..<times {
      for n in 0..<16 { m.cpu.gpr[n] = 0 }
      m.cpu.gpr[7] = 0x40000
      m.cpu.gpr[4] = 0x50000
      m.cpu.s.pointee.retired = 0
      #expect(m.run(from: UInt64(place)) == .hlt)
      results.append(
        Result(registers: (0..<16).map { m.cpu.gpr[$0] }, retired: m.cpu.s.pointee.retired))
    }
    store?.flush()
    let statistics = try #require(m.translator).statistics
    return Run(results: results, statistics: statistics, machine: m)
  }

  @Test(arguments: [false, true]) func theSecondRunIsWarm(_ is32Bit: Bool) throws {
    let folder = Folder()
    let cold = try run(Self.loop, folder.store(), is32Bit: is32Bit)
    #expect(cold.statistics.blocks > 0 && cold.statistics.recalled == 0)
    #expect(cold.statistics.regions > 0)
    let warm = try run(Self.loop, folder.store(), is32Bit: is32Bit)
    #expect(warm.statistics.recalled >= cold.statistics.blocks - cold.statistics.regions)
    #expect(warm.statistics.recalledRegions > 0 && warm.statistics.blocks == 0)
    #expect(warm.results == cold.results)
    #expect(try run(Self.loop, nil, is32Bit: is32Bit).results == cold.results)
  }

  /// Programs start at other linear addresses in each run.
  @Test func pagesMayHaveOtherAddresses() throws {
    let folder = Folder()
    let cold = try run(Self.loop, folder.store())
    let warm = try run(Self.loop, at: 0x7F000, folder.store())
    #expect(warm.statistics.recalled > 0 && warm.results == cold.results)
    // Elsewhere in the page it is other code.
    let moved = try run(Self.loop, at: Self.code + 1, folder.store())
    #expect(moved.statistics.recalled == 0 && moved.results == cold.results)
  }

  @Test func aDifferentByteIsDifferentCode() throws {
    let folder = Folder()
    _ = try run(Self.loop, folder.store())
    for index in 1...3 {
      var other = Self.loop
      other[index] ^= 8
      let expected = try run(other, nil)
      #expect(try run(other, folder.store()).results == expected.results)
    }
    // mov [rdi + 16], eax: what follows is elsewhere.
    var other = Self.loop
    other[8] = 0x47
    other.insert(0x10, at: 9)
    other[17] = 0xF3
    let expected = try run(other, nil)
    #expect(try run(other, folder.store()).results == expected.results)
  }

  @Test func modesAndOptionsAreApart() throws {
    let folder = Folder()
    let cold = try run(Self.loop, folder.store())
    let other = try run(Self.loop, folder.store(), is32Bit: true)
    #expect(other.statistics.recalled == 0 && other.statistics.blocks > 0)
    let unguarded = try run(Self.loop, folder.store(guards: false), guards: false)
    #expect(unguarded.statistics.recalled == 0 && unguarded.results == cold.results)
    #expect(folder.files.count == 2)
    #expect(try run(Self.loop, folder.store()).statistics.recalled > 0)
  }

  @Test func withoutAStoreNothingIsKept() throws {
    #expect(try run(Self.loop, nil).statistics.recalled == 0)
  }

  // MARK: Code that changes

  /// A recalled translation goes when the guest writes to its page.
  @Test func writtenCodeIsDropped() throws {
    // call F; add ebx, eax; mov byte [F + 1], 9; call F; add ebx, eax; mov byte [F + 1], 5; hlt
    var caller: [UInt8] = [0xE8, 0, 0, 0, 0, 0x01, 0xC3]
    caller += [0xC6, 0x04, 0x25, 1, 0x30, 2, 0, 9, 0xE8, 0, 0, 0, 0, 0x01, 0xC3]
    caller += [0xC6, 0x04, 0x25, 1, 0x30, 2, 0, 5, 0xF4]
    let function = 0x23000
    for call in [0, 15] {
      let distance = Int32(function - (Self.code + call + 5))
      withUnsafeBytes(of: distance) { for n in 0..<4 { caller[call + 1 + n] = $0[n] } }
    }
    let folder = Folder()
    for round in 0..<3 {
      let store = try folder.store()
      let m = machine(store, threshold: 1)
      m.load(caller, at: Self.code)
      m.load([0xB8, 5, 0, 0, 0, 0xC3], at: function)  // mov eax, 5; ret
      for _ in 0..<6 {
        m.cpu.gpr[3] = 0
        m.cpu.gpr[4] = 0x50000
        #expect(m.run(from: UInt64(Self.code)) == .hlt)
        #expect(m.cpu.gpr[3] == 14)
      }
      store.flush()
      #expect(round == 0 || (m.translator?.statistics.recalled ?? 0) > 2)
    }
  }

  @Test(
    arguments: [
      (1, false, CodeMode.bits64), (2, true, .bits64), (3, false, .bits32), (4, true, .bits32),
    ] as [(UInt64, Bool, CodeMode)])
  func randomBlocksRunWarmAsCold(_ seed: UInt64, _ vector: Bool, _ mode: CodeMode) throws {
    let folder = Folder()
    let rounds = RandomRounds(debug: 100, release: 2000)
    for isWarm in [false, true] {
      let store = try folder.store(limit: 1 << 28)
      var rig = ComparisonRig(
        seed: seed &* 0xA076_1D64_78BD_642F, vector: vector, mode: mode, verifies: false,
        store: store)
      for round in rounds.range {
        rig.begin(round)
        guard let difference = rig.round() else { continue }
        Issue.record("seed \(seed), warm \(isWarm), round \(round): \(difference)")
        return
      }
      store.flush()
      #expect(
        !isWarm || rig.recalledBlocks > UInt64(rounds.range.count / 2) || RandomRounds.again != nil)
    }
  }

  // MARK: The file

  @Test func truncatedFilesAreUsedAsFarAsTheyGo() throws {
    let folder = Folder()
    let cold = try run(Self.loop, folder.store())
    let whole = try contentsOfFile(folder.file)
    for length in stride(from: 0, to: whole.count, by: max(whole.count / 40, 1)) {
      try write(Array(whole[..<length]), to: folder.file)
      let run = try run(Self.loop, folder.store())
      #expect(run.results == cold.results)
      // It is whole again.
      #expect(try self.run(Self.loop, folder.store()).statistics.recalled > 0)
    }
  }

  @Test func damagedFilesDoNoHarm() throws {
    let folder = Folder()
    let cold = try run(Self.loop, folder.store())
    let whole = try contentsOfFile(folder.file)
    var random = SplitMix(state: 5)
    for _ in 0..<200 {
      var damaged = whole
      for _ in 0..<Int.random(in: 1...3, using: &random) {
        let place = Int.random(in: 0..<damaged.count, using: &random)
        damaged[place] ^= UInt8(1) << UInt8.random(in: 0..<8, using: &random)
      }
      try write(damaged, to: folder.file)
      #expect(try run(Self.loop, folder.store()).results == cold.results)
    }
    try write([UInt8](repeating: 0xA5, count: 100_000), to: folder.file)
    let foreign = try run(Self.loop, folder.store())
    #expect(foreign.results == cold.results && foreign.statistics.recalled == 0)
  }

  private func write(_ bytes: [UInt8], to path: String) throws {
    let file = open(path, O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0o600)
    try #require(file >= 0)
    defer { close(file) }
    try writeAll(file, bytes.bytes)
  }

  /// What two processes add at once is there afterwards.
  @Test func severalWriteAtOnce() throws {
    let folder = Folder()
    let (one, two) = (try folder.store(), try folder.store())
    var other = Self.loop
    other[1] = 50
    for _ in 0..<3 {
      _ = try run(Self.loop, one)
      _ = try run(other, two)
    }
    let third = try run(Self.loop, folder.store())
    #expect(third.statistics.recalled > 0 && third.statistics.blocks == 0)
    let fourth = try run(other, folder.store())
    #expect(fourth.statistics.recalled > 0 && fourth.statistics.blocks == 0)
    #expect(try !folder.store().wasRepaired)
  }

  /// Old translations make room for new ones.
  @Test func theFolderIsBounded() throws {
    let folder = Folder()
    let limit = 16_000
    var isFirstGone = false
    for number in 0..<60 as Range<UInt8> {
      var program = Self.loop
      program[1] = number + 1
      _ = try run(program, folder.store(limit: limit))
      #expect(folder.bytes <= limit)
      if number == 50 {
        program[1] = 1
        isFirstGone = try run(program, folder.store(limit: limit)).statistics.blocks > 0
      }
    }
    #expect(isFirstGone && folder.bytes > limit / 4)
    // Files of other builds count.
    try write([UInt8](repeating: 0, count: limit), to: folder.path + "/other.translations")
    _ = try run(Self.loop, folder.store(limit: limit))
    #expect(folder.files.count == 1)
  }

  @Test func othersFoldersAreRefused() throws {
    let folder = Folder()
    _ = try run(Self.loop, folder.store())
    chmod(folder.file, 0o644)
    #expect(throws: PrivateFolderError.open(mode: 0o644)) { _ = try folder.store() }
    chmod(folder.file, 0o600)
    chmod(folder.path, 0o755)
    #expect(throws: PrivateFolderError.open(mode: 0o755)) { _ = try folder.store() }
    chmod(folder.path, 0o700)
    let name = folder.file
    rename(name, name + ".new")
    symlink(name + ".new", name)
    #expect(throws: PrivateFolderError.wrongKind) { _ = try folder.store() }
    unlink(name)
    rename(name + ".new", name)
    #expect(try run(Self.loop, folder.store()).statistics.recalled > 0)
    let link = folder.path + "-link"
    symlink(folder.path, link)
    defer { unlink(link) }
    #expect(throws: PrivateFolderError.wrongKind) {
      _ = try PrivateFolder(opening: link, creates: true)
    }
  }
}
