// SPDX-License-Identifier: Apache-2.0
//
// What a virtio device is to its transport, and the transport to the device.

import GuestMemory

/// What a device gets from its transport: the queues and the interrupts.
package struct VirtioConnection: Sendable {
  package let queues: [VirtioQueue]
  package let interrupts: VirtioInterrupts

  /// - Parameter queueSizes: the most entries that each queue may have.
  package init(_ memory: GuestMemory, queueSizes: [UInt16], _ wires: DeviceWires) {
    let interrupts = VirtioInterrupts(queues: queueSizes.count, wires)
    queues = queueSizes.enumerated().map {
      VirtioQueue(index: $0, maximumSize: $1, memory, interrupts)
    }
    self.interrupts = interrupts
  }
}

/// A device behind a virtio transport. Functions are called by vCPUs, so none may wait. The
/// transport may hold its lock meanwhile: the device does not call it back.
package protocol VirtioDevice: AnyObject, Sendable {
  var type: VirtioDeviceType { get }
  var connection: VirtioConnection { get }
  /// The feature bits of its kind that it offers.
  var features: UInt64 { get }
  /// The bytes of its configuration as they are now.
  var configuration: [UInt8] { get }
  /// The driver writes to the configuration. What cannot be written is left as it is.
  func writeConfiguration(_ offset: Int, width: Int, value: UInt64)
  /// The driver is ready and has taken these features.
  func activate(features: UInt64)
  /// The driver says that a queue has something new.
  func notify(queue: Int)
  /// The driver, or the machine, has taken the queues away. Requests that the device keeps are to
  /// be given back.
  func reset()
}

extension VirtioDevice {
  package func writeConfiguration(_ offset: Int, width: Int, value: UInt64) {}
  package func reset() {}
}
