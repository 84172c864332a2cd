// SPDX-License-Identifier: Apache-2.0
//
// Litmus tests of memory ordering (SDM volume 3, "Memory Ordering"), on the host, the interpreter
// and the translator. Threads run free and note what they see; afterwards no pair of notes may be
// one that the architecture forbids. What it allows is not asked for, so timing decides nothing.
//
// The code is the same everywhere: RDI is the shared memory, RSI the thread's notes, RCX the
// rounds, and RDX comes back. It ends with RET on the host and with HLT in a guest.

import Foundation
import Support
import Testing
import X86
import X86CPU
import X86JIT

/// Who runs a thread's code.
enum LitmusEngine: String, CaseIterable, Sendable { case host, interpreter, translator }

/// How a thread stores RAX at [RDI + x].
enum LitmusStore: String, CaseIterable, Sendable {
  case plain, locked, nonTemporal, string, repeatedString, vector, vectorNonTemporal
  case flushed, mixed

  func emit(_ a: inout Assembler) {
    switch self {
    case .plain: a.store(.memory(.rdi), .rax)
    case .locked:
      a.move(.r8, .rax)
      a.emit(0x4C, 0x87, 0x07)  // xchg [rdi], r8
    case .nonTemporal:
      a.emit(0x48, 0x0F, 0xC3, 0x07)  // movnti [rdi], rax
      a.storeFence()
    case .string: string(&a, [0x48, 0xAB])
    case .repeatedString: string(&a, [0xF3, 0x48, 0xAB])
    case .vector:
      a.emit(0x66, 0x48, 0x0F, 0x6E, 0xC0)  // movq xmm0, rax
      a.emit(0x0F, 0x11, 0x07)  // movups [rdi], xmm0
    case .vectorNonTemporal:
      a.emit(0x66, 0x48, 0x0F, 0x6E, 0xC0)
      a.emit(0x66, 0x0F, 0xE7, 0x07)  // movntdq [rdi], xmm0
      a.storeFence()
    case .flushed:
      a.store(.memory(.rdi), .rax)
      a.emit(0x0F, 0xAE, 0x3F)  // clflush [rdi]
      a.storeFence()
    case .mixed:
      a.emit(0x48, 0x0F, 0xC3, 0x07)
      a.emit(0x0F, 0xAE, 0xF0)  // mfence
    }
  }

  private func string(_ a: inout Assembler, _ bytes: [UInt8]) {
    a.move(.r8, .rdi)
    a.move(.r9, .rcx)
    a.move(.rcx, immediate: 1)
    for byte in bytes { a.byte(byte) }
    a.move(.rdi, .r8)
    a.move(.rcx, .r9)
  }
}

@Suite(.serialized) struct OrderingTests {
  #if DEBUG
    private static let rounds = 4000
  #else
    private static let rounds = 40000
  #endif

  /// Who sees a flag sees the data that was stored before it.
  @Test(arguments: LitmusEngine.allCases, LitmusStore.allCases)
  func messagePassing(_ engine: LitmusEngine, _ store: LitmusStore) throws {
    let rig = try LitmusRig(engine, rounds: Self.rounds)
    let writer = rig.thread { a in
      Self.countUp(&a) { a in
        store.emit(&a)
        a.store(.memory(.rdi, Litmus.y), .rax)
      }
    }
    // Until the last flag is there; RDX counts data older than the flag.
    let reader = rig.thread { a in
      let (head, fine) = (a.label(), a.label())
      a.bind(head)
      a.load(.rax, .memory(.rdi, Litmus.y))
      a.loadFence()
      a.load(.r8, .memory(.rdi))
      a.arithmetic(.cmp, .r8, .register(.rax))
      a.jump(if: 3, fine)
      a.arithmetic(.add, .register(.rdx), immediate: 1)
      a.bind(fine)
      a.arithmetic(.cmp, .rax, .register(.rcx))
      a.jump(if: 2, head)
    }
    let results = rig.run([writer, reader])
    #expect(results[1] == 0, "\(results[1]) times the flag came before the data")
  }

  /// Two threads store and then look at each other's store: behind fences, one sees it.
  @Test(arguments: LitmusEngine.allCases, [false, true])
  func storeBuffering(_ engine: LitmusEngine, _ locks: Bool) throws {
    let rig = try LitmusRig(engine, rounds: Self.rounds)
    func thread(_ own: Int32, _ other: Int32) -> [UInt8] {
      rig.thread { a in
        Self.countUp(&a) { a in
          if locks {
            a.move(.r8, .rax)
            a.emit(0x4C, 0x87, 0x87)  // xchg [rdi + own], r8
            a.int32(own)
          } else {
            a.store(.memory(.rdi, own), .rax)
            a.emit(0x0F, 0xAE, 0xF0)
          }
          Self.note(&a, other)
        }
      }
    }
    _ = rig.run([thread(Litmus.x, Litmus.y), thread(Litmus.y, Litmus.x)])
    let (first, second) = (rig.notes(0), rig.notes(1))
    for round in 1...Self.rounds {
      // The first store of the other that this round did not see did not see this round's either.
      let unseen = Int(first[round - 1]) + 1
      guard unseen <= Self.rounds else { continue }
      #expect(Int(second[unseen - 1]) >= round, "round \(round) and \(unseen) see neither")
    }
  }

  /// Two threads that look at two others' stores see them in one order.
  @Test(arguments: LitmusEngine.allCases) func independentReads(_ engine: LitmusEngine) throws {
    let rig = try LitmusRig(engine, rounds: Self.rounds)
    func writer(_ place: Int32) -> [UInt8] {
      rig.thread { a in Self.countUp(&a) { a in a.store(.memory(.rdi, place), .rax) } }
    }
    func reader(_ first: Int32, _ second: Int32) -> [UInt8] {
      rig.thread { a in
        Self.countUp(&a) { a in
          Self.note(&a, first)
          Self.note(&a, second)
        }
      }
    }
    _ = rig.run([
      writer(Litmus.x), writer(Litmus.y), reader(Litmus.x, Litmus.y), reader(Litmus.y, Litmus.x),
    ])
    let (one, other) = (rig.notes(2), rig.notes(3))
    var last = -1
    for n in 0..<Self.rounds {
      let (x, y) = (one[2 * n], one[2 * n + 1])
      while last + 1 < Self.rounds, other[2 * (last + 1) + 1] < x { last += 1 }
      if last >= 0 { #expect(other[2 * last] <= y, "\(n) and \(last) differ in the order") }
    }
  }

  /// RAX from 1 to RCX.
  private static func countUp(_ a: inout Assembler, _ body: (inout Assembler) -> Void) {
    let head = a.label()
    a.move(.rax, immediate: 1)
    a.bind(head)
    body(&a)
    a.arithmetic(.add, .register(.rax), immediate: 1)
    a.arithmetic(.cmp, .rax, .register(.rcx))
    a.jump(if: 6, head)
  }

  private static func note(_ a: inout Assembler, _ place: Int32) {
    a.load(.r8, .memory(.rdi, place))
    a.store(.memory(.rsi), .r8)
    a.lea(.rsi, .memory(.rsi, 8))
  }
}

/// Places of the shared memory.
private enum Litmus {
  static let x: Int32 = 0
  static let y: Int32 = 256
  static let arrived: Int32 = 512
}

/// Memory that threads share, and processors for them.
private final class LitmusRig: @unchecked Sendable {
  private let engine: LitmusEngine
  private let rounds: Int
  private var threads = 0
  private let first: TestMachine
  private static let shared = 0x10_0000
  private static let code = 0x2_0000
  private static func notes(_ thread: Int) -> Int { 0x20_0000 + thread * 0x10_0000 }

  init(_ engine: LitmusEngine, rounds: Int) throws {
    self.engine = engine
    self.rounds = rounds
    first = TestMachine(megabytes: 8, threshold: engine == .translator ? 1 : 0)
  }

  /// A thread's code: it begins when all have arrived.
  func thread(_ body: (inout Assembler) -> Void) -> [UInt8] {
    var a = Assembler(origin: 0)
    a.emit(0xF0, 0x48, 0xFF, 0x87)  // lock inc qword [rdi + arrived]
    a.int32(Litmus.arrived)
    let wait = a.label()
    a.bind(wait)
    a.load(.rax, .memory(.rdi, Litmus.arrived))
    a.arithmetic(.cmp, .rax, .register(.r10))
    a.jump(if: 2, wait)
    body(&a)
    a.move(.rax, .rdx)
    a.resolve()
    return a.bytes
  }

  /// RDX of each.
  func run(_ codes: [[UInt8]]) -> [UInt64] {
    let results = UnsafeMutablePointer<UInt64>.allocate(capacity: codes.count)
    defer { results.deallocate() }
    results.initialize(repeating: .max, count: codes.count)
    nonisolated(unsafe) let place = results
    let machines = codes.indices.map { n in
      n == 0
        ? first
        : TestMachine(threshold: engine == .translator ? 1 : 0, sharing: first)
    }
    if engine != .host { for m in machines { m.setLongMode() } }
    nonisolated(unsafe) let all = machines
    let group = DispatchGroup()
    for (n, code) in codes.enumerated() {
      group.enter()
      Thread.detachNewThread {
        place[n] =
          self.engine == .host
          ? self.runOnHost(code, n, codes.count) : self.run(code, n, codes.count, on: all[n])
        group.leave()
      }
    }
    group.wait()
    return codes.indices.map { results[$0] }
  }

  private func run(_ code: [UInt8], _ n: Int, _ count: Int, on m: TestMachine) -> UInt64 {
    let start = Self.code + n * 0x1000
    m.load(code + [0xF4], at: start)
    m.cpu.gpr[7] = UInt64(Self.shared)
    m.cpu.gpr[6] = UInt64(Self.notes(n))
    m.cpu.gpr[2] = 0
    m.cpu.gpr[1] = UInt64(rounds)
    m.cpu.gpr[10] = UInt64(count)
    return m.run(from: UInt64(start)) == .hlt ? m.cpu.gpr[0] : .max
  }

  private func runOnHost(_ code: [UInt8], _ n: Int, _ count: Int) -> UInt64 {
    // R10 comes first.
    var a = Assembler(origin: 0)
    a.move(.r10, immediate: UInt64(count))
    let bytes = a.bytes + code + [0xC3]
    guard
      let memory = mmap(
        nil, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
      memory != MAP_FAILED
    else { return .max }
    defer { munmap(memory, 4096) }
    memory.copyMemory(from: bytes, byteCount: bytes.count)
    mprotect(memory, 4096, PROT_READ | PROT_EXEC)
    typealias Function =
      @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer, UInt64, UInt64) -> UInt64
    let function = unsafeBitCast(memory, to: Function.self)
    return function(
      first.memory + Self.shared, first.memory + Self.notes(n), 0, UInt64(rounds))
  }

  /// What a thread noted.
  func notes(_ thread: Int) -> UnsafePointer<UInt64> {
    UnsafeRawPointer(first.memory + Self.notes(thread)).assumingMemoryBound(to: UInt64.self)
  }
}
