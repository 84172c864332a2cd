// SPDX-License-Identifier: Apache-2.0
//
// Calls that end when they access vanished memory: a way out of code with a thousand accesses to
// guest memory.
//
//     var frame = GuardedCall.Frame()
//     if !GuardedCall.call(&frame, function, argument) { ... frame.fault has vanished ... }
//
// A program that uses this calls `prepare` once and `recover` in its handlers of SIGSEGV and
// SIGBUS; otherwise calls are not guarded.
//
// An aborted call does not unwind its Swift frames: they are abandoned, and whatever they hold then
// (locks, references, memory, a `defer`) is never released. The alternative, a check of each
// access's result, costs a branch in a thousand places, in the fast path of each. Aborting is safe
// by this contract of the called functions:
//
//   - Between the call and an access that may fault there are only frames of the processor's
//     execution: `runGuest` or `emulateOne`, an instruction's handler, and its loads and stores.
//   - None of them may hold a lock, own memory or a descriptor, or have a reference that it must
//     release. `VanishedMemoryTests` aborts each kind of access. Their state is in `CPUState`,
//     plain memory; the caller of `call`, whose frame stays, holds the objects that they use.
//   - A `defer` or `catch` that restores state has a twin in `PhysicalCPU.leaveCutOff`, which
//     restores it from `CPUState`.
//   - All other code that accesses such memory (decoding, comparison and protection of code, the
//     hypervisor) uses `GuardedCopy`, which returns.
//
// The caller's control registers of the x87 unit and of SSE are restored.

import CHost
import Synchronization

#if canImport(Glibc)
  import Glibc
#endif

package enum GuardedCall {
  package typealias Function = @convention(c) (UnsafeMutableRawPointer) -> Void
  /// Returns where to continue after a fault at an instruction address; 0: abort the call.
  package typealias Redirection = @convention(c) (UnsafeMutableRawPointer, UInt) -> UInt

  /// A call's data for the signal handler.
  @safe package struct Frame {
    /// The generated code's stack pointer. It must be the first field, where that code stores it.
    fileprivate var stack: UInt = 0
    fileprivate var outer: UnsafeMutablePointer<Frame>?
    fileprivate var argument: UnsafeMutableRawPointer?
    fileprivate var redirection: Redirection?
    /// The address whose access aborted the call.
    package fileprivate(set) var fault: UInt = 0

    /// - Parameter redirection: called in the signal handler, with the call's argument.
    package init(_ redirection: Redirection? = nil) { unsafe self.redirection = unsafe redirection }
  }

  private typealias Thunk =
    @convention(c) (Function, UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Int

  private static let prepared = Atomic<Bool>(false)

  /// The calling thread's innermost frame.
  private static let key: pthread_key_t = {
    var key = pthread_key_t()
    unsafe pthread_key_create(&key, nil)
    return key
  }()

  /// Guards calls from now on: handlers call `recover`.
  package static func prepare() {
    _ = key
    if GuardedCode.shared != nil { prepared.store(true, ordering: .releasing) }
  }

  package static var isPrepared: Bool { prepared.load(ordering: .acquiring) }

  /// Calls `function(argument)`.
  ///
  /// - Returns: false if it was aborted.
  package static func call(
    _ frame: inout Frame, _ function: Function, _ argument: UnsafeMutableRawPointer
  ) -> Bool {
    guard isPrepared, let code = GuardedCode.shared else {
      unsafe function(argument)
      return true
    }
    let thunk = unsafe unsafeBitCast(code.address(GuardedCode.call), to: Thunk.self)
    let outer = unsafe pthread_getspecific(key)
    unsafe frame.outer = unsafe outer?.assumingMemoryBound(to: Frame.self)
    unsafe frame.argument = unsafe argument
    return unsafe withUnsafeMutablePointer(to: &frame) { pointer in
      let frame = UnsafeMutableRawPointer(pointer)
      unsafe pthread_setspecific(key, frame)
      let result = unsafe thunk(function, argument, frame)
      unsafe pthread_setspecific(key, outer)
      return result == 0
    }
  }

  /// In a handler of SIGSEGV or SIGBUS for memory that guarded calls access: redirects or aborts
  /// the innermost call of this thread.
  ///
  /// - Parameters:
  ///   - address: the fault's address.
  ///   - context: the handler's third argument.
  /// - Returns: false if the thread is in no such call.
  package static func recover(_ address: UInt, _ context: UnsafeMutableRawPointer?) -> Bool {
    guard isPrepared, let context = unsafe context, let code = GuardedCode.shared,
      let frame = unsafe pthread_getspecific(key)?.assumingMemoryBound(to: Frame.self)
    else { return false }
    let rip = unsafe context + GuardedCopy.Registers.offset(GuardedCopy.Registers.rip)
    if let redirection = unsafe frame.pointee.redirection,
      let argument = unsafe frame.pointee.argument
    {
      let target = unsafe redirection(argument, rip.load(as: UInt.self))
      if target != 0 {
        unsafe rip.storeBytes(of: target, as: UInt.self)
        return true
      }
    }
    unsafe frame.pointee.fault = address
    let rsp = unsafe context + GuardedCopy.Registers.offset(GuardedCopy.Registers.rsp)
    unsafe rsp.storeBytes(of: frame.pointee.stack, as: UInt.self)
    unsafe rip.storeBytes(of: code.address(GuardedCode.cut), as: UInt.self)
    return true
  }
}
