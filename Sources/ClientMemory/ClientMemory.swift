// SPDX-License-Identifier: Apache-2.0
//
// The memory of this process that a client gives to its guests, and everything known about it. A
// client is a program under `martlet kvm`, or our own monitor. The hypervisor's creator makes one
// object and passes it to all its users; nothing else holds this information.
//
//     let memory = ClientMemory(.unannounced)
//     let hypervisor = try Hypervisor(client: memory)
//
//     map          the client's mappings (HostMemoryMap)           source of nested entries
//     slots        the memory of slots                             which calls concern a guest
//     codeGuard    pages with code, protected against the client   the processors' CodeWatch
//     userFaults   pages that the client supplies itself           presence, stragglers
//     recover      accesses to vanished memory                     signal handlers
//
// The code that intercepts the client's calls reports them here and, if they concern a slot,
// performs them through the hypervisor (`Hypervisor.changeMappings`), because only it can stop
// vCPUs.

import Host
import Synchronization

/// How the client's writes to guest memory are detected.
package enum ClientWrites: Sendable {
  /// The client calls `PhysicalCPU.noteHostWrite`, and changes no mappings of slots' memory.
  case announced
  /// It does not report anything: pages with code are protected against it (`CodeGuard`), and it
  /// may change mappings of slots' memory.
  case unannounced
  /// The same without protection: code is compared with a copy.
  case compared
}

package final class ClientMemory: Sendable {
  package let writes: ClientWrites
  /// The client's mappings; nil if those of slots' memory never change.
  package let map: HostMemoryMap?
  /// If the client writes to guest memory without notice.
  package let codeGuard: CodeGuard?
  package let userFaults: UserFaultRanges

  /// The lowest and highest address of any slot's memory so far. Signed, because `min` compares
  /// signed; addresses have 47 bits.
  private let lowest = Atomic<Int>(.max)
  private let highest = Atomic<Int>(0)

  /// - Parameter userFaults: ranges reported before this object was created.
  package init(
    _ writes: ClientWrites = .announced, userFaults: UserFaultRanges = UserFaultRanges()
  ) {
    self.writes = writes
    self.userFaults = userFaults
    guard writes != .announced else {
      map = nil
      codeGuard = nil
      return
    }
    let map = HostMemoryMap()
    self.map = map
    codeGuard = CodeGuard(protects: writes == .unannounced, map: map)
  }

  // MARK: Slots

  /// A slot uses this memory.
  package func addSlot(_ range: Range<UInt>) {
    if map == nil { return }
    lowest.min(Int(clamping: range.lowerBound), ordering: .acquiringAndReleasing)
    highest.max(Int(clamping: range.upperBound), ordering: .acquiringAndReleasing)
    codeGuard?.add(range)
  }

  /// Undoes one `addSlot` of the same range. The memory's code has been dropped.
  package func removeSlot(_ range: Range<UInt>) { codeGuard?.remove(range) }

  // MARK: The client's calls; a check reads two words, because most calls concern no slot

  package var hasSlots: Bool { highest.load(ordering: .acquiring) != 0 }

  /// Whether the range may contain a slot's memory. Safe in signal handlers.
  package func mayConcern(_ address: UInt, _ length: UInt) -> Bool {
    let end = Int(clamping: address.addingReportingOverflow(length).partialValue)
    return Int(clamping: address) < highest.load(ordering: .acquiring)
      && end > lowest.load(ordering: .acquiring)
  }

  /// The part of a range between the first and the last slot's memory.
  package func part(of range: Range<UInt>) -> Range<UInt> {
    let end = UInt(clamping: highest.load(ordering: .acquiring))
    let start = UInt(clamping: lowest.load(ordering: .acquiring))
    return range.clamped(to: min(start, end)..<end)
  }

  /// A mapping of this process changed.
  package func changed() { if hasSlots { map?.changed() } }

  // MARK: Vanished memory

  /// In a handler of SIGSEGV or SIGBUS: stops guest code that accessed a slot's vanished memory.
  ///
  /// - Parameters:
  ///   - address: the fault's address.
  ///   - context: the handler's third argument.
  /// - Returns: false if it was no such access.
  package func recover(_ address: UInt, _ context: UnsafeMutableRawPointer?) -> Bool {
    unsafe mayConcern(address, 1) && GuardedCall.recover(address, context)
  }
}
