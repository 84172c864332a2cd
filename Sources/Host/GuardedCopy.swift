// SPDX-License-Identifier: Apache-2.0
//
// Copies from and to addresses that may not be there, as a kernel copies from and to its users.
//
// The copy is a few instructions of generated code. A program that installs handlers for SIGSEGV
// and SIGBUS calls `recover` in them: a fault in that code makes the copy report failure. Without
// such a handler a fault ends the program as everywhere else.
//
//     guard GuardedCopy.copy(from: address, to: buffer, count: 16) else { throw .badAddress }

import CHost

#if canImport(Glibc)
  import Glibc
#endif

package enum GuardedCopy {
  private typealias Function =
    @convention(c) (UnsafeMutableRawPointer?, UnsafeRawPointer?, Int) -> Int

  private final class Code: @unchecked Sendable {
    let memory: CodeMemory
    let function: Function
    let start: UInt

    init(_ memory: consuming CodeMemory) {
      let address = memory.executable
      function = unsafeBitCast(address, to: Function.self)
      start = UInt(bitPattern: address)
      self.memory = memory
    }
  }

  /// (destination, source, count) in RDI, RSI, RDX; 0 or, from `failure` on, 1 in RAX.
  private static let instructions: [UInt8] = [
    0x48, 0x89, 0xD1,  // mov rcx, rdx
    0xF3, 0xA4,  // rep movsb
    0x31, 0xC0,  // xor eax, eax
    0xC3,  // ret
    0xB8, 1, 0, 0, 0,  // failure: mov eax, 1
    0xC3,  // ret
  ]
  private static let copyOffset: UInt = 3
  private static let failureOffset: UInt = 8

  private static let code: Code? = {
    guard let memory = try? CodeMemory(size: 4096) else { return nil }
    memory.writable.copyMemory(from: instructions, byteCount: instructions.count)
    return Code(memory)
  }()

  /// Makes the code, so that `recover` never has to.
  package static func prepare() { _ = code?.start }

  /// Copies `count` bytes.
  ///
  /// - Returns: false where a part of either range is not there; bytes before it may be copied.
  package static func copy(
    from source: UnsafeRawPointer?, to destination: UnsafeMutableRawPointer?, count: Int
  ) -> Bool {
    guard count > 0 else { return count == 0 }
    guard let function = code?.function else { return false }
    return function(destination, source, count) == 0
  }

  /// In a handler of SIGSEGV or SIGBUS: whether the fault was a copy's, which then fails.
  ///
  /// - Parameter context: the handler's third argument.
  package static func recover(_ context: UnsafeMutableRawPointer?) -> Bool {
    guard let context, let start = code?.start else { return false }
    let place = context + Registers.offset(Registers.rip)
    guard place.load(as: UInt.self) == start &+ copyOffset else { return false }
    place.storeBytes(of: start &+ failureOffset, as: UInt.self)
    return true
  }

  /// Where a signal's context keeps the general registers.
  package enum Registers {
    package static let rip = 16
    package static func offset(_ register: Int) -> Int {
      MemoryLayout<ucontext_t>.offset(of: \.uc_mcontext)! + register * 8
    }
  }
}
