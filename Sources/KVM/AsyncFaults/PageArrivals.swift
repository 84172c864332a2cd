// SPDX-License-Identifier: Apache-2.0
//
// Pages on their way to a vCPU: a thread for each has the kernel bring it, and hands it over when
// it is there. Threads know this object and a host address, never the vCPU or its machine, which
// may go while a page that nobody brings is out.

import ClientMemory
import Glibc
import Host
import Synchronization
import SystemPackage

/// A page that has come.
struct PageArrival: Sendable {
  /// Guest-physical; nil: for whoever waits, after the guest may have missed some.
  var page: UInt64?
  /// It could not be brought so: the vCPU waits for it itself.
  var isFailed = false
}

final class PageArrivals: Sendable {
  private struct State: Sendable {
    var arrived: [PageArrival] = []
    var notify: (@Sendable () -> Void)?
  }

  private let state: Mutex<State>

  /// - Parameter notify: called when there is something to take, under a lock, from any thread.
  init(notify: @escaping @Sendable () -> Void) { state = Mutex(State(notify: notify)) }

  /// Nobody is told of anything any more.
  func close() { state.withLock { $0 = State() } }

  func add(_ arrival: PageArrival) {
    state.withLock { state in
      guard let notify = state.notify else { return }
      state.arrived.append(arrival)
      notify()
    }
  }

  var isEmpty: Bool { state.withLock { $0.arrived.isEmpty } }

  func take() -> PageArrival? {
    state.withLock { $0.arrived.isEmpty ? nil : $0.arrived.removeFirst() }
  }

  /// Starts bringing a page.
  ///
  /// - Parameter host: its address in this process.
  func bring(_ page: UInt64, host: UInt64) throws(Errno) {
    _ = try HostThread(name: "kvm-async-pf", stackSize: 64 << 10) { [self] in
      var all = sigset_t()
      unsafe sigfillset(&all)
      unsafe pthread_sigmask(SIG_SETMASK, &all, nil)
      let isThere = PagePresence.bring(UInt(host))
      self.add(PageArrival(page: page, isFailed: !isThere))
    }
  }
}
