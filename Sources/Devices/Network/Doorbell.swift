// SPDX-License-Identifier: Apache-2.0
//
// How a vCPU hands work to the event loop: an eventfd and a function.

import Host
import SystemPackage

/// Has a function called in an event loop's thread when somebody rings: how a vCPU hands work over.
final class Doorbell: Sendable {
  private let event: EventFile

  init() throws(Errno) { event = try EventFile() }

  /// From now on the function is called. It is called once for several rings that come together.
  func answer(in loop: EventLoop, _ body: @escaping @Sendable () -> Void) throws(Errno) {
    _ = try loop.add(event.descriptor.rawValue) { [self] _ in
      event.consume()
      body()
    }
  }

  func ring() { event.signal() }
}
