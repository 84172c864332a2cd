// SPDX-License-Identifier: Apache-2.0
//
// KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE: what a client saves of a guest that is a
// hypervisor, besides registers (kernel documentation, "The Definitive KVM API"). What is behind
// the header is the vendor's (`NestedVirtualization`).

import CHost
import Host
import SystemPackage

/// A nested state as it is copied from and to the client.
struct NestedState {
  /// Flags, format, and where the vendor's control structures are. `size` is set by the ioctl.
  var header = kvm_nested_state()
  /// What is behind the header.
  var data: [UInt8] = []

  static let headerSize = MemoryLayout<kvm_nested_state>.size

  var flags: Int32 { Int32(header.flags) }
}

extension VirtualCPU {
  static let nestedIoctls: [(UInt32, Method)] = [
    (
      CKVM_GET_NESTED_STATE,
      { (vcpu, argument) throws(Errno) in
        guard let nested = vcpu.nested, type(of: vcpu.backend).nestedStateSize != 0 else {
          throw .invalidArgument
        }
        try argument.write(nested.savedState(vcpu))
        return 0
      }
    ),
    (
      CKVM_SET_NESTED_STATE,
      { (vcpu, argument) throws(Errno) in
        guard let nested = vcpu.nested, type(of: vcpu.backend).nestedStateSize != 0 else {
          throw .invalidArgument
        }
        try nested.restore(
          argument.readNestedState(atMost: type(of: vcpu.backend).nestedStateSize), vcpu)
        vcpu.stateChanged()
        vcpu.events.mustCheck = true
        return 0
      }
    ),
  ]
}

extension Argument {
  /// Flags that a state of either vendor may have.
  private static let known =
    KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_RUN_PENDING | KVM_STATE_NESTED_EVMCS
    | KVM_STATE_NESTED_MTF_PENDING | KVM_STATE_NESTED_GIF_SET

  /// The client says by `size` how much room there is, and learns how much it takes.
  ///
  /// - Throws: `.argListTooLong` where there is too little room.
  fileprivate func write(_ state: NestedState) throws(Errno) {
    let room = try read(kvm_nested_state.self).size
    var header = state.header
    header.size = UInt32(truncatingIfNeeded: NestedState.headerSize &+ state.data.count)
    if header.size > room {
      try setElement(1, at: 0, to: header.size)
      throw .argListTooLong
    }
    try write(header)
    let data = state.data
    try behindHeader.write(data.bytes)
  }

  private var behindHeader: Argument { Argument(value: value &+ UInt(NestedState.headerSize)) }

  /// - Parameter most: bytes that are looked at; a client may have more.
  fileprivate func readNestedState(atMost most: Int) throws(Errno) -> NestedState {
    var state = try NestedState(header: read())
    let size = Int(state.header.size)
    let isPending = state.flags & KVM_STATE_NESTED_RUN_PENDING != 0
    let runs = state.flags & KVM_STATE_NESTED_GUEST_MODE != 0
    guard size >= NestedState.headerSize, state.flags & ~Self.known == 0, runs || !isPending else {
      throw .invalidArgument
    }
    state.data = try behindHeader.elements(min(size, most) &- NestedState.headerSize)
    return state
  }
}
