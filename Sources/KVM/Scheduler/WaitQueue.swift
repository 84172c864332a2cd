// SPDX-License-Identifier: Apache-2.0
//
// The vCPUs that wait for a physical CPU, first come, first served. A vCPU that left its CPU in a
// PAUSE loop goes to the end like any other: so all that it may be waiting for run before it, and
// it waits no longer than the others.

/// A waiting vCPU.
/// Sendable: `vcpu` is only compared; the rest is written under the pool's lock, `slot` before the
/// waiter is woken.
final class Waiter: @unchecked Sendable {
  let parker = Parker()
  let vcpu: ObjectIdentifier
  var slot: PhysicalCPUSlot?
  /// How long it sleeps until it checks for expired time slices.
  var patience: UInt64

  init(_ vcpu: VirtualCPU, patience: UInt64) {
    self.vcpu = ObjectIdentifier(vcpu)
    self.patience = patience
  }
}

struct WaitQueue: Sendable {
  private var waiters: [Waiter] = []

  var count: Int { waiters.count }

  mutating func append(_ waiter: Waiter) { waiters.append(waiter) }

  /// Removes the first waiter.
  mutating func takeFirst() -> Waiter? { waiters.isEmpty ? nil : waiters.removeFirst() }

  /// Moves a vCPU to the front, if it is here.
  mutating func moveToFront(_ vcpu: VirtualCPU) {
    let vcpu = ObjectIdentifier(vcpu)
    guard let index = waiters.firstIndex(where: { $0.vcpu == vcpu }) else { return }
    waiters.insert(waiters.remove(at: index), at: 0)
  }
}
