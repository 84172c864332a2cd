// SPDX-License-Identifier: Apache-2.0
//
// The memory operand of an instruction that exited, for a hypervisor that executes the instruction
// in the guest's place: read and written with the guest's rights, as the instruction would. Guest
// memory may have disappeared (Host/GuardedCall.swift).

import Host
import X86

/// What a guarded access is called with, and what comes of it.
private struct OperandAccess {
  var cpu: CPU
  var size: Int
  var isWrite: Bool
  var value: ExitOperand
  var exception: GuestException?

  mutating func perform() throws(GuestException) {
    let s = cpu.s
    let operands = s.pointee.exit.operands
    let offset = cpu.offset(operands, displacement: s.pointee.exit.value)
    let segment = SegmentRegister(rawValue: operands.segment) ?? .ds
    let linear = try cpu.linear(segment, offset, size: size, isWrite ? .write : .read)
    switch (isWrite, size) {
    case (true, 4): try cpu.store(UInt32(truncatingIfNeeded: value.low), at: linear)
    case (true, _): try cpu.store(value.low, at: linear)
    case (false, 4): value.low = UInt64(try cpu.load(linear, as: UInt32.self))
    default:
      value.low = try cpu.load(linear)
      if size == 16 { value.high = try cpu.load(linear &+ 8) }
    }
  }
}

/// Up to 16 bytes.
package struct ExitOperand: Sendable {
  package var low: UInt64 = 0
  package var high: UInt64 = 0

  package init(low: UInt64 = 0) { self.low = low }
}

private let performAccess: GuardedCall.Function = { raw in
  let access = raw.assumingMemoryBound(to: OperandAccess.self)
  do throws(GuestException) {
    try access.pointee.perform()
  } catch {
    access.pointee.exception = error
  }
}

extension PhysicalCPU {
  /// Reads the memory operand of the instruction that exited.
  ///
  /// - Parameter size: 4, 8 or 16.
  /// - Returns: nil where guest memory has disappeared (`takeHostFault`).
  /// - Throws: what the instruction would; `.vmExit` where nested paging does not allow the access:
  ///   that exit is then the recorded one.
  package func loadExitOperand(size: Int) throws(GuestException) -> ExitOperand? {
    try access(OperandAccess(cpu: cpu, size: size, isWrite: false, value: ExitOperand()))
  }

  /// Writes it.
  ///
  /// - Parameter size: 4 or 8.
  /// - Returns: false where guest memory has disappeared.
  package func storeExitOperand(_ value: UInt64, size: Int) throws(GuestException) -> Bool {
    let operand = ExitOperand(low: value)
    return try access(OperandAccess(cpu: cpu, size: size, isWrite: true, value: operand)) != nil
  }

  private func access(_ access: OperandAccess) throws(GuestException) -> ExitOperand? {
    var access = access
    var frame = GuardedCall.Frame()
    let isDone = withUnsafeMutablePointer(to: &access) {
      GuardedCall.call(&frame, performAccess, UnsafeMutableRawPointer($0))
    }
    if !isDone {
      hostFault = frame.fault
      return nil
    }
    if let exception = access.exception { throw exception }
    return access.value
  }
}
