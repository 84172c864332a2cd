// SPDX-License-Identifier: Apache-2.0
//
// The memory of this process that a client gives to its guests, and all that is known of it. A
// client is a program under `martlet kvm`, or our own monitor. Who makes the hypervisor makes one
// object and gives it to all that need it; there is no other place that knows any of this.
//
//     let memory = ClientMemory(.unannounced)
//     let hypervisor = try Hypervisor(client: memory)
//
//     map          what the client has mapped (HostMemoryMap)      nested entries are made of it
//     slots        the memory that slots name                      which calls concern a guest
//     codeGuard    pages with code, protected against the client   the processors' CodeWatch
//     userFaults   pages that the client brings itself             presence, stragglers
//     recover      accesses to memory that has gone                signal handlers
//
// The code that intercepts the client's calls reports them here and, if they concern a slot, has
// the hypervisor carry them out (`Hypervisor.changeMappings`): vCPUs are the hypervisor's to stop.

import Host
import Synchronization

/// How it is known that the client wrote to guest memory.
package enum ClientWrites: Sendable {
  /// The client calls `PhysicalCPU.noteHostWrite`, and changes no mappings of slots' memory.
  case announced
  /// It knows nothing of us: pages with code are protected against it (`CodeGuard`), and it may
  /// change what is mapped where a slot's memory is.
  case unannounced
  /// The same, without protection: code is compared with what it was.
  case compared
}

package final class ClientMemory: Sendable {
  package let writes: ClientWrites
  /// What the client has mapped; nil where its slots' memory stays as it is.
  package let map: HostMemoryMap?
  /// Where the client writes to guest memory unannounced.
  package let codeGuard: CodeGuard?
  package let userFaults: UserFaultRanges

  /// The lowest and highest address of any slot's memory there ever was. Signed, as `min` compares
  /// so; addresses have 47 bits.
  private let lowest = Atomic<Int>(.max)
  private let highest = Atomic<Int>(0)

  /// - Parameter userFaults: those that were reported before there was this object.
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

  /// A slot names this memory.
  package func addSlot(_ range: Range<UInt>) {
    if map == nil { return }
    lowest.min(Int(clamping: range.lowerBound), ordering: .acquiringAndReleasing)
    highest.max(Int(clamping: range.upperBound), ordering: .acquiringAndReleasing)
    codeGuard?.add(range)
  }

  /// Undoes one `addSlot` of the same range. The memory's code has been dropped.
  package func removeSlot(_ range: Range<UInt>) { codeGuard?.remove(range) }

  // MARK: What the client does; two words are read, because most calls concern no slot

  package var hasSlots: Bool { highest.load(ordering: .acquiring) != 0 }

  /// Whether a slot's memory may lie in the range. Safe in signal handlers.
  package func mayConcern(_ address: UInt, _ length: UInt) -> Bool {
    let end = Int(clamping: address.addingReportingOverflow(length).partialValue)
    return Int(clamping: address) < highest.load(ordering: .acquiring)
      && end > lowest.load(ordering: .acquiring)
  }

  /// What of a range lies between the first slot's memory and the last one's.
  package func part(of range: Range<UInt>) -> Range<UInt> {
    let end = UInt(clamping: highest.load(ordering: .acquiring))
    let start = UInt(clamping: lowest.load(ordering: .acquiring))
    return range.clamped(to: min(start, end)..<end)
  }

  /// A mapping of this process changed.
  package func changed() { if hasSlots { map?.changed() } }

  // MARK: Memory that has gone

  /// In a handler of SIGSEGV or SIGBUS: has a guest's access to a slot's memory end its guest code.
  ///
  /// - Parameters:
  ///   - address: the signal's.
  ///   - context: the handler's third argument.
  /// - Returns: false where it was no such access.
  package func recover(_ address: UInt, _ context: UnsafeMutableRawPointer?) -> Bool {
    unsafe mayConcern(address, 1) && GuardedCall.recover(address, context)
  }
}
