// SPDX-License-Identifier: Apache-2.0
//
// A source of random bytes for guests: the host's, by getrandom(2).

import CHost
import Glibc
import GuestMemory
import Host
import SystemPackage

/// A source of random bytes (virtio 1.2, "Entropy Device"): the host's. It works in the event
/// loop's thread.
package final class EntropyDevice: VirtioDevice {
  package static let queueSizes: [UInt16] = [16]
  /// Limit of bytes for a request: the device may return fewer than requested.
  private static let limit = 4096
  /// Requests before other handlers of the event loop get a turn.
  private static let turn = 16

  package let type = VirtioDeviceType.entropy
  package let connection: VirtioConnection
  private let bell: Doorbell

  package init(_ connection: VirtioConnection, loop: EventLoop) throws(Errno) {
    self.connection = connection
    bell = try Doorbell()
    try bell.answer(in: loop) { [weak self] in self?.serve() }
  }

  package let features: UInt64 = 0
  package let configuration: [UInt8] = []
  package func activate(features: UInt64) { bell.ring() }
  package func notify(queue: Int) { bell.ring() }

  private func serve() {
    let queue = connection.queues[0]
    var bytes = [UInt8](repeating: 0, count: Self.limit)
    for _ in 0..<Self.turn {
      guard let request = queue.pop() else { return }
      let wanted = min(request.writable.count, Self.limit)
      let got = unsafe bytes.withUnsafeMutableBytes {
        max(
          chost_syscall(Int(SYS_getrandom), Int(bitPattern: $0.baseAddress), wanted, 0, 0, 0, 0), 0)
      }
      let count = request.writable.write(bytes.bytes.extracting(first: got))
      queue.complete(request, written: UInt32(truncatingIfNeeded: count))
    }
    bell.ring()
  }
}
