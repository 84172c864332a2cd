// SPDX-License-Identifier: Apache-2.0
//
// A virtual CPU. One thread at a time runs it and accesses its registers; any thread may call
// `kick`, which makes `run` return `Exit.interrupted`.

import CHost
import Host
import SystemPackage

/// A virtual CPU of a machine.
/// Sendable: `immediate_exit` is one byte that any thread may write; the rest of the pages belongs
/// to the thread that calls `run`.
@safe package final class VirtualCPUHandle: @unchecked Sendable {
  /// Keeps the machine open.
  private let machine: MachineHandle
  let transport: any KVMTransport
  let handle: Int32
  private let runSize: Int
  /// The shared pages. `immediate_exit` is one byte that any thread may write; everything else
  /// belongs to the thread that calls `run`.
  private let pages: UnsafeMutableRawPointer

  init(machine: MachineHandle, handle: Int32, runSize: Int) throws(Errno) {
    self.machine = machine
    transport = machine.transport
    self.handle = handle
    self.runSize = runSize
    do throws(Errno) {
      unsafe pages = try unsafe transport.mapRun(handle, size: runSize)
    } catch {
      machine.transport.close(handle)
      throw error
    }
  }

  deinit {
    unsafe transport.unmapRun(handle, pages, size: runSize)
    transport.close(handle)
  }

  /// The shared struct. Its data page and ring follow it in the same mapping.
  package var shared: UnsafeMutablePointer<kvm_run> {
    unsafe pages.assumingMemoryBound(to: kvm_run.self)
  }

  /// Runs guest code until it exits to user space.
  ///
  /// - Returns: the reason; `Exit.interrupted` after a kick (whose request is then cleared).
  /// - Throws: the errno of KVM_RUN, except EINTR. `Errno.resourceTemporarilyUnavailable` means
  ///   that a CPU was woken that waits for its start-up interrupt: run it again.
  package func run() throws(Errno) -> Exit {
    do throws(Errno) {
      _ = try transport.ioctl(handle, CKVM_RUN, 0)
    } catch {
      guard error == .interrupted else { throw error }
      setImmediateExit(0)
      return .interrupted
    }
    return unsafe Exit(reading: shared, size: runSize)
  }

  /// Makes `run` return, now or at its next call, from any thread.
  ///
  /// - Parameter thread: the thread that runs this vCPU.
  package func kick(_ thread: ThreadIdentifier) {
    setImmediateExit(1)
    transport.kick(handle, thread: thread)
  }

  func setImmediateExit(_ value: UInt8) {
    let offset = MemoryLayout<kvm_run>.offset(of: \kvm_run.immediate_exit) ?? 1
    unsafe pages.storeBytes(of: value, toByteOffset: offset, as: UInt8.self)
  }
}

extension VirtualCPUHandle {
  func get<Value>(_ request: UInt32, _ initial: Value) throws(Errno) -> Value {
    var value = initial
    try unsafe withUnsafeMutablePointer(to: &value) { (pointer) throws(Errno) in
      _ = try transport.ioctl(handle, request, UInt(bitPattern: pointer))
    }
    return value
  }

  func set<Value>(_ request: UInt32, _ value: Value) throws(Errno) {
    _ = try get(request, value)
  }

  /// General-purpose registers, RIP, RFLAGS.
  package func registers() throws(Errno) -> kvm_regs { try get(CKVM_GET_REGS, kvm_regs()) }
  package func setRegisters(_ value: kvm_regs) throws(Errno) { try set(CKVM_SET_REGS, value) }

  /// Segments, descriptor tables, control registers, EFER, APIC base.
  package func specialRegisters() throws(Errno) -> kvm_sregs {
    try get(CKVM_GET_SREGS, kvm_sregs())
  }
  package func setSpecialRegisters(_ value: kvm_sregs) throws(Errno) {
    try set(CKVM_SET_SREGS, value)
  }

  /// x87 and SSE state.
  package func setFPU(_ value: kvm_fpu) throws(Errno) { try set(CKVM_SET_FPU, value) }

  /// Delivers an interrupt, if the interrupt chips are not in the kernel.
  ///
  /// - Throws: `Errno.fileExists` while one is pending.
  package func interrupt(_ vector: UInt32) throws(Errno) {
    try set(CKVM_INTERRUPT, kvm_interrupt(irq: vector))
  }

  /// Whether the CPU runs, waits for start-up, or is halted (`KVM_MP_STATE_...`).
  package func multiprocessorState() throws(Errno) -> UInt32 {
    try get(CKVM_GET_MP_STATE, kvm_mp_state()).mp_state
  }

  /// The local APIC's registers, 1 KiB.
  package func localAPIC() throws(Errno) -> kvm_lapic_state {
    try get(CKVM_GET_LAPIC, kvm_lapic_state())
  }
  package func setLocalAPIC(_ value: kvm_lapic_state) throws(Errno) {
    try set(CKVM_SET_LAPIC, value)
  }

  /// Sets the results of the CPU's CPUID instruction.
  package func setCPUID(_ entries: [kvm_cpuid_entry2]) throws(Errno) {
    var list = EntryList(entries)
    _ = try list.call { (argument) throws(Errno) in
      try transport.ioctl(handle, CKVM_SET_CPUID2, argument)
    }
  }

  /// Sets model-specific registers, in order.
  ///
  /// - Returns: how many were accepted: if below the count, the one at that index was rejected.
  package func setMSRs(
    _ values: [(index: UInt32, value: UInt64)]
  ) throws(Errno) -> Int32 {
    var list = EntryList(
      values.map { kvm_msr_entry(index: $0.index, reserved: 0, data: $0.value) })
    return try list.call { (argument) throws(Errno) in
      try transport.ioctl(handle, CKVM_SET_MSRS, argument)
    }
  }
}
