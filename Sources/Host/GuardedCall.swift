// SPDX-License-Identifier: Apache-2.0
//
// Calls that end where they access memory that is not there: the way out of code that accesses a
// guest's memory in a thousand places.
//
//     var frame = GuardedCall.Frame()
//     if !GuardedCall.call(&frame, function, argument) { ... frame.fault is not there ... }
//
// A program that wants this calls `prepare` once and `recover` in its handlers of SIGSEGV and
// SIGBUS; without, calls are plain ones.
//
// A call that is cut off does not unwind: its Swift frames are left where they are, and whatever
// they hold then (locks, references, memory, a `defer`) they hold for ever. The alternative, to
// check each access's result, is a branch in a thousand places, which the fast path of each pays
// for. It is sound by this contract of the functions that are called so:
//
//   - Between the call and an access that may fault lie only frames of the processor's execution:
//     `runGuest` or `emulateOne`, an instruction's handler, and the loads and stores that it calls.
//   - None of them may hold a lock, own memory or a descriptor, or have a reference that it must
//     give back. No test proves this of each handler yet (KNOWN-GAPS.md). Their state is in
//     `CPUState`, plain memory; the objects that they use are held by the caller of `call`, whose
//     frame stays.
//   - A `defer` or `catch` of theirs that restores state has a twin in `PhysicalCPU.leaveCutOff`,
//     which finds in `CPUState` what is to be restored.
//   - Everything else that accesses such memory (decoding, comparison and protection of code, the
//     hypervisor) uses `GuardedCopy`, which returns.
//
// Control registers of the x87 unit and of SSE are the caller's again.

import CHost
import Synchronization

#if canImport(Glibc)
  import Glibc
#endif

package enum GuardedCall {
  package typealias Function = @convention(c) (UnsafeMutableRawPointer) -> Void
  /// Where to go on instead of an instruction that faulted, by its address; 0: the call is cut off.
  package typealias Redirection = @convention(c) (UnsafeMutableRawPointer, UInt) -> UInt

  /// What the handler has to know of a call.
  @safe package struct Frame {
    /// The generated code's stack pointer. Its first field, as that code stores it.
    fileprivate var stack: UInt = 0
    fileprivate var outer: UnsafeMutablePointer<Frame>?
    fileprivate var argument: UnsafeMutableRawPointer?
    fileprivate var redirection: Redirection?
    /// The address whose access cut the call off.
    package fileprivate(set) var fault: UInt = 0

    /// - Parameter redirection: is called in the signal handler, with the call's argument.
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

  /// From now on calls are guarded: handlers call `recover`.
  package static func prepare() {
    _ = key
    if GuardedCode.shared != nil { prepared.store(true, ordering: .releasing) }
  }

  package static var isPrepared: Bool { prepared.load(ordering: .acquiring) }

  /// Calls `function(argument)`.
  ///
  /// - Returns: false where it was cut off.
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

  /// In a handler of SIGSEGV or SIGBUS for memory that guarded calls access: has the innermost call
  /// of this thread go on elsewhere or end.
  ///
  /// - Parameters:
  ///   - address: the signal's.
  ///   - context: the handler's third argument.
  /// - Returns: false where the thread is in no such call.
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
