// SPDX-License-Identifier: Apache-2.0
//
// KVM's API with types: a `System` makes `MachineHandle`s, a machine makes `VirtualCPUHandle`s, and
// running a virtual CPU gives an `Exit`. All three work on any `KVMTransport`; errors are Linux's
// errnos.
//
//     let system = try System(transport: DeviceTransport())
//     let machine = try system.createMachine()
//     try machine.setMemory(slot: 0, guestAddress: 0, size: 4096, hostAddress: memory.address)
//     let cpu = try machine.createVirtualCPU(0)
//     while case .io(let access) = try cpu.run() { print(access.port) }

import CHost
import SystemPackage

/// The KVM system: capabilities, and creation of machines.
package final class System: Sendable {
  package let transport: any KVMTransport
  let handle: Int32

  /// The only version of the API.
  package static let supportedVersion: Int32 = 12

  /// Opens the transport.
  ///
  /// - Throws: the errno of opening; `Errno.notSupported` for another version of the API.
  package init(transport: any KVMTransport) throws(Errno) {
    let handle = try transport.open()
    self.transport = transport
    self.handle = handle
    let version = try transport.ioctl(handle, CKVM_GET_API_VERSION, 0)
    guard version == Self.supportedVersion else { throw .notSupported }
  }

  deinit { transport.close(handle) }

  /// The answer to KVM_CHECK_EXTENSION: 0 if missing, 1 or a number otherwise.
  package func capability(_ number: Int32) -> Int32 {
    (try? transport.ioctl(handle, CKVM_CHECK_EXTENSION, UInt(number))) ?? 0
  }

  /// Creates a virtual machine without memory and CPUs.
  package func createMachine() throws(Errno) -> MachineHandle {
    let size = try transport.ioctl(handle, CKVM_GET_VCPU_MMAP_SIZE, 0)
    let machine = try transport.ioctl(handle, CKVM_CREATE_VM, 0)
    return MachineHandle(transport: transport, handle: machine, runSize: Int(size))
  }

  /// The CPUID entries that a guest can have.
  package func supportedCPUID() throws(Errno) -> [kvm_cpuid_entry2] {
    var capacity = 64
    while true {
      do throws(Errno) {
        return try CPUIDList.read(capacity: capacity) { (argument) throws(Errno) in
          _ = try transport.ioctl(handle, CKVM_GET_SUPPORTED_CPUID, argument)
        }
      } catch {
        guard error == .argListTooLong, capacity < 4096 else { throw error }
        capacity *= 2
      }
    }
  }
}

/// The variable-length struct `kvm_cpuid2`: a count, padding, then the entries.
enum CPUIDList {
  private static let header = 8
  private static let stride = MemoryLayout<kvm_cpuid_entry2>.stride

  static func read(
    capacity: Int, _ call: (UInt) throws(Errno) -> Void
  ) throws(Errno) -> [kvm_cpuid_entry2] {
    let buffer = UnsafeMutableRawBufferPointer.allocate(
      byteCount: header + capacity * stride, alignment: 8)
    defer { unsafe buffer.deallocate() }
    unsafe buffer.initializeMemory(as: UInt8.self, repeating: 0)
    unsafe buffer.storeBytes(of: UInt32(capacity), as: UInt32.self)
    try call(UInt(bitPattern: buffer.baseAddress))
    let count = unsafe min(Int(buffer.load(as: UInt32.self)), capacity)
    return (0..<count).map {
      unsafe buffer.load(fromByteOffset: header + $0 * stride, as: kvm_cpuid_entry2.self)
    }
  }

  static func write(
    _ entries: [kvm_cpuid_entry2], _ call: (UInt) throws(Errno) -> Void
  ) throws(Errno) {
    let buffer = UnsafeMutableRawBufferPointer.allocate(
      byteCount: header + entries.count * stride, alignment: 8)
    defer { unsafe buffer.deallocate() }
    unsafe buffer.initializeMemory(as: UInt8.self, repeating: 0)
    unsafe buffer.storeBytes(of: UInt32(entries.count), as: UInt32.self)
    for (index, entry) in entries.enumerated() {
      unsafe buffer.storeBytes(
        of: entry, toByteOffset: header + index * stride, as: kvm_cpuid_entry2.self)
    }
    try call(UInt(bitPattern: buffer.baseAddress))
  }
}
