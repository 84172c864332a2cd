// SPDX-License-Identifier: Apache-2.0
//
// Pages on their way to a vCPU: a thread for each has the kernel bring it in and then reports it.
// Threads know only this object and a host address: the vCPU and its machine may vanish while a
// page is outstanding.

import ClientMemory
import Glibc
import Host
import Synchronization
import SystemPackage

/// A page that has arrived.
struct PageArrival: Sendable {
  /// Guest-physical; nil wakes all waiting tasks, as the guest may have missed arrivals.
  var page: UInt64?
  /// The thread could not bring it in: the vCPU waits for it itself.
  var isFailed = false
}

final class PageArrivals: Sendable {
  private struct State: Sendable {
    var arrived: [PageArrival] = []
    var notify: (@Sendable () -> Void)?
  }

  private let state: Mutex<State>

  /// - Parameter notify: called for each arrival, under a lock, from any thread.
  init(notify: @escaping @Sendable () -> Void) { state = Mutex(State(notify: notify)) }

  /// Ends all notifications.
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

  /// Starts bringing a page in.
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
