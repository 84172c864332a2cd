// SPDX-License-Identifier: Apache-2.0
//
// MOV to CR4 for a hypervisor that intercepts it: the write with all its effects. It may read guest
// memory (the PDPTEs of PAE paging), which may have vanished (Host/GuardedCall.swift).

import Host
import X86

/// Arguments and result of `writeCR4`.
private struct ControlRegisterCall {
  var cpu: CPU
  var value: UInt64
  var exception: GuestException?
}

private let writeCR4: GuardedCall.Function = { raw in
  let call = raw.assumingMemoryBound(to: ControlRegisterCall.self)
  do throws(GuestException) {
    try call.pointee.cpu.writeCR4(call.pointee.value)
  } catch {
    call.pointee.exception = error
  }
}

extension PhysicalCPU {
  /// Writes CR4 like the guest's MOV, without advancing RIP.
  ///
  /// - Returns: false if guest memory has vanished (`takeHostFault`).
  /// - Throws: #GP, or `.vmExit` if the nested tables do not map a paging structure.
  package func writeControlRegister4(_ value: UInt64) throws(GuestException) -> Bool {
    var call = ControlRegisterCall(cpu: cpu, value: value)
    var frame = GuardedCall.Frame()
    let isDone = withUnsafeMutablePointer(to: &call) {
      GuardedCall.call(&frame, writeCR4, UnsafeMutableRawPointer($0))
    }
    if !isDone {
      hostFault = frame.fault
      return false
    }
    if let exception = call.exception { throw exception }
    return true
  }
}
