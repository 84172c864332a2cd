// SPDX-License-Identifier: Apache-2.0
//
// How long a guest waits for its hypervisor, through the KVM API as any client uses it: exits that
// the hypervisor answers itself, and exits that go to user space and back through KVM_RUN. The same
// guests on the software KVM, with VT-x and with SVM, and on the kernel's.

import CHost
import Glibc
import Host
import KVMClient
import KVMLoopback
import Synchronization
import SystemPackage
import X86

/// Prints nanoseconds for each round, the two instructions of the guest's loop included.
func measureExits() throws {
  let software = try LoopbackTransport(physicalCPUs: 1, silicon: .intel)
  let other = try LoopbackTransport(physicalCPUs: 1, silicon: .amd)
  // One after the other, so that both find the same machine.
  for entry in exitLoops {
    report("exit soft \(entry.name) \(rounded(try best(entry, software), 1))")
    report("exit soft-amd \(entry.name) \(rounded(try best(entry, other), 1))")
  }
  for (name, body) in [("l2-cpuid", NestedExits.plain), ("l2-cpuid-linux", NestedExits.likeLinux)] {
    report("exit soft-amd \(name) \(rounded(try best((name, body), other, nested: true), 1))")
  }
  try measureDeviceExits("kvm")
}

/// The same on `/dev/kvm`, whosever it is.
func measureDeviceExits(_ name: String) throws {
  KickSignal.install()
  let device = DeviceTransport()
  guard (try? System(transport: device)) != nil else { return }
  for entry in exitLoops {
    guard let time = try? best(entry, device) else { continue }
    report("exit \(name) \(entry.name) \(rounded(time, 1))")
  }
}

private let exitLoops: [(name: String, body: [UInt8])] = [
  ("cpuid", [0x31, 0xC0, 0x0F, 0xA2]),  // xor eax, eax; cpuid
  ("vmcall", [0xB8, 0xFF, 0xFF, 0x00, 0x00, 0x0F, 0x01, 0xC1]),  // mov eax, 0xffff; vmcall
  ("port-out", [0xE6, 0xE9]),  // out 0xe9, al
  ("port-in", [0xE4, 0xE9]),  // in al, 0xe9
  ("mmio-write", [0xA3, 0x00, 0x00, 0x00, 0xD0]),  // mov [0xd0000000], eax
  ("mmio-read", [0xA1, 0x00, 0x00, 0x00, 0xD0]),  // mov eax, [0xd0000000]
]

/// Nanoseconds of the thread's CPU time for each round: the best of several batches, each long
/// enough to measure on a fast KVM and short enough on a slow one.
private func best(
  _ entry: (name: String, body: [UInt8]), _ transport: any KVMTransport, nested: Bool = false
) throws -> Double {
  let guest = try ExitGuest(transport, entry.body, nested: nested)
  let begin = HostClock.monotonic()
  let first = try guest.run(rounds: firstRounds)
  let elapsed = Double(HostClock.monotonic() &- begin) / Double(firstRounds)
  let rounds = UInt64(min(max(20e6 / elapsed, 200), 200_000))
  return try (0..<7).map { _ in try guest.run(rounds: rounds) }.min() ?? first
}

private let firstRounds: UInt64 = 200

/// A machine with one CPU in flat 32-bit mode that executes a body ESI times and halts.
private struct ExitGuest {
  private static let start: UInt64 = 0x1000
  private static let memorySize = 2 << 20
  /// Nanoseconds that a batch may take.
  private static let limit: UInt64 = 3_000_000_000

  private let machine: MachineHandle
  private let cpu: VirtualCPUHandle
  private let memory: SharedMapping

  init(_ transport: any KVMTransport, _ body: [UInt8], nested: Bool) throws {
    let system = try System(transport: transport)
    machine = try system.createMachine()
    memory = try SharedMapping(Self.memorySize)
    let back = UInt8(truncatingIfNeeded: -(body.count + 3))
    let code = body + [0x4E, 0x75, back, 0xF4]  // dec esi; jnz; hlt
    memory.address.advanced(by: Int(Self.start))
      .copyMemory(from: code, byteCount: code.count)
    try machine.setMemory(
      slot: 0, guestAddress: 0, size: UInt64(Self.memorySize), hostAddress: memory.address)
    cpu = try machine.createVirtualCPU(0)
    try cpu.setCPUID(try system.supportedCPUID())
    var special = try cpu.specialRegisters()
    special.cr0 = CR0([.pe, .et]).rawValue
    special.cs = Self.segment(type: 11)
    special.ss = Self.segment(type: 3)
    (special.ds, special.es) = (special.ss, special.ss)
    if nested {
      NestedExits.prepare(memory.address)
      special.efer = EFER.svme.rawValue
    }
    try cpu.setSpecialRegisters(special)
  }

  /// Nanoseconds of CPU time for each round. A KVM may never get to the end: one that patches a
  /// hypercall into the one of its own processor and executes it again, for ever.
  func run(rounds: UInt64) throws -> Double {
    let isOver = Flag()
    let (cpu, thread) = (cpu, ThreadIdentifier.current)
    let watch = try HostThread(name: "watch") {
      let limit = HostClock.monotonic() + Self.limit
      while !isOver.value.load(ordering: .relaxed) {
        if HostClock.monotonic() > limit { cpu.kick(thread) }
        usleep(1000)
      }
    }
    let time = Result { try execute(rounds) }
    isOver.value.store(true, ordering: .relaxed)
    watch.join()
    return try time.get()
  }

  private func execute(_ rounds: UInt64) throws -> Double {
    var registers = kvm_regs()
    registers.rip = Self.start
    registers.rsi = rounds
    registers.rflags = RFLAGS([.fixed]).rawValue
    try cpu.setRegisters(registers)
    let begin = HostClock.threadCPU()
    while true {
      switch try cpu.run() {
      case .halt: return Double(HostClock.threadCPU() &- begin) / Double(rounds)
      case .io(let access) where !access.isWrite:
        access.data.storeBytes(of: 0xFF, as: UInt8.self)
      case .mmio(let access) where !access.isWrite:
        access.data.storeBytes(of: 0x1234_5678, as: UInt32.self)
      case .io, .mmio: continue
      case let exit: throw BenchError("the guest came out with \(exit)")
      }
    }
  }

  private static func segment(type: UInt8) -> kvm_segment {
    var segment = kvm_segment()
    segment.limit = 0xFFFF_FFFF
    segment.selector = type == 11 ? 8 : 16
    segment.type = type
    segment.present = 1
    segment.db = 1
    segment.s = 1
    segment.g = 1
    return segment
  }
}

private final class Flag: Sendable {
  let value = Atomic<Bool>(false)
}

/// A mapping that a copyable owner shares.
final class SharedMapping {
  private let mapping: Mapping
  var address: UnsafeMutableRawPointer { mapping.address }
  init(_ size: Int) throws(Errno) { mapping = try Mapping(anonymous: size, hugePages: true) }
}
