// SPDX-License-Identifier: Apache-2.0
//
// Exits to user space as a Swift enumeration, read from the shared `kvm_run` page. Sizes and
// offsets in that page are untrusted and checked.

import CHost

/// Why KVM_RUN returned to user space.
package enum Exit {
  /// The guest accesses I/O ports.
  case io(PortAccess)
  /// The guest accesses physical memory that no slot maps.
  case mmio(MemoryAccess)
  /// HLT, if the interrupt chips are not in the kernel.
  case halt
  /// Triple fault.
  case shutdown
  /// VM entry failed, with the processor's reason.
  case failEntry(reason: UInt64, cpu: UInt32)
  /// The hypervisor failed: an instruction that it cannot emulate, or an event that it cannot
  /// deliver. `data` has details.
  case internalError(suberror: UInt32, data: [UInt64])
  /// A kick or a signal.
  case interrupted
  /// Interrupts can be injected now.
  case interruptWindowOpen
  /// The guest requested a system event (`KVM_SYSTEM_EVENT_...`).
  case systemEvent(type: UInt32)
  /// The guest debug interface stopped the CPU.
  case debug
  /// The processor's exit reason, unknown to the hypervisor.
  case hardware(reason: UInt64)
  /// A `KVM_EXIT_...` that this client does not handle.
  case unknown(UInt32)
}

/// A port access: `count` items of `width` bytes each, contiguous at `data`. For an input the
/// client fills the data before it runs the CPU again.
@safe package struct PortAccess {
  package let isWrite: Bool
  package let port: UInt16
  /// 1, 2 or 4.
  package let width: Int
  package let count: Int
  /// Inside the vCPU's shared pages; valid until the next `run`.
  package let data: UnsafeMutableRawPointer
}

/// A memory access of 1 to 8 bytes. For a read the client fills the data before it runs the CPU
/// again.
@safe package struct MemoryAccess {
  package let isWrite: Bool
  package let address: UInt64
  package let width: Int
  /// Inside the vCPU's shared pages; valid until the next `run`.
  package let data: UnsafeMutableRawPointer
}

extension Exit {
  /// Reads the exit from the shared pages, which are `size` bytes long. Reports `unknown` if its
  /// data is not inside them.
  package init(reading run: UnsafeMutablePointer<kvm_run>, size: Int) {
    let pages = UnsafeMutableRawPointer(run)
    let reason = unsafe run.pointee.exit_reason
    switch Int32(bitPattern: reason) {
    case KVM_EXIT_IO: self = unsafe Self.port(run, pages, size)
    case KVM_EXIT_MMIO: self = unsafe Self.memory(run, pages)
    case KVM_EXIT_HLT: self = .halt
    case KVM_EXIT_SHUTDOWN: self = .shutdown
    case KVM_EXIT_INTR: self = .interrupted
    case KVM_EXIT_IRQ_WINDOW_OPEN: self = .interruptWindowOpen
    case KVM_EXIT_DEBUG: self = .debug
    case KVM_EXIT_UNKNOWN: self = unsafe .hardware(reason: run.pointee.hw.hardware_exit_reason)
    case KVM_EXIT_FAIL_ENTRY:
      let failure = unsafe run.pointee.fail_entry
      self = .failEntry(reason: failure.hardware_entry_failure_reason, cpu: failure.cpu)
    case KVM_EXIT_INTERNAL_ERROR:
      let error = unsafe run.pointee.internal
      let data = unsafe withUnsafeBytes(of: error.data) { bytes in
        unsafe Array(bytes.bindMemory(to: UInt64.self).prefix(Int(min(error.ndata, 16))))
      }
      self = .internalError(suberror: error.suberror, data: data)
    case KVM_EXIT_SYSTEM_EVENT: self = unsafe .systemEvent(type: run.pointee.system_event.type)
    default: self = .unknown(reason)
    }
  }

  private static func port(
    _ run: UnsafeMutablePointer<kvm_run>, _ pages: UnsafeMutableRawPointer, _ size: Int
  ) -> Exit {
    let io = unsafe run.pointee.io
    let width = Int(io.size)
    guard io.data_offset <= UInt64(size), [1, 2, 4].contains(width),
      Int(io.count) * width <= size - Int(io.data_offset)
    else { return .unknown(UInt32(KVM_EXIT_IO)) }
    return unsafe .io(
      PortAccess(
        isWrite: Int32(io.direction) == KVM_EXIT_IO_OUT, port: io.port, width: width,
        count: Int(io.count), data: pages + Int(io.data_offset)))
  }

  /// Offset of `kvm_run.mmio.data`: Swift has no offsets inside C's anonymous unions.
  private static let memoryDataOffset = 40

  private static func memory(
    _ run: UnsafeMutablePointer<kvm_run>, _ pages: UnsafeMutableRawPointer
  ) -> Exit {
    let mmio = unsafe run.pointee.mmio
    guard mmio.len <= 8 else { return .unknown(UInt32(KVM_EXIT_MMIO)) }
    return unsafe .mmio(
      MemoryAccess(
        isWrite: mmio.is_write != 0, address: mmio.phys_addr, width: Int(mmio.len),
        data: pages + memoryDataOffset))
  }
}

extension Exit: CustomStringConvertible {
  package var description: String {
    func hex(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }
    switch self {
    case .io(let access):
      return "port \(access.isWrite ? "write" : "read") \(hex(access.port)), "
        + "\(access.count) x \(access.width) bytes"
    case .mmio(let access):
      return "memory \(access.isWrite ? "write" : "read") \(hex(access.address)), "
        + "\(access.width) bytes"
    case .halt: return "halt"
    case .shutdown: return "shutdown (triple fault)"
    case .failEntry(let reason, _): return "entry failure, reason \(hex(reason))"
    case .internalError(let suberror, let data):
      return "internal error \(suberror) [\(data.map { hex($0) }.joined(separator: " "))]"
    case .interrupted: return "interrupted"
    case .interruptWindowOpen: return "interrupt window"
    case .systemEvent(let type): return "system event \(type)"
    case .debug: return "debug"
    case .hardware(let reason): return "unknown hardware exit \(hex(reason))"
    case .unknown(let reason): return "KVM exit \(reason)"
    }
  }
}
