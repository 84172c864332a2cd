// SPDX-License-Identifier: Apache-2.0
//
// A guest's access to memory that has gone ends the call that it is in without unwinding it
// (`GuardedCall`). That is sound because between entry and access no Swift frame holds what must be
// given back: memory, references, locks. Here each kind of access is cut off about a thousand
// times, 100,000 times in all, in the interpreter and in translated code; then the heap and the
// counts of references are what they were.

import Glibc
import Host
import Support
import Testing
import X86
import X86CPU
import X86JIT

@Suite struct VanishedMemoryTests {
  /// In a process of its own, whose SIGSEGV is the test's.
  @Test func framesThatAreCutOffHoldNothing() async {
    let result = await #expect(
      processExitsWith: .success, observing: [\.standardErrorContent]
    ) {
      FaultHandler.install()
      for threshold in [UInt32(0), 1] {
        for access in Access.all {
          do {
            try VanishedGuest(access, threshold: threshold).run()
          } catch {
            Self.say("\(access.name), write \(access.isWrite), \(threshold): \(error)\n")
          }
        }
      }
      Self.say("done")
    }
    #expect(String(decoding: result?.standardErrorContent ?? [], as: UTF8.self) == "done")
  }

  private static func say(_ text: String) {
    _ = text.withCString { write(STDERR_FILENO, $0, strlen($0)) }
  }

  /// How often an access has to be cut off for 100,000 in all.
  fileprivate static let rounds = 100_000 / (2 * Access.all.count) + 1
}

/// The handler of SIGSEGV: every fault here is a guest's.
private enum FaultHandler {
  static func install() {
    GuardedCopy.prepare()
    GuardedCall.prepare()
    var action = sigaction()
    action.__sigaction_handler.sa_sigaction = { _, info, context in
      let address = info.map { UInt(bitPattern: $0.pointee._sifields._sigfault.si_addr) } ?? 0
      if !GuardedCopy.recover(context), !GuardedCall.recover(address, context) { _exit(70) }
    }
    action.sa_flags = Int32(SA_SIGINFO)
    for number in [SIGSEGV, SIGBUS] { sigaction(number, &action, nil) }
  }
}

/// An instruction at 0x1000 that accesses the page at 2 MiB, which RBX, RBP, RSI and RDI point
/// into.
private struct Access: Sendable {
  var name: String
  var code: [UInt8]
  /// Where RIP is when the access has been cut off.
  var rip: UInt64 = 0x1000
  /// The page can be read: only the write fails.
  var isWrite = false
  /// What else has to lie in the page.
  var fields: [VMCSField] = []

  static let page: UInt64 = 0x20_0000

  static let all: [Access] =
    loads + stores + [
      Access(name: "push", code: [0x51], isWrite: true, fields: [.guestRSP]),
      Access(name: "pop", code: [0x59], fields: [.guestRSP]),
      Access(name: "call", code: [0xE8, 0, 0, 0, 0], isWrite: true, fields: [.guestRSP]),
      Access(name: "ret", code: [0xC3], fields: [.guestRSP]),
      Access(name: "enter", code: [0xC8, 16, 0, 1], isWrite: true, fields: [.guestRSP]),
      Access(name: "leave", code: [0xC9]),
      Access(name: "pushf", code: [0x9C], isWrite: true, fields: [.guestRSP]),
      Access(name: "iret", code: [0x48, 0xCF], fields: [.guestRSP]),
      Access(name: "fetch", code: [0xFF, 0xE3], rip: page),
      Access(name: "descriptor", code: [0x8E, 0xD9], fields: [.guestGDTRBase]),
      Access(name: "exception", code: [0x0F, 0x0B], fields: [.guestIDTRBase]),
      Access(name: "software interrupt", code: [0xCD, 0x20], fields: [.guestIDTRBase]),
      Access(name: "page walk", code: [0x90], fields: [.guestCR3]),
    ]

  private static let loads: [Access] = [
    Access(name: "mov", code: [0x48, 0x8B, 0x03]),
    Access(name: "add", code: [0x48, 0x03, 0x0B]),
    Access(name: "push from memory", code: [0xFF, 0x33]),
    Access(name: "jmp", code: [0xFF, 0x23]),
    Access(name: "far jmp", code: [0xFF, 0x2B]),
    Access(name: "xlat", code: [0xD7]),
    Access(name: "movs", code: [0xF3, 0xA4]),
    Access(name: "scas", code: [0xF2, 0xAE]),
    Access(name: "cmps", code: [0xF3, 0xA6]),
    Access(name: "movups", code: [0x0F, 0x10, 0x03]),
    Access(name: "fld", code: [0xDB, 0x2B]),
    Access(name: "frstor", code: [0xDD, 0x23]),
    Access(name: "fxrstor", code: [0x0F, 0xAE, 0x0B]),
    Access(name: "ldmxcsr", code: [0x0F, 0xAE, 0x13]),
    Access(name: "lgdt", code: [0x0F, 0x01, 0x13]),
    Access(name: "mov segment", code: [0x8E, 0x1B]),
    Access(name: "bt", code: [0x48, 0x0F, 0xA3, 0x0B]),
  ]

  private static let stores: [Access] = [
    Access(name: "mov", code: [0x48, 0x89, 0x0B], isWrite: true),
    Access(name: "add", code: [0x48, 0x01, 0x0B], isWrite: true),
    Access(name: "inc", code: [0xFF, 0x03], isWrite: true),
    Access(name: "lock xadd", code: [0xF0, 0x48, 0x0F, 0xC1, 0x0B], isWrite: true),
    Access(name: "lock cmpxchg", code: [0xF0, 0x48, 0x0F, 0xB1, 0x0B], isWrite: true),
    Access(name: "lock cmpxchg16b", code: [0xF0, 0x48, 0x0F, 0xC7, 0x0B], isWrite: true),
    Access(name: "lock bts", code: [0xF0, 0x48, 0x0F, 0xAB, 0x0B], isWrite: true),
    Access(name: "xchg", code: [0x48, 0x87, 0x0B], isWrite: true),
    Access(name: "stos", code: [0xF3, 0x48, 0xAB], isWrite: true),
    Access(name: "movups", code: [0x0F, 0x11, 0x03], isWrite: true),
    Access(name: "fstp", code: [0xDB, 0x3B], isWrite: true),
    Access(name: "fxsave", code: [0x0F, 0xAE, 0x03], isWrite: true),
    Access(name: "sidt", code: [0x0F, 0x01, 0x0B], isWrite: true),
    Access(name: "pop to memory", code: [0x8F, 0x03], isWrite: true),
  ]
}

/// The C library's heap, by malloc_info(3), which the compiler's module of it lacks.
private enum Heap {
  private typealias Report = @convention(c) (Int32, UnsafeMutablePointer<FILE>?) -> Int32

  static var bytesInUse: Int {
    var text: UnsafeMutablePointer<CChar>?
    var length = 0
    guard let symbol = dlsym(nil, "malloc_info"), let stream = open_memstream(&text, &length) else {
      return 0
    }
    _ = unsafeBitCast(symbol, to: Report.self)(0, stream)
    fclose(stream)
    defer { free(text) }
    // The sums over all arenas come last.
    let lines = text.map { String(cString: $0).split(separator: "\n") } ?? []
    func size(_ start: String) -> Int {
      let parts = lines.last { $0.hasPrefix(start) }?.split(separator: "\"") ?? []
      return parts.count > 1 ? Int(parts[parts.count - 2]) ?? 0 : 0
    }
    return size("<system type=\"current\"") - size("<total type=\"fast\"")
      - size("<total type=\"rest\"") + size("<total type=\"mmap\"")
  }
}

private struct Failure: Error, CustomStringConvertible {
  var description: String
  init(_ description: String) { self.description = description }
}

private final class VanishedGuest {
  private let machine: VMXMachine
  private let access: Access
  private let place: UnsafeMutableRawPointer
  private var isLaunched = false

  init(_ access: Access, threshold: UInt32) throws {
    self.access = access
    machine = try VMXMachine(threshold: threshold)
    place = machine.test.memory + Int(Access.page)
    machine.test.load(access.code + [0xF4], at: 0x1000)
    for field in access.fields { machine.processor.vmwrite(field, Access.page) }
    if access.fields.contains(.guestRSP) { machine.processor.vmwrite(.guestRSP, Access.page + 64) }
  }

  deinit { mprotect(place, 4096, PROT_READ | PROT_WRITE) }

  /// What must not grow.
  private struct Counts: CustomStringConvertible {
    var bytes: Int
    var references: [UInt]

    init(_ machine: VMXMachine) {
      bytes = Heap.bytesInUse
      references = [
        _getRetainCount(machine.processor), _getUnownedRetainCount(machine.processor),
        machine.test.translator.map { _getRetainCount($0) } ?? 0,
      ]
    }

    var description: String { "\(bytes) bytes, references \(references)" }
  }

  func run() throws {
    mprotect(place, 4096, access.isWrite ? PROT_READ : PROT_NONE)
    // What is made once: blocks, translations, entries of tables.
    for _ in 0..<32 { try accessOnce() }
    let before = Counts(machine)
    for _ in 0..<VanishedMemoryTests.rounds { try accessOnce() }
    let after = Counts(machine)
    // A chunk of the heap for each round would be three times as much.
    guard after.bytes - before.bytes < 10 * VanishedMemoryTests.rounds,
      before.references == after.references
    else { throw Failure("holds what it held not before: \(before); \(after)") }
  }

  private func accessOnce() throws {
    let (cpu, processor) = (machine.cpu, machine.processor)
    for register in [3, 5, 6, 7] { cpu.gpr[register] = Access.page }
    cpu.gpr[0] = 0
    cpu.gpr[1] = 16
    processor.vmwrite(.guestRIP, 0x1000)
    let reason = try isLaunched ? processor.vmresume() : processor.vmlaunch()
    isLaunched = true
    let isInPage = processor.takeHostFault().map {
      (UInt(bitPattern: place)..<UInt(bitPattern: place) + 4096).contains($0)
    }
    guard reason == .externalInterrupt, isInPage == true else {
      throw Failure("ended with \(reason), in the page: \(String(describing: isInPage))")
    }
    guard processor.vmread(.guestRIP) == access.rip, cpu.gpr[0] == 0, cpu.gpr[1] == 16,
      [3, 5, 6, 7].allSatisfy({ cpu.gpr[$0] == Access.page })
    else {
      throw Failure(
        "is not where the access was, but at \(processor.vmread(.guestRIP)): \((0..<8).map { cpu.gpr[$0] })"
      )
    }
  }
}
