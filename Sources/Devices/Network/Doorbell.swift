// SPDX-License-Identifier: Apache-2.0
//
// An eventfd with a function, by which a vCPU hands work to the event loop.

import Host
import SystemPackage

/// Calls a function in an event loop's thread when rung, so that vCPUs can hand over work.
final class Doorbell: Sendable {
  private let event: EventFile

  init() throws(Errno) { event = try EventFile() }

  /// Calls the function from now on, once for several rings that come together.
  func answer(in loop: EventLoop, _ body: @escaping @Sendable () -> Void) throws(Errno) {
    _ = try loop.add(event.descriptor.rawValue) { [self] _ in
      event.consume()
      body()
    }
  }

  func ring() { event.signal() }
}
