// SPDX-License-Identifier: Apache-2.0
//
// IN and OUT: answered by the interrupt chips, or by the client through the port data page. RIP
// stays at the instruction until the client has answered, as in Linux.

import CHost
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  /// Offset of the port data page from `kvm_run`.
  static let portDataOffset = 4096
  static let portDataSize = 4096

  var portData: UnsafeMutableRawPointer { unsafe pages + Self.portDataOffset }

  /// An IN or OUT of `size` bytes at RIP.
  func accessPort(_ port: UInt16, size: UInt8, isInput: Bool) -> Disposition {
    if InterruptController.ownsPort(port) {
      if isInput {
        if let value = readChipPort(port) {
          setAccumulator(value, size)
          advance()
          return .resume
        }
      } else if unsafe writeChipPort(port, cpu.gpr[0]) {
        advance()
        return .resume
      }
    }
    if !isInput, unsafe writeSink(UInt64(port), size: Int(size), value: cpu.gpr[0], isPort: true) {
      advance()
      return .resume
    }
    unsafe fillPort(port, Int(size), value: isInput ? nil : cpu.gpr[0])
    if port == 0x7E, !isInput, isQuirkOn(Quirks.out7E) {
      advance()
      return .userSpace
    }
    runState.completion = isInput ? .portIn(size) : .portOut
    runState.completionRIP = backend[.rip]
    return .userSpace
  }

  func readChipPort(_ port: UInt16) -> UInt64? {
    guard InterruptController.ownsPort(port), let interrupts = unsafe machine.interrupts,
      !interrupts.isSplit
    else { return nil }
    return interrupts.readPort(port)
  }

  func writeChipPort(_ port: UInt16, _ value: UInt64) -> Bool {
    guard InterruptController.ownsPort(port), let interrupts = unsafe machine.interrupts,
      !interrupts.isSplit
    else { return false }
    return interrupts.writePort(port, value)
  }

  /// KVM_EXIT_IO for one item; `value` nil for an input.
  func fillPort(_ port: UInt16, _ size: Int, value: UInt64?) {
    describePort(port, size, count: 1, isInput: value == nil)
    unsafe portData.storeBytes(of: value ?? 0, as: UInt64.self)
  }

  /// KVM_EXIT_IO for items in the port data page.
  func describePort(_ port: UInt16, _ size: Int, count: Int, isInput: Bool) {
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_IO)
    unsafe run.pointee.io.direction = UInt8(isInput ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT)
    unsafe run.pointee.io.size = UInt8(truncatingIfNeeded: size)
    unsafe run.pointee.io.port = port
    unsafe run.pointee.io.count = UInt32(truncatingIfNeeded: count)
    unsafe run.pointee.io.data_offset = UInt64(Self.portDataOffset)
  }

  /// Finishes the last exit with the client's answer. False if it needs another exit to the client.
  func complete() -> Bool {
    switch runState.completion {
    case .none: break
    case .portOut:
      runState.completion = .none
      // Unless the client changed RIP.
      if backend[.rip] == runState.completionRIP { advance() }
    case .portIn(let size):
      runState.completion = .none
      guard backend[.rip] == runState.completionRIP else { break }
      unsafe setAccumulator(portData.load(as: UInt64.self), size)
      advance()
    case .emulation: return completeEmulation()
    case .readMSR: completeMSR(isRead: true)
    case .writeMSR: completeMSR(isRead: false)
    case .hypercall: completeHypercall()
    }
    return true
  }

  /// AL, AX or EAX.
  func setAccumulator(_ value: UInt64, _ size: UInt8) {
    switch size {
    case 1: unsafe cpu.gpr[0] = unsafe cpu.gpr[0] & ~0xFF | value & 0xFF
    case 2: unsafe cpu.gpr[0] = unsafe cpu.gpr[0] & ~0xFFFF | value & 0xFFFF
    default: unsafe cpu.gpr[0] = value & 0xFFFF_FFFF
    }
  }

  // MARK: The end of an instruction

  /// Advances RIP past the instruction that exited.
  func advance() {
    let next = backend[.rip] &+ backend.instructionLength
    let is64Bit =
      unsafe cpu.s.pointee.efer & EFER.lma.rawValue != 0 && backend.segment(.cs).rights.isLong
    backend[.rip] = is64Bit ? next : next & 0xFFFF_FFFF
    noteRetired()
    if debug.isStepping { debug.isStepDone = true }
    clearShadow()
  }

  /// Ends the shadow of STI or MOV SS with the instruction, and raises a single-step trap.
  func clearShadow() {
    let shadows = UInt64(Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS)
    let state = backend[.interruptibility]
    if state & shadows != 0 { backend[.interruptibility] = state & ~shadows }
    if unsafe cpu.s.pointee.rflags & RFLAGS.tf.rawValue != 0 {
      backend[.pendingDebug] |= PendingDebug.singleStep
    }
  }

  // MARK: Exits that end KVM_RUN

  func internalError(_ suberror: Int32, data: [UInt64] = []) -> Disposition {
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_INTERNAL_ERROR)
    unsafe run.pointee.internal.suberror = UInt32(bitPattern: suberror)
    unsafe run.pointee.internal.ndata = UInt32(min(data.count, 16))
    unsafe withUnsafeMutableBytes(of: &run.pointee.internal.data) { place in
      for (index, value) in data.prefix(16).enumerated() {
        unsafe place.storeBytes(of: value, toByteOffset: index * 8, as: UInt64.self)
      }
    }
    return .userSpace
  }

  func entryFailed(_ reason: UInt64) -> Disposition {
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_FAIL_ENTRY)
    unsafe run.pointee.fail_entry.hardware_entry_failure_reason = reason
    unsafe run.pointee.fail_entry.cpu = UInt32(slot?.index ?? 0)
    if let explanation = backend.explainFailedEntry() {
      hypervisor.entryFailures.report(explanation, cpu: id, saved: backend.savedControlBlock)
    }
    return .userSpace
  }

  /// The guest accessed memory of a slot that the client has not mapped for such accesses: KVM_RUN
  /// fails with EFAULT, with RIP at the instruction.
  func hostFault() -> Disposition {
    runState.isHostFault = true
    return .userSpace
  }

  /// An access of the processor found that memory of a slot has vanished without a call that we
  /// intercept. What we know of the client's mappings is outdated.
  func memoryVanished() -> Disposition {
    if let address = slot?.cpu.takeHostFault() { unsafe machine.memoryVanished(address) }
    return hostFault()
  }

  func shutDown() -> Disposition {
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_SHUTDOWN)
    return .userSpace
  }
}
