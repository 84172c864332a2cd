// SPDX-License-Identifier: Apache-2.0
//
// A window: 4 GiB of a user's linear addresses as a reserved range of this process, so that the
// host's MMU translates what translated code accesses there (docs/windows.md). Translated code has
// compared the upper half of the address, and accesses GS with an address of 32 bits.
//
// A page is mapped into the window when it is first accessed, in the handler of the host's fault,
// and only as a TLB entry of the current address space says. So whoever makes a TLB entry invalid
// makes the window's page invalid too:
//
//     a new context                 the window's is another: `high` is `LinearWindow.none`
//     INVLPG                        `dropWindowPage`
//     a page that gets code         `dropWindowWrites`
//     contexts that are used again  `emptyWindow`
//
// One thread at a time has the CPU and its window, and the handler runs on it while it is in
// translated code.

import CHost
import Glibc
import Host
import X86

/// A window. Plain memory, for the signal's handler.
package struct LinearWindow {
  /// The upper half of its linear addresses.
  var upper: UInt32 = none
  /// By page: not mapped, mapped for reading, or for writing as well.
  var pages: UnsafeMutablePointer<UInt8>?
  /// Mapped pages are within these.
  var mapped = Int.max..<Int.max

  /// In the place of the upper half of an address: no canonical one has it.
  package static let none: UInt32 = 0x8000_0000
  static let pageCount = 1 << 20
  static let pageMask = pageCount &- 1
  /// Pages at both ends that are never mapped, so that a displacement of less than their size may
  /// be added to a register whose upper half was compared.
  package static let edge = 16
  static let readable: UInt8 = 1
  static let writable: UInt8 = 2
  /// Pages around the one accessed that are mapped with it.
  static let around = 16
  /// Pages of a large page.
  static let largePages = 512
}

/// The windows of a physical CPU: of one address space at a time.
package struct WindowSet {
  /// The host's address of the first page of the first window, the base for GS; 0: there are none.
  package var base: UInt = 0
  /// From window to window.
  package static let stride: UInt = 0x1_0020_0000
  package static let count = 4
  /// Addresses of the first page of each.
  package var bases = InlineArray<4, UInt>(repeating: 0)
  var windows = InlineArray<4, LinearWindow>(repeating: LinearWindow())
  /// Writable address of code, less the executable one.
  package var codeDistance = 0
  /// The TLB context that the pages are of; 0: none.
  var context: UInt64 = 0
  /// The address space of the context, which gets the windows again after a flush.
  var space: (root: UInt64, pcid: UInt64, keys: UInt64) = (0, 0, 0)
  /// Of host pages, by the low bits of their numbers: the page that is mapped for writing, plus 1,
  /// with its window in the bits above.
  var writers: UnsafeMutablePointer<UInt32>?
  /// Faults of each site, by the low bits of its address.
  var misses: UnsafeMutablePointer<UInt16>?
  /// Host TSC at which they may be emptied and begun again.
  var rest: UInt64 = 0
  package var counts = WindowCounts()

  static let missCount = 4096
  static let missMask = missCount &- 1
  /// Faults of a site after which it no longer asks the window.
  static let missLimit: UInt16 = 32
  /// For tests: windows are not left alone for a while after they were begun.
  package var isEager = false
  static let restTicks: UInt64 = 50_000_000

  /// `NativeState.windowHigh` while there are no windows.
  package static let none = InlineArray<4, UInt32>(repeating: LinearWindow.none)
}

/// What a window did since it was made.
package struct WindowCounts: Sendable {
  package var faults: UInt64 = 0
  package var maps: UInt64 = 0
  package var pages: UInt64 = 0
  package var misses: UInt64 = 0
  package var givenUp: UInt64 = 0
  package var pageDrops: UInt64 = 0
  package var writeDrops: UInt64 = 0
  package var drops: UInt64 = 0

  mutating func add(_ other: WindowCounts) {
    faults &+= other.faults
    maps &+= other.maps
    pages &+= other.pages
    misses &+= other.misses
    givenUp &+= other.givenUp
    pageDrops &+= other.pageDrops
    writeDrops &+= other.writeDrops
    drops &+= other.drops
  }

  /// For people to read; nothing where no window was used.
  package var lines: [(name: String, value: UInt64)] {
    if faults == 0 { return [] }
    return [
      (name: "faults in windows", value: faults),
      (name: "  mappings made", value: maps),
      (name: "  pages mapped", value: pages),
      (name: "  left to the TLB", value: misses),
      (name: "  accesses given up", value: givenUp),
      (name: "  pages dropped", value: pageDrops),
      (name: "  pages dropped for code", value: writeDrops),
      (name: "  windows emptied", value: drops),
    ]
  }
}

extension CPU {
  @inline(__always) private var set: UnsafeMutablePointer<WindowSet> {
    (raw + CPU.windowsOffset).assumingMemoryBound(to: WindowSet.self)
  }

  private static let windowsOffset =
    MemoryLayout<CPUState>.offset(of: \.native)!
    + MemoryLayout<NativeState>.offset(of: \.windows)!

  /// After a change of address space or privilege.
  @inline(__always) func updateWindows() {
    if s.pointee.native.windows.base == 0 { return }
    selectWindows()
  }

  @inline(never) private func selectWindows() {
    let isOwn = set.pointee.context == s.pointee.addressSpace
    let isUsed = isOwn && s.pointee.cpl == 3 && s.pointee.tlbContext == set.pointee.context
    for n in 0..<WindowSet.count {
      let upper = set.pointee.windows[n].upper
      s.pointee.native.userWindow[n] = isOwn ? upper : LinearWindow.none
      s.pointee.native.windowHigh[n] = isUsed ? upper : LinearWindow.none
    }
  }

  private var currentSpace: (root: UInt64, pcid: UInt64, keys: UInt64) {
    let pcid = s.pointee.cr4 & CR4.pcide.rawValue != 0 ? s.pointee.cr3 & 0xFFF : 0
    return (s.pointee.cr3 & Page.mask, pcid, s.pointee.pkru)
  }

  /// The address space has a new context: if the windows are its own it keeps them, empty.
  func renewWindows() {
    if s.pointee.native.windows.base == 0 { return }
    let known = set.pointee.space
    let space = currentSpace
    guard set.pointee.context != s.pointee.addressSpace, set.pointee.context != 0,
      known.root == space.root, known.pcid == space.pcid, known.keys == space.keys,
      chost_rdtsc() >= set.pointee.rest
    else { return }
    begin()
  }

  /// Gives the windows to the current address space, unless another one has just got them.
  ///
  /// - Returns: whether they are its own.
  package func claimWindows() -> Bool {
    guard s.pointee.native.windows.base != 0, s.pointee.cpl == 3, isLongMode,
      s.pointee.tlbContext == s.pointee.addressSpace
    else { return false }
    if set.pointee.context == s.pointee.addressSpace { return true }
    if chost_rdtsc() < set.pointee.rest { return false }
    for n in 0..<WindowSet.count { set.pointee.windows[n].upper = LinearWindow.none }
    begin()
    return true
  }

  /// The window of the current address space that an address is in: a new one if there is none.
  package func findWindow(_ linear: UInt64) -> Int? {
    if linear >> 47 != 0 { return nil }
    let upper = UInt32(truncatingIfNeeded: linear >> 32)
    for n in 0..<WindowSet.count {
      if set.pointee.windows[n].upper == upper { return n }
      if set.pointee.windows[n].upper != LinearWindow.none { continue }
      set.pointee.windows[n].upper = upper
      selectWindows()
      return n
    }
    return nil
  }

  private func begin() {
    emptyWindows()
    set.pointee.context = s.pointee.addressSpace
    set.pointee.space = currentSpace
    set.pointee.rest = set.pointee.isEager ? 0 : chost_rdtsc() &+ WindowSet.restTicks
    selectWindows()
  }

  // MARK: Dropping

  /// Unmaps all pages; the windows are nobody's.
  func emptyWindows() {
    if s.pointee.native.windows.base == 0 { return }
    set.pointee.context = 0
    selectWindows()
    for n in 0..<WindowSet.count {
      let mapped = set.pointee.windows[n].mapped
      if mapped.isEmpty { continue }
      unmap(n, mapped)
      set.pointee.windows[n].mapped = Int.max..<Int.max
      set.pointee.counts.drops &+= 1
    }
  }

  private func unmap(_ n: Int, _ part: Range<Int>) {
    let start = UnsafeMutableRawPointer(
      bitPattern: set.pointee.bases[n] &+ UInt(part.lowerBound) << UInt(Page.shift))
    let size = part.count << Int(Page.shift)
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    // If that fails guest code must not go on.
    if mmap(start, size, PROT_NONE, flags, -1, 0) == MAP_FAILED { abort() }
    if let pages = set.pointee.windows[n].pages {
      (pages + part.lowerBound).update(repeating: 0, count: part.count)
    }
  }

  /// INVLPG, whatever the address space.
  func dropWindowPage(_ linear: UInt64) {
    if s.pointee.native.windows.base == 0 { return }
    let upper = UInt32(truncatingIfNeeded: linear >> 32)
    let page = Int(truncatingIfNeeded: (linear & 0xFFFF_FFFF) >> Page.shift)
    for n in 0..<WindowSet.count where set.pointee.windows[n].upper == upper {
      guard let pages = set.pointee.windows[n].pages, pages[page] != 0 else { continue }
      unmap(n, page..<page &+ 1)
      set.pointee.counts.pageDrops &+= 1
    }
  }

  /// A host page is no longer to be written.
  func dropWindowWrites(_ host: UInt64) {
    if s.pointee.native.windows.base == 0 { return }
    guard let writers = set.pointee.writers else { return }
    let known = writers[Int(truncatingIfNeeded: host >> Page.shift) & LinearWindow.pageMask]
    if known != 0 { dropWrites(Int(known) &- 1) }
  }

  private func dropWrites(_ known: Int) {
    let (n, page) = (known / LinearWindow.pageCount, known % LinearWindow.pageCount)
    guard let pages = set.pointee.windows[n].pages, pages[page] == LinearWindow.writable else {
      return
    }
    unmap(n, page..<page &+ 1)
    set.pointee.counts.writeDrops &+= 1
  }

  // MARK: Mapping

  /// The host page of a linear page of a window, as the TLB knows it.
  private func known(_ n: Int, _ page: Int) -> (host: UInt64, isWritable: Bool)? {
    let linear = UInt64(set.pointee.windows[n].upper) << 32 | UInt64(page) << Page.shift
    let key = linear | s.pointee.tlbContext
    let entry =
      (s.pointee.tlbBanks + TLB.user * TLB.entriesPerBank
      + Int((linear >> Page.shift) & TLB.indexMask)).pointee
    if entry.readTag == key { return (linear &+ entry.addend, entry.writeTag == key) }
    let second =
      (s.pointee.secondTLB + TLB.user * SecondTLB.entriesPerBank + SecondTLB.index(linear)).pointee
    if second.key == key { return known(second, linear) }
    let large =
      (s.pointee.secondTLB + LargeTLB.start + TLB.user * LargeTLB.entriesPerBank
      + LargeTLB.index(linear)).pointee
    if large.key == linear & LargeTLB.mask | s.pointee.tlbContext { return known(large, linear) }
    return nil
  }

  /// The pages of a large page around a page, if all of it is known and may be accessed alike.
  private func largePart(_ n: Int, _ page: Int, isWritable: Bool) -> Range<Int>? {
    let linear = UInt64(set.pointee.windows[n].upper) << 32 | UInt64(page) << Page.shift
    let large =
      (s.pointee.secondTLB + LargeTLB.start + TLB.user * LargeTLB.entriesPerBank
      + LargeTLB.index(linear)).pointee
    let start = linear & LargeTLB.mask
    guard large.key == start | s.pointee.tlbContext,
      large.generation == s.pointee.tlbGeneration,
      large.info & SecondTLBEntry.readable != 0,
      (large.info & SecondTLBEntry.writable != 0) == isWritable
    else { return nil }
    let first = Int(truncatingIfNeeded: (start & 0xFFFF_FFFF) >> Page.shift)
    let part = first..<first &+ LinearWindow.largePages
    if isWritable {
      let host = start &+ large.addend
      for page in 0..<UInt64(part.count)
      where CodePages.contains(host &+ page << Page.shift, s.pointee.codePages) { return nil }
    }
    return part
  }

  private func known(
    _ entry: SecondTLBEntry, _ linear: UInt64
  ) -> (host: UInt64, isWritable: Bool)? {
    guard entry.generation == s.pointee.tlbGeneration,
      entry.info & SecondTLBEntry.readable != 0
    else { return nil }
    let host = linear &+ entry.addend
    let isCode = CodePages.contains(host, s.pointee.codePages)
    return (host, entry.info & SecondTLBEntry.writable != 0 && !isCode)
  }

  /// In the signal's handler: maps the page of an access and those around it.
  ///
  /// - Returns: false where the TLB does not allow the access.
  private func mapWindow(_ n: Int, _ page: Int, isWrite: Bool) -> Bool {
    let inner = LinearWindow.edge..<LinearWindow.pageCount - LinearWindow.edge
    let upper = set.pointee.windows[n].upper
    guard upper != LinearWindow.none, s.pointee.native.windowHigh[n] == upper,
      inner.contains(page), let pages = set.pointee.windows[n].pages, let found = known(n, page),
      found.isWritable || !isWrite
    else { return false }
    let state = found.isWritable ? LinearWindow.writable : LinearWindow.readable
    // It is there already and yet has faulted.
    if pages[page] == state { return false }
    func belongs(_ other: Int) -> Bool {
      guard inner.contains(other), pages[other] == 0, let next = known(n, other) else {
        return false
      }
      let distance = UInt64(bitPattern: Int64(other &- page)) << Page.shift
      return next.host == found.host &+ distance && next.isWritable == found.isWritable
    }
    var part = page..<page &+ 1
    if let large = largePart(n, page, isWritable: found.isWritable),
      inner.contains(large.lowerBound), inner.contains(large.upperBound)
    {
      part = large
    }
    while part.count < LinearWindow.around, belongs(part.upperBound) {
      part = part.lowerBound..<part.upperBound &+ 1
    }
    while part.count < LinearWindow.around, belongs(part.lowerBound &- 1) {
      part = part.lowerBound &- 1..<part.upperBound
    }
    let host = found.host &- UInt64(truncatingIfNeeded: page &- part.lowerBound) << Page.shift
    return map(n, part, UInt(truncatingIfNeeded: host), state)
  }

  private func map(_ n: Int, _ part: Range<Int>, _ host: UInt, _ state: UInt8) -> Bool {
    let size = part.count << Int(Page.shift)
    guard SharedRanges.contain(host, size),
      let source = UnsafeMutableRawPointer(bitPattern: host),
      let place = UnsafeMutableRawPointer(
        bitPattern: set.pointee.bases[n] &+ UInt(part.lowerBound) << UInt(Page.shift))
    else { return false }
    if chost_map_again_at(source, size, place) == MAP_FAILED { return false }
    if state == LinearWindow.readable, mprotect(place, size, PROT_READ) != 0 { abort() }
    // MADV_POPULATE_WRITE, MADV_POPULATE_READ: without them each page faults once more.
    madvise(place, size, state == LinearWindow.writable ? 23 : 22)
    let mapped = set.pointee.windows[n].mapped
    set.pointee.windows[n].mapped =
      mapped.isEmpty
      ? part : min(mapped.lowerBound, part.lowerBound)..<max(mapped.upperBound, part.upperBound)
    note(n, part, host >> UInt(Page.shift), state)
    set.pointee.counts.maps &+= 1
    set.pointee.counts.pages &+= UInt64(truncatingIfNeeded: part.count)
    return true
  }

  private func note(_ n: Int, _ part: Range<Int>, _ hostPage: UInt, _ state: UInt8) {
    guard let pages = set.pointee.windows[n].pages, let writers = set.pointee.writers else {
      return
    }
    for page in part {
      pages[page] = state
      if state != LinearWindow.writable { continue }
      let own = n &* LinearWindow.pageCount &+ page
      let number = Int(truncatingIfNeeded: hostPage) &+ page &- part.lowerBound
      let slot = number & LinearWindow.pageMask
      let other = Int(writers[slot]) &- 1
      if other >= 0, other != own { dropWrites(other) }
      writers[slot] = UInt32(truncatingIfNeeded: own &+ 1)
    }
  }

  /// In the signal's handler: where code goes on whose access has faulted, if it is to go on
  /// elsewhere; nil if nobody knows.
  fileprivate func recoverWindow(_ offset: UInt, _ rip: UInt, isWrite: Bool) -> UInt? {
    let n = Int(truncatingIfNeeded: offset / WindowSet.stride)
    let page = Int(truncatingIfNeeded: (offset % WindowSet.stride) >> UInt(Page.shift))
    guard n < WindowSet.count else { return nil }
    set.pointee.counts.faults &+= 1
    return withUnsafePointer(to: &s.pointee.native.faultSites) { sites in
      guard sites.pointee.contains(rip) else { return nil }
      if mapWindow(n, page, isWrite: isWrite) { return rip }
      let (target, site) = sites.pointee.find(rip)
      if target == 0 { return nil }
      set.pointee.counts.misses &+= 1
      noteMiss(site)
      return target
    }
  }

  /// A site that misses often no longer compares: its jump, before the access, is taken always.
  private func noteMiss(_ site: UInt) {
    guard let misses = set.pointee.misses else { return }
    let slot = Int(truncatingIfNeeded: site) & WindowSet.missMask
    misses[slot] &+= 1
    if misses[slot] < WindowSet.missLimit { return }
    misses[slot] = 0
    guard
      let code = UnsafeMutableRawPointer(
        bitPattern: Int(truncatingIfNeeded: site) &+ set.pointee.codeDistance)
    else { return }
    let jump = code.advanced(by: -6)
    // jne
    if jump.loadUnaligned(as: UInt16.self) != 0x850F { return }
    // nop; jmp
    jump.storeBytes(of: 0xE990, as: UInt16.self)
    set.pointee.counts.givenUp &+= 1
  }
}

/// The handler of faults in windows.
enum WindowFaults {
  /// Base and state of each window, 0 where there is none.
  nonisolated(unsafe) private static let windows: UnsafeMutablePointer<(base: UInt, raw: UInt)> = {
    let windows = UnsafeMutablePointer<(base: UInt, raw: UInt)>.allocate(capacity: 64)
    windows.initialize(repeating: (0, 0), count: 64)
    return windows
  }()
  nonisolated(unsafe) private static var old = sigaction()
  private static let size = UInt(WindowSet.count) &* WindowSet.stride

  static func add(_ number: Int, _ base: UInt, _ cpu: CPU) {
    handler
    windows[number & 63] = (base, UInt(bitPattern: cpu.raw))
  }

  static func remove(_ number: Int) { windows[number & 63] = (0, 0) }

  private static let handler: Void = {
    _ = windows
    _ = GuardedCopy.Registers.offset(0)
    var action = sigaction()
    action.__sigaction_handler.sa_sigaction = { number, information, context in
      if WindowFaults.recover(information, context) { return }
      // The instruction faults again, for whoever handled it before.
      sigaction(number, &WindowFaults.old, nil)
      if (information?.pointee.si_code ?? 0) <= 0 { raise(number) }
    }
    sigemptyset(&action.sa_mask)
    action.sa_flags = Int32(SA_SIGINFO) | Int32(SA_ONSTACK) | Int32(SA_NODEFER)
    sigaction(SIGSEGV, &action, &old)
  }()

  private static func recover(
    _ information: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer?
  ) -> Bool {
    guard let information, let context, information.pointee.si_code > 0 else { return false }
    let address = UInt(bitPattern: information.pointee._sifields._sigfault.si_addr)
    for n in 0..<64 where windows[n].base != 0 && address &- windows[n].base < size {
      guard let raw = UnsafeMutableRawPointer(bitPattern: windows[n].raw) else { return false }
      let rip = context + GuardedCopy.Registers.offset(GuardedCopy.Registers.rip)
      let code = context.load(
        fromByteOffset: GuardedCopy.Registers.offset(errorRegister), as: UInt.self)
      let next = CPU(raw).recoverWindow(
        address &- windows[n].base, rip.load(as: UInt.self), isWrite: code & 2 != 0)
      guard let next else { return false }
      rip.storeBytes(of: next, as: UInt.self)
      return true
    }
    return false
  }

  /// Where a signal's context has the page fault's error code.
  private static let errorRegister = 19
}

extension PhysicalCPU {
  /// Reserves windows, once.
  ///
  /// - Returns: the base for GS; nil where there can be none.
  package func makeWindows(isEager: Bool) -> UInt? {
    guard chost_has_fsgsbase() else { return nil }
    let guardSize: UInt = 1 << 21
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    let size = UInt(WindowSet.count) &* WindowSet.stride &+ 2 &* guardSize
    let count = LinearWindow.pageCount
    let tableSize = (4 &+ WindowSet.count) &* count
    let whole = mmap(nil, Int(size), PROT_NONE, flags, -1, 0)
    let tables = mmap(nil, tableSize, PROT_READ | PROT_WRITE, flags, -1, 0)
    guard whole != MAP_FAILED, tables != MAP_FAILED, let whole, let tables else { return nil }
    let base = (UInt(bitPattern: whole) + 2 * guardSize - 1) & ~(guardSize - 1)
    let s = cpu.s
    s.pointee.native.windows.writers = tables.bindMemory(to: UInt32.self, capacity: count)
    for n in 0..<WindowSet.count {
      s.pointee.native.windows.bases[n] = base &+ UInt(n) &* WindowSet.stride
      s.pointee.native.windows.windows[n].pages =
        (tables + (4 + n) * count).bindMemory(to: UInt8.self, capacity: count)
    }
    let misses = UnsafeMutablePointer<UInt16>.allocate(capacity: WindowSet.missCount)
    misses.initialize(repeating: 0, count: WindowSet.missCount)
    s.pointee.native.windows.misses = misses
    s.pointee.native.windows.isEager = isEager
    s.pointee.native.windows.base = base
    WindowFaults.add(number, base, cpu)
    return base
  }
}
