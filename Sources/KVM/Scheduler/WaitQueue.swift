// SPDX-License-Identifier: Apache-2.0
//
// The vCPUs that wait for a physical CPU, first come, first served. A vCPU that left its CPU in a
// PAUSE loop goes to the end like any other: so everybody that it may be waiting for runs before
// it, and it never waits for longer than the others.

/// One vCPU that waits.
/// Sendable: `vcpu` is compared alone; the rest is written under the pool's lock, `slot` before the
/// waiter is woken.
final class Waiter: @unchecked Sendable {
  let parker = Parker()
  let vcpu: ObjectIdentifier
  var slot: PhysicalCPUSlot?
  /// How long it sleeps until it looks whether somebody has run for too long.
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

  /// Takes out the one whose turn it is.
  mutating func takeFirst() -> Waiter? { waiters.isEmpty ? nil : waiters.removeFirst() }

  /// Makes a vCPU the next, if it is here.
  mutating func moveToFront(_ vcpu: VirtualCPU) {
    let vcpu = ObjectIdentifier(vcpu)
    guard let index = waiters.firstIndex(where: { $0.vcpu == vcpu }) else { return }
    waiters.insert(waiters.remove(at: index), at: 0)
  }
}
