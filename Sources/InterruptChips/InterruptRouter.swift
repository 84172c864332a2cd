// SPDX-License-Identifier: Apache-2.0
//
// Finds the processors that a message is for. It keeps the `LocalAPICIdentity` of each, so routing
// takes no lock of a local APIC; the owner stores an identity again when a write returned
// `.identityChanged`, and after IA32_APIC_BASE, INIT, reset or a restore.
//
// A lowest-priority message goes to one of the processors that it matches, chosen by its vector:
// any choice is allowed, and this one spreads vectors without looking at priorities, which other
// threads are changing. SDM volume 3: "Determining IPI Destination", "Lowest Priority Delivery
// Mode".
//
//   router.forEachDestination(of: message) { cpu in cpus[cpu].deliver(message) }

package struct InterruptRouter: Sendable {
  /// By processor index.
  package private(set) var identities: [LocalAPICIdentity] = []

  package init() {}

  /// Stores the identity of processor `index`, adding disabled ones up to it.
  package mutating func setIdentity(_ identity: LocalAPICIdentity, ofProcessor index: Int) {
    guard index >= 0 else { return }
    while identities.count <= index {
      identities.append(LocalAPICIdentity(mode: .disabled, id: 0, logicalID: 0))
    }
    identities[index] = identity
  }

  /// Calls `body` with the index of each processor that is to take `message`. Returns how many.
  @discardableResult
  package func forEachDestination(
    of message: InterruptMessage, _ body: (Int) -> Void
  ) -> Int {
    route(InterprocessorInterrupt(message: message), sender: nil, body)
  }

  /// Calls `body` with the index of each processor that is to take `interrupt`. Returns how many.
  @discardableResult
  package func forEachDestination(
    of interrupt: InterprocessorInterrupt, from sender: Int, _ body: (Int) -> Void
  ) -> Int {
    route(interrupt, sender: sender, body)
  }

  private func route(
    _ interrupt: InterprocessorInterrupt, sender: Int?, _ body: (Int) -> Void
  ) -> Int {
    if interrupt.shorthand == .selfOnly, let sender, identities.indices.contains(sender),
      identities[sender].mode != .disabled
    {
      body(sender)
      return 1
    }
    if let only = soleDestination(interrupt) {
      body(only)
      return 1
    }
    var remaining = Int.max
    var skip = 0
    if interrupt.message.deliveryMode == .lowestPriority {
      let matching = count(interrupt, sender: sender)
      guard matching > 0 else { return 0 }
      skip = Int(interrupt.message.vector) % matching
      remaining = 1
    }
    var delivered = 0
    for index in identities.indices where accepts(index, interrupt, sender) {
      if skip > 0 {
        skip &-= 1
        continue
      }
      body(index)
      delivered &+= 1
      remaining &-= 1
      if remaining == 0 { break }
    }
    return delivered
  }

  /// The destination of a physical, not broadcast message where identifiers are indices, as they
  /// nearly always are.
  private func soleDestination(_ interrupt: InterprocessorInterrupt) -> Int? {
    let message = interrupt.message
    let index = Int(message.destination)
    guard interrupt.shorthand == .none, message.destinationMode == .physical,
      !message.isBroadcast, identities.indices.contains(index), identities[index].id == index,
      accepts(index, interrupt, nil)
    else { return nil }
    return index
  }

  /// A lowest-priority message is only for local APICs that software enabled.
  private func accepts(
    _ index: Int, _ interrupt: InterprocessorInterrupt, _ sender: Int?
  ) -> Bool {
    identities[index].matches(interrupt, isSender: index == sender)
      && (interrupt.message.deliveryMode != .lowestPriority || identities[index].isSoftwareEnabled)
  }

  private func count(_ interrupt: InterprocessorInterrupt, sender: Int?) -> Int {
    var matching = 0
    for index in identities.indices where accepts(index, interrupt, sender) { matching &+= 1 }
    return matching
  }
}
