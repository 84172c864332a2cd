// SPDX-License-Identifier: Apache-2.0
//
// Copies from and to addresses that may be unmapped, like a kernel's copies from and to its users.
//
// The copy is a few instructions of generated code. A program that installs handlers for SIGSEGV
// and SIGBUS calls `recover` in them: a fault in that code makes the copy report failure. Without
// such a handler a fault ends the program as everywhere else.
//
//     guard GuardedCopy.copy(from: address, to: buffer, count: 16) else { throw .badAddress }
//
// `store` is a single store, `exchange` an atomic exchange, for memory that others read
// concurrently.

import CHost

#if canImport(Glibc)
  import Glibc
#endif

package enum GuardedCopy {
  private typealias Function =
    @convention(c) (UnsafeMutableRawPointer?, UnsafeRawPointer?, Int) -> Int
  private typealias StoreFunction = @convention(c) (UnsafeMutableRawPointer, UInt64) -> Int
  private typealias ExchangeFunction =
    @convention(c) (UnsafeMutableRawPointer, UInt64, UnsafeMutableRawPointer) -> Int
  private typealias CompareFunction =
    @convention(c) (UnsafeMutableRawPointer, UInt64, UInt64) -> Int

  /// Copies `count` bytes.
  ///
  /// - Returns: false if a part of either range is unmapped; bytes before it may be copied.
  package static func copy(
    from source: UnsafeRawPointer?, to destination: UnsafeMutableRawPointer?, count: Int
  ) -> Bool {
    guard count > 0 else { return count == 0 }
    guard let code = GuardedCode.shared else { return false }
    let function = unsafe unsafeBitCast(code.address(GuardedCode.copy), to: Function.self)
    return unsafe function(destination, source, count) == 0
  }

  /// Stores an integer of 1, 2, 4 or 8 bytes.
  ///
  /// - Returns: false if it is not writable.
  package static func store<T: FixedWidthInteger>(
    _ value: T, to destination: UnsafeMutableRawPointer
  ) -> Bool {
    guard let code = GuardedCode.shared else { return false }
    let size = MemoryLayout<T>.size
    let entry = size >= 8 ? GuardedCode.store64 : size == 4 ? GuardedCode.store32 : nil
    guard let entry else {
      var value = value
      return unsafe copy(from: &value, to: destination, count: size)
    }
    let function = unsafe unsafeBitCast(code.address(entry), to: StoreFunction.self)
    return unsafe function(destination, UInt64(truncatingIfNeeded: value)) == 0
  }

  /// Exchanges a byte, atomically.
  ///
  /// - Returns: the old value; nil if it is not writable.
  package static func exchange(_ value: UInt8, at destination: UnsafeMutableRawPointer) -> UInt8? {
    guard let code = GuardedCode.shared else { return nil }
    let function = unsafe unsafeBitCast(
      code.address(GuardedCode.exchange8), to: ExchangeFunction.self)
    var old: UInt8 = 0
    return unsafe function(destination, UInt64(value), &old) == 0 ? old : nil
  }

  /// Stores eight bytes if the old ones are `expected`, atomically.
  ///
  /// - Returns: whether they were; nil where it cannot be written.
  package static func compareExchange(
    _ value: UInt64, expected: UInt64, at destination: UnsafeMutableRawPointer
  ) -> Bool? {
    guard let code = GuardedCode.shared else { return nil }
    let function = unsafe unsafeBitCast(
      code.address(GuardedCode.compare64), to: CompareFunction.self)
    switch unsafe function(destination, expected, value) {
    case 0: return true
    case 2: return false
    default: return nil
    }
  }

  /// Makes the code, so that `recover` never has to.
  package static func prepare() { _ = GuardedCode.shared?.start }

  /// In a handler of SIGSEGV or SIGBUS: whether the fault was a copy's. If so, makes it fail.
  ///
  /// - Parameter context: the handler's third argument.
  package static func recover(_ context: UnsafeMutableRawPointer?) -> Bool {
    guard let context = unsafe context, let start = GuardedCode.shared?.start else { return false }
    let place = unsafe context + Registers.offset(Registers.rip)
    guard unsafe GuardedCode.isAccess(place.load(as: UInt.self) &- start) else { return false }
    unsafe place.storeBytes(of: start &+ GuardedCode.failure, as: UInt.self)
    return true
  }

  /// Indices of general registers in a signal's context.
  package enum Registers {
    package static let rsp = 15
    package static let rip = 16
    package static func offset(_ register: Int) -> Int {
      registersOffset + register * 8
    }
    private static let registersOffset = unsafe MemoryLayout<ucontext_t>.offset(of: \.uc_mcontext)!
    /// Initializes what signal handlers use.
    static func prepare() { _ = registersOffset }
  }
}

/// The generated code of guarded copies and calls.
/// Sendable: written only before `shared` is set.
final class GuardedCode: @unchecked Sendable {
  let memory: CodeMemory
  let start: UInt

  static let shared: GuardedCode? = {
    GuardedCopy.Registers.prepare()
    guard let memory = try? CodeMemory(size: 4096) else { return nil }
    for (offset, bytes) in parts {
      unsafe (memory.writable + Int(offset)).copyMemory(from: bytes, byteCount: bytes.count)
    }
    return GuardedCode(memory)
  }()

  private init(_ memory: consuming CodeMemory) {
    start = unsafe UInt(bitPattern: memory.executable)
    self.memory = memory
  }

  func address(_ offset: UInt) -> UInt { start &+ offset }

  // MARK: Code

  static let copy: UInt = 0
  static let failure: UInt = 8
  static let store32: UInt = 16
  static let store64: UInt = 24
  static let call: UInt = 32
  static let cut: UInt = 82
  static let exchange8: UInt = 104
  static let compare64: UInt = 120

  /// Offsets of the instructions that may fault.
  static func isAccess(_ offset: UInt) -> Bool {
    offset == copy + 3 || offset == store32 || offset == store64 || offset == exchange8 + 2
      || offset == compare64 + 3
  }

  private static let parts: [(offset: UInt, bytes: [UInt8])] = [
    // (destination, source, count) in RDI, RSI, RDX; 0 or, from `failure` on, 1 in RAX.
    (
      copy,
      [
        0x48, 0x89, 0xD1,  // mov rcx, rdx
        0xF3, 0xA4,  // rep movsb
        0x31, 0xC0,  // xor eax, eax
        0xC3,  // ret
        0xB8, 1, 0, 0, 0,  // failure: mov eax, 1
        0xC3,  // ret
      ]
    ),
    (store32, [0x89, 0x37, 0x31, 0xC0, 0xC3]),  // mov [rdi], esi; xor eax, eax; ret
    (store64, [0x48, 0x89, 0x37, 0x31, 0xC0, 0xC3]),  // mov [rdi], rsi; the same
    (
      exchange8,
      [
        0x89, 0xF0,  // mov eax, esi
        0x86, 0x07,  // xchg [rdi], al
        0x88, 0x02,  // mov [rdx], al
        0x31, 0xC0, 0xC3,  // xor eax, eax; ret
      ]
    ),
    // 2 where it was something else.
    (
      compare64,
      [
        0x48, 0x89, 0xF0,  // mov rax, rsi
        0xF0, 0x48, 0x0F, 0xB1, 0x17,  // lock cmpxchg [rdi], rdx
        0x0F, 0x95, 0xC0, 0x00, 0xC0,  // setne al; add al, al
        0x0F, 0xB6, 0xC0, 0xC3,  // movzx eax, al; ret
      ]
    ),
    // (function, argument, frame) in RDI, RSI, RDX: see GuardedCall.
    (
      call,
      [
        0x53, 0x55,  // push rbx; push rbp
        0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57,  // push r12 ... push r15
        0x48, 0x83, 0xEC, 8,  // sub rsp, 8
        0x0F, 0xAE, 0x1C, 0x24,  // stmxcsr [rsp]
        0xD9, 0x7C, 0x24, 4,  // fnstcw [rsp + 4]
        0x48, 0x89, 0x22,  // mov [rdx], rsp
        0x48, 0x89, 0xF8,  // mov rax, rdi
        0x48, 0x89, 0xF7,  // mov rdi, rsi
        0xFF, 0xD0,  // call rax
        0x31, 0xC0,  // xor eax, eax
        0x48, 0x83, 0xC4, 8,  // out: add rsp, 8
        0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C,  // pop r15 ... pop r12
        0x5D, 0x5B, 0xC3,  // pop rbp; pop rbx; ret
        0xFC,  // cut: cld
        0xDB, 0xE3,  // fninit
        0xD9, 0x6C, 0x24, 4,  // fldcw [rsp + 4]
        0x0F, 0xAE, 0x14, 0x24,  // ldmxcsr [rsp]
        0xB8, 1, 0, 0, 0,  // mov eax, 1
        0xEB, 0xDF,  // jmp out
      ]
    ),
  ]
}
