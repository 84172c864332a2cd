// SPDX-License-Identifier: Apache-2.0
//
// The interface between a virtio device and its transport.

import GuestMemory

/// What a transport provides to a device: queues and interrupts.
package struct VirtioConnection: Sendable {
  package let queues: [VirtioQueue]
  package let interrupts: VirtioInterrupts

  /// - Parameter queueSizes: the maximum size of each queue.
  package init(_ memory: GuestMemory, queueSizes: [UInt16], _ wires: DeviceWires) {
    let interrupts = VirtioInterrupts(queues: queueSizes.count, wires)
    queues = queueSizes.enumerated().map {
      VirtioQueue(index: $0, maximumSize: $1, memory, interrupts)
    }
    self.interrupts = interrupts
  }
}

/// A device behind a virtio transport. vCPUs call its functions, so none may block. The transport
/// may hold its lock meanwhile: the device must not call it back.
package protocol VirtioDevice: AnyObject, Sendable {
  var type: VirtioDeviceType { get }
  var connection: VirtioConnection { get }
  /// The device-specific features that it offers.
  var features: UInt64 { get }
  /// The current bytes of its configuration.
  var configuration: [UInt8] { get }
  /// The driver writes to the configuration. Read-only bytes stay unchanged.
  func writeConfiguration(_ offset: Int, width: Int, value: UInt64)
  /// The driver is ready and has accepted these features.
  func activate(features: UInt64)
  /// The driver has added buffers to a queue.
  func notify(queue: Int)
  /// The driver, or the machine, has taken the queues away. Requests that the device keeps are to
  /// be given back.
  func reset()
}

extension VirtioDevice {
  package func writeConfiguration(_ offset: Int, width: Int, value: UInt64) {}
  package func reset() {}
}
