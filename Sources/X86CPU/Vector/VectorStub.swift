// SPDX-License-Identifier: Apache-2.0
//
// Stubs: the host executes vector and x87 instructions. The instruction, with memory and general
// registers redirected (`Instruction.hostBytes`), is wrapped into a small function that loads the
// vector registers it uses from `VectorState`, executes it and stores those that it changed. There
// are no hand-written semantics: the guest gets exactly the host's results.
//
//     vaddpd zmm1{k2}, zmm3, [rax]         stub(rdi: VectorState, rsi: host address of [rax])
//         vmovups zmm1, [rdi + 64]             (the mask merges into it)
//         vmovups zmm3, [rdi + 192]
//         kmovq k2, [rdi + mask 2]
//         vaddpd zmm1{k2}, zmm3, [rsi]
//         vmovups [rdi + 64], zmm1
//         vzeroupper
//         ret
//
// Widths: a legacy instruction loads and stores 16 bytes, so the upper part in memory stays; VEX
// and EVEX instructions store the whole register, which the instruction has zero-extended.
// Floating-point instructions run with the guest's MXCSR and all exceptions masked; an exception
// that the guest has unmasked is reported instead of storing results.
//
// All processors share the stubs, which never change and are never freed: micro-ops point at them.

import Host
import Synchronization
import SystemPackage
import X86
import X86Decoder

/// Arguments: VectorState, host address of the memory operand, pointer to the general register (for
/// PCMPESTRI and its variants: to RAX), RFLAGS. Returns RFLAGS or `StubResult.exception`.
typealias StubCode =
  @convention(c) (
    UnsafeMutableRawPointer, UnsafeMutableRawPointer, UnsafeMutableRawPointer, UInt64
  ) -> UInt64

struct VectorStub {
  let code: StubCode
  /// Bytes of the memory operand; 0 without.
  var memorySize = 0
  /// Size - 1 if memory must be aligned.
  var alignmentMask: UInt64 = 0
  var mask = ElementMask()
  var writesFlags = false
  var writesMemory = false
  /// The store may be discarded (unmasked exceptions), so it must not go to guest memory directly.
  var needsBounce = false
  /// x87: low 11 bits of the opcode, for FOP.
  var opcode: UInt16 = 0
  /// x87: whether the instruction sets the instruction and data pointers.
  var setsPointers = false
  var waits = false
}

typealias StubPointer = UnsafePointer<VectorStub>

/// The elements of a memory operand that an instruction accesses.
struct ElementMask {
  enum Kind: UInt8 {
    /// All: faults are not suppressed.
    case none
    /// Elements with set bits in an opmask register.
    case opmask
    /// As many elements as an opmask register has set bits (VCOMPRESS, VEXPAND).
    case count
    /// The only element, if any bit is set (broadcast).
    case any
    /// Bits select among elements in repeating groups of `repeats` (VBROADCASTI32X2, ...).
    case repeated
    /// Elements with set sign bits in a vector register (VMASKMOV).
    case signs
  }
  var kind = Kind.none
  var register: UInt8 = 0
  var elementSize: UInt8 = 0
  /// The number of valid mask bits.
  var elements: UInt8 = 0
  /// Of `repeated`: elements in memory.
  var repeats: UInt8 = 0
}

enum VectorStubs {
  private struct Key: Hashable {
    var bytes: CodeBytes
    var memorySize: UInt8
    var is64Bit: Bool
  }

  private struct Cache: ~Copyable {
    var stubs: [Key: StubAddress] = [:]
    var chunks: [Chunk] = []
    var used = 0
  }

  /// Sendable: stubs are never freed nor written after they are made.
  private struct StubAddress: @unchecked Sendable { let pointer: StubPointer }

  /// Sendable: written only under the lock of `cache`.
  private final class Chunk: @unchecked Sendable {
    let memory: CodeMemory
    init(size: Int) throws(Errno) { memory = try CodeMemory(size: size) }
  }

  private static let cache = Mutex(Cache())
  private static let chunkSize = 1 << 18
  /// A limit, so that a guest cannot fill the host's memory with stubs.
  private static let chunkLimit = 256

  /// The stub of an instruction; nil if the host cannot execute it.
  static func stub(_ i: Instruction) -> StubPointer? {
    guard HostFeatures.current.has(i) else { return nil }
    let bytes = i.hostBytes()
    guard bytes.count <= 15 else { return nil }
    let size = i.memoryOperand.map { i.operands[$0].size } ?? 0
    let key = Key(bytes: bytes, memorySize: size, is64Bit: i.mode == .bits64)
    return cache.withLock { cache -> StubAddress? in
      if let known = cache.stubs[key] { return known }
      guard let made = make(i, bytes, &cache) else { return nil }
      cache.stubs[key] = made
      return made
    }?.pointer
  }

  private static func make(
    _ i: Instruction, _ bytes: CodeBytes, _ cache: inout Cache
  ) -> StubAddress? {
    var builder = StubBuilder(i, bytes)
    let code = builder.build()
    if cache.chunks.isEmpty || cache.used + code.count > chunkSize {
      guard cache.chunks.count < chunkLimit, let chunk = try? Chunk(size: chunkSize) else {
        return nil
      }
      cache.chunks.append(chunk)
      cache.used = 0
    }
    let chunk = cache.chunks[cache.chunks.count - 1]
    (chunk.memory.writable + cache.used).copyMemory(from: code, byteCount: code.count)
    let address = chunk.memory.executable + cache.used
    cache.used += (code.count + 15) & ~15
    let stub = UnsafeMutablePointer<VectorStub>.allocate(capacity: 1)
    stub.initialize(to: builder.describe(unsafeBitCast(address, to: StubCode.self)))
    return StubAddress(pointer: StubPointer(stub))
  }
}
