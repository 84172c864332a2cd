// SPDX-License-Identifier: Apache-2.0
//
// Requests between CPUs about code pages; see CodePages for the protocol.
//
// A CPU in guest code checks its queue when `CPURequest.shootdown` is set, at the next block. A CPU
// outside guest code checks it when it enters. So a request is answered when the CPU has processed
// its queue or is outside.
//
// No CPU waits for one whose guest cannot have the page (`GuestSpaces`): that one processes its
// queue later, and in any case before its guest gets the page, because mapping memory takes an
// exit.

import Glibc
import Synchronization
import X86

/// Every CPU of this process, as others see it. The registry does not retain the CPU: a CPU removes
/// itself when it ends, and its request word is accessed only under the lock.
final class CPURegistry: Sendable {
  static let shared = CPURegistry()

  private struct Entry: Sendable {
    let queue: ShootdownQueue
    let requests: RequestLine
  }

  private let entries = Mutex<[Entry]>([])

  func add(_ cpu: PhysicalCPU) {
    let entry = Entry(queue: cpu.shootdowns, requests: cpu.requestLine)
    entries.withLock { $0.append(entry) }
  }

  func remove(_ queue: ShootdownQueue) {
    entries.withLock { $0.removeAll { $0.queue === queue } }
  }

  /// In a child of fork: forgets the parent's CPUs.
  func forget() { entries.withLock { $0.removeAll() } }

  /// Posts a request to every CPU but one. Allocates nothing, unless a queue is very long.
  func post(_ request: ShootdownQueue.Request, except own: ShootdownQueue?) {
    entries.withLock { entries in
      for entry in entries where entry.queue !== own {
        _ = entry.queue.add(request)
        entry.requests.raise(CPURequest.shootdown)
      }
    }
  }

  /// Posts a request to every CPU but one; returns the queues with the request's number in each.
  func send(
    _ request: ShootdownQueue.Request, except own: ShootdownQueue?
  ) -> [(queue: ShootdownQueue, number: UInt64)] {
    entries.withLock { entries in
      var sent: [(queue: ShootdownQueue, number: UInt64)] = []
      for entry in entries where entry.queue !== own {
        sent.append((entry.queue, entry.queue.add(request)))
        entry.requests.raise(CPURequest.shootdown)
      }
      return sent
    }
  }
}

/// Requests of other CPUs, in order.
final class ShootdownQueue: Sendable {
  enum Request: Sendable {
    /// Drop write translations of this host page.
    case protect(UInt64)
    /// Drop the code of this host page.
    case dropCode(UInt64)
    /// Compare code before executing it.
    case compare
    /// Drop all write translations and all code.
    case everything
  }

  /// A CPU may stay outside guest code indefinitely: beyond this many requests it gets `everything`
  /// instead.
  private static let limit = 1024

  private let queue = Mutex<[Request]>([])
  /// Total requests added and processed.
  let added = Atomic<UInt64>(0)
  let processed = Atomic<UInt64>(0)
  /// The CPU is in guest code.
  let inGuest = Atomic<Bool>(false)
  /// The CPU's current or last guest, by the address of its top EPT table.
  let space = Atomic<UInt64>(0)

  init() { queue.withLock { $0.reserveCapacity(Self.limit + 1) } }

  func add(_ request: Request) -> UInt64 {
    queue.withLock {
      if $0.count >= Self.limit, !inGuest.load(ordering: .sequentiallyConsistent) {
        $0.removeAll(keepingCapacity: true)
        $0.append(.everything)
      } else {
        $0.append(request)
      }
      return added.add(1, ordering: .sequentiallyConsistent).newValue
    }
  }

  /// The oldest requests, as many as fit into `buffer`, and the number of the last of them.
  func take(_ buffer: inout [Request]) -> UInt64 {
    queue.withLock { requests in
      swap(&requests, &buffer)
      return added.load(ordering: .sequentiallyConsistent)
    }
  }
}

extension PhysicalCPU {
  /// Before guest code runs on this CPU.
  package func enterGuestCode() {
    shootdowns.space.store(cpu.guestSpace, ordering: .relaxed)
    shootdowns.inGuest.store(true, ordering: .sequentiallyConsistent)
    processShootdowns()
  }

  package func leaveGuestCode() {
    shootdowns.inGuest.store(false, ordering: .sequentiallyConsistent)
  }

  var isInGuestCode: Bool { shootdowns.inGuest.load(ordering: .relaxed) }

  /// Processes other CPUs' requests.
  package func processShootdowns() {
    if cpu.s.requests & CPURequest.shootdown != 0 {
      _ = takeRequest(CPURequest.shootdown)
    }
    if shootdowns.added.load(ordering: .acquiring)
      == shootdowns.processed.load(ordering: .acquiring)
    {
      return
    }
    let last = shootdowns.take(&taken)
    var compares = false
    for request in taken {
      switch request {
      case .protect(let page): dropWriteTranslations(page)
      case .dropCode(let page): blocks.drop(page: page)
      case .compare: compares = true
      case .everything:
        dropTranslations()
        blocks.dropEveryPage()
      }
    }
    if compares { beginComparison() }
    taken.removeAll(keepingCapacity: true)
    shootdowns.processed.store(last, ordering: .sequentiallyConsistent)
  }

  /// Marks a host page as containing code, before anything is decoded from it. On return the page
  /// is marked, and clearing the mark makes this CPU drop what it decodes from now on.
  func markCode(_ page: UInt64) {
    let pages = CodePages.shared
    while !pages.isReady(page) {
      if pages.mark(page) {
        tellOthers(page)
        pages.settle(page)
      } else {
        // Another CPU is settling it. Two CPUs may wait for each other: each answers while it
        // waits.
        processShootdowns()
        sched_yield()
      }
    }
  }

  private func tellOthers(_ page: UInt64) {
    dropWriteTranslations(page)
    var rounds = 0
    for (queue, number) in CPURegistry.shared.send(.protect(page), except: shootdowns) {
      if !mayHave(page, queue) { continue }
      while queue.inGuest.load(ordering: .sequentiallyConsistent),
        queue.processed.load(ordering: .sequentiallyConsistent) < number
      {
        processShootdowns()
        sched_yield()
        // The other CPU's thread may need this host CPU.
        rounds += 1
        if rounds & 255 == 0 { sched_yield() }
      }
    }
  }

  /// Whether another CPU's guest may have a host page. A CPU checks its queue between two guests,
  /// so the answer stays valid long enough.
  private func mayHave(_ page: UInt64, _ queue: ShootdownQueue) -> Bool {
    if !queue.inGuest.load(ordering: .sequentiallyConsistent) { return false }
    let space = queue.space.load(ordering: .sequentiallyConsistent)
    return space == cpu.guestSpace || GuestSpaces.shared.mayHave(page, space)
  }

  private func dropTranslations() {
    cpu.s.pointee.stackLimit = 0
    for n in 0..<(TLB.entriesPerBank * TLB.bankCount) { tlbBanks[n] = .invalid }
  }

  /// Drops the write tags of a host page; read tags stay.
  private func dropWriteTranslations(_ page: UInt64) {
    cpu.s.pointee.stackLimit = 0
    let wanted = SIMD16<UInt32>(repeating: UInt32(truncatingIfNeeded: page >> Page.shift))
    let pages = UnsafeRawPointer(writablePages).assumingMemoryBound(to: SIMD16<UInt32>.self)
    for group in 0..<(TLB.entriesPerBank * TLB.bankCount / 16)
    where any(pages[group] .== wanted) {
      for n in (group * 16)..<(group * 16 + 16) { dropWriteTranslation(tlbBanks + n, page) }
    }
  }

  private func dropWriteTranslation(_ entry: UnsafeMutablePointer<TLBEntry>, _ page: UInt64) {
    if entry.pointee.writeTag == .max { return }
    let linear = entry.pointee.writeTag & Page.mask
    if linear &+ entry.pointee.addend == page {
      entry.pointee.writeTag = .max
      entry.pointee.info |= TLBEntry.tracked
    }
  }
}

extension CPU {
  /// The value of `ShootdownQueue.space` while this CPU's guest runs; 0 without nested tables.
  fileprivate var guestSpace: UInt64 {
    s.pointee.intercepts.nested == .none
      ? 0 : s.pointee.intercepts.nestedRoot & EPTEntry.addressMask
  }

  /// Called before every slow-path write, with any host address in its page.
  @inline(__always) func noteCodeWrite(_ host: UInt64) {
    if CodePages.contains(host, s.pointee.codePages) { dropCode(host & Page.mask) }
  }

  @inline(never) private func dropCode(_ page: UInt64) {
    let owner = owner
    if CodePages.shared.unmark(page, except: owner.shootdowns) { owner.blocks.drop(page: page) }
  }
}

extension PhysicalCPU {
  /// A device or the VMM, not a guest instruction, wrote to memory: drops the code of the pages in
  /// the range. From any thread.
  package static func noteHostWrite(_ host: UnsafeRawPointer, count: Int) {
    if count <= 0 { return }
    var page = UInt64(UInt(bitPattern: host)) & Page.mask
    let end = UInt64(UInt(bitPattern: host)) &+ UInt64(count)
    while page < end {
      if CodePages.shared.contains(page) {
        _ = CodePages.shared.unmark(page, except: nil)
      }
      page &+= Page.size
    }
  }
}
