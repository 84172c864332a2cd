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

/// What is known of a physical CPU's window. Plain memory, for the signal's handler.
package struct LinearWindow {
  /// The host's address of the first page; 0: the CPU has no window.
  package var base: UInt = 0
  /// Writable address of code, less the executable one.
  package var codeDistance = 0
  /// The upper half of its linear addresses.
  var upper: UInt32 = none
  /// The TLB context that its pages are of; 0: none.
  var context: UInt64 = 0
  /// The address space of the context, which gets the window again after a flush.
  var space: (root: UInt64, pcid: UInt64, keys: UInt64) = (0, 0, 0)
  /// By page of the window: not mapped, mapped for reading, or for writing as well.
  var pages: UnsafeMutablePointer<UInt8>?
  /// Of host pages, by the low bits of their numbers: the page of the window, plus 1, that is
  /// mapped for writing.
  var writers: UnsafeMutablePointer<UInt32>?
  /// Faults of each site, by the low bits of its address.
  var misses: UnsafeMutablePointer<UInt16>?
  /// Mapped pages are within these.
  var mapped = Int.max..<Int.max
  /// Host TSC at which it may be emptied and begun again.
  var rest: UInt64 = 0
  package var counts = WindowCounts()

  /// In the place of the upper half of an address: no canonical one has it.
  package static let none: UInt32 = 0x8000_0000
  static let pageCount = 1 << 20
  /// Pages at both ends that are never mapped, so that a displacement of less than their size may
  /// be added to a register whose upper half was compared.
  package static let edge = 16
  static let readable: UInt8 = 1
  static let writable: UInt8 = 2
  static let missCount = 4096
  /// Faults of a site after which it no longer asks the window.
  static let missLimit: UInt16 = 32
  /// Pages around the one accessed that are mapped with it.
  static let around = 16
  static let restTicks: UInt64 = 50_000_000
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
  @inline(__always) private var window: UnsafeMutablePointer<LinearWindow> {
    (raw + CPU.windowOffset).assumingMemoryBound(to: LinearWindow.self)
  }

  private static let windowOffset =
    MemoryLayout<CPUState>.offset(of: \.native)!
    + MemoryLayout<NativeState>.offset(of: \.window)!

  /// After a change of address space or privilege.
  @inline(__always) func updateWindow() {
    if s.pointee.native.window.base == 0 { return }
    selectWindow()
  }

  @inline(never) private func selectWindow() {
    let isOwn = window.pointee.context == s.pointee.addressSpace
    s.pointee.native.userWindow = isOwn ? window.pointee.upper : LinearWindow.none
    let isUsed = s.pointee.cpl == 3 && s.pointee.tlbContext == window.pointee.context
    s.pointee.native.windowHigh = isUsed ? window.pointee.upper : LinearWindow.none
  }

  private var currentSpace: (root: UInt64, pcid: UInt64, keys: UInt64) {
    (
      s.pointee.cr3 & Page.mask, s.pointee.cr4 & CR4.pcide.rawValue != 0 ? s.pointee.cr3 & 0xFFF : 0,
      s.pointee.pkru
    )
  }

  /// The address space has a new context: if it is the window's it keeps the window, empty.
  func renewWindow() {
    if s.pointee.native.window.base == 0 { return }
    let known = window.pointee.space
    let space = currentSpace
    guard window.pointee.context != s.pointee.addressSpace, window.pointee.context != 0,
      known.root == space.root, known.pcid == space.pcid, known.keys == space.keys,
      chost_rdtsc() >= window.pointee.rest
    else { return }
    begin(upper: window.pointee.upper)
  }

  /// Gives the window to the current address space, unless another one has just got it.
  ///
  /// - Parameter linear: an address that is to be in it.
  /// - Returns: the upper half of its addresses, if it is this space's.
  package func takeWindow(_ linear: UInt64) -> UInt32? {
    guard s.pointee.native.window.base != 0, s.pointee.cpl == 3, isLongMode,
      s.pointee.tlbContext == s.pointee.addressSpace
    else { return nil }
    if window.pointee.context == s.pointee.addressSpace { return window.pointee.upper }
    guard linear >> 47 == 0, chost_rdtsc() >= window.pointee.rest else { return nil }
    begin(upper: UInt32(truncatingIfNeeded: linear >> 32))
    return window.pointee.upper
  }

  private func begin(upper: UInt32) {
    emptyWindow()
    window.pointee.upper = upper
    window.pointee.context = s.pointee.addressSpace
    window.pointee.space = currentSpace
    window.pointee.rest = chost_rdtsc() &+ LinearWindow.restTicks
    selectWindow()
  }

  // MARK: Dropping

  /// Unmaps all pages; the window is nobody's.
  func emptyWindow() {
    if s.pointee.native.window.base == 0 { return }
    let mapped = window.pointee.mapped
    window.pointee.context = 0
    selectWindow()
    if mapped.isEmpty { return }
    unmap(mapped)
    window.pointee.mapped = Int.max..<Int.max
    window.pointee.counts.drops &+= 1
  }

  private func unmap(_ part: Range<Int>) {
    let start = UnsafeMutableRawPointer(
      bitPattern: window.pointee.base &+ UInt(part.lowerBound) << Page.shift)
    let size = part.count << Int(Page.shift)
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    // Without it guest code must not go on.
    if mmap(start, size, PROT_NONE, flags, -1, 0) == MAP_FAILED { abort() }
    if let pages = window.pointee.pages {
      (pages + part.lowerBound).update(repeating: 0, count: part.count)
    }
  }

  /// INVLPG, whatever the address space.
  func dropWindowPage(_ linear: UInt64) {
    if s.pointee.native.window.base == 0 { return }
    guard UInt32(truncatingIfNeeded: linear >> 32) == window.pointee.upper else { return }
    let page = Int((linear & 0xFFFF_FFFF) >> Page.shift)
    guard let pages = window.pointee.pages, pages[page] != 0 else { return }
    unmap(page..<page + 1)
    window.pointee.counts.pageDrops &+= 1
  }

  /// A host page is no longer to be written.
  func dropWindowWrites(_ host: UInt64) {
    if s.pointee.native.window.base == 0 { return }
    guard let writers = window.pointee.writers else { return }
    let known = writers[Int(host >> Page.shift) & (LinearWindow.pageCount - 1)]
    if known != 0 { dropWrites(page: Int(known) - 1) }
  }

  private func dropWrites(page: Int) {
    guard let pages = window.pointee.pages, pages[page] == LinearWindow.writable else { return }
    unmap(page..<page + 1)
    window.pointee.counts.writeDrops &+= 1
  }

  // MARK: Mapping

  /// The host page of a linear page of the window, as the TLB knows it.
  private func known(_ page: Int) -> (host: UInt64, isWritable: Bool)? {
    let linear = UInt64(window.pointee.upper) << 32 | UInt64(page) << Page.shift
    let key = linear | s.pointee.tlbContext
    let entry =
      (s.pointee.tlbBanks + TLB.user * TLB.entriesPerBank
      + Int((linear >> Page.shift) & TLB.indexMask)).pointee
    if entry.readTag == key { return (linear &+ entry.addend, entry.writeTag == key) }
    let second =
      (s.pointee.secondTLB + TLB.user * SecondTLB.entriesPerBank + SecondTLB.index(linear)).pointee
    guard second.key == key, second.generation == s.pointee.tlbGeneration,
      second.info & SecondTLBEntry.readable != 0
    else { return nil }
    let host = linear &+ second.addend
    let isCode = CodePages.contains(host, s.pointee.codePages)
    return (host, second.info & SecondTLBEntry.writable != 0 && !isCode)
  }

  /// In the signal's handler: maps the page of an access and those around it.
  ///
  /// - Returns: false where the TLB does not allow the access.
  fileprivate func mapWindow(_ address: UInt, isWrite: Bool) -> Bool {
    window.pointee.counts.faults &+= 1
    let page = Int((address &- window.pointee.base) >> UInt(Page.shift))
    let inner = LinearWindow.edge..<LinearWindow.pageCount - LinearWindow.edge
    guard s.pointee.native.windowHigh == window.pointee.upper, inner.contains(page),
      let pages = window.pointee.pages, let found = known(page), found.isWritable || !isWrite
    else { return false }
    let state = found.isWritable ? LinearWindow.writable : LinearWindow.readable
    // It is there already and yet has faulted.
    if pages[page] == state { return false }
    func belongs(_ other: Int) -> Bool {
      guard inner.contains(other), pages[other] == 0, let next = known(other) else { return false }
      let distance = UInt64(bitPattern: Int64(other - page)) << Page.shift
      return next.host == found.host &+ distance && next.isWritable == found.isWritable
    }
    var part = page..<page + 1
    while part.count < LinearWindow.around, belongs(part.upperBound) {
      part = part.lowerBound..<part.upperBound + 1
    }
    while part.count < LinearWindow.around, belongs(part.lowerBound - 1) {
      part = part.lowerBound - 1..<part.upperBound
    }
    let host = found.host &- UInt64(page - part.lowerBound) << Page.shift
    return map(part, UInt(host), state)
  }

  private func map(_ part: Range<Int>, _ host: UInt, _ state: UInt8) -> Bool {
    let size = part.count << Int(Page.shift)
    guard SharedRanges.contain(host, size), let pages = window.pointee.pages,
      let writers = window.pointee.writers,
      let source = UnsafeMutableRawPointer(bitPattern: host),
      let place = UnsafeMutableRawPointer(
        bitPattern: window.pointee.base &+ UInt(part.lowerBound) << UInt(Page.shift))
    else { return false }
    if chost_map_again_at(source, size, place) == MAP_FAILED { return false }
    if state == LinearWindow.readable, mprotect(place, size, PROT_READ) != 0 { abort() }
    let isWritable = state == LinearWindow.writable
    madvise(place, size, isWritable ? 23 : 22)
    let mapped = window.pointee.mapped
    window.pointee.mapped =
      mapped.isEmpty
      ? part : min(mapped.lowerBound, part.lowerBound)..<max(mapped.upperBound, part.upperBound)
    for page in part {
      pages[page] = state
      if !isWritable { continue }
      let number = Int(host >> UInt(Page.shift)) + page - part.lowerBound
      let slot = number & (LinearWindow.pageCount - 1)
      let other = Int(writers[slot]) - 1
      if other >= 0, other != page { dropWrites(page: other) }
      writers[slot] = UInt32(truncatingIfNeeded: page + 1)
    }
    window.pointee.counts.maps &+= 1
    window.pointee.counts.pages &+= UInt64(part.count)
    return true
  }

  /// In the signal's handler: where code goes on whose access has faulted, if it is to go on
  /// elsewhere; nil if nobody knows.
  fileprivate func recoverWindow(_ address: UInt, _ rip: UInt, isWrite: Bool) -> UInt? {
    withUnsafePointer(to: &s.pointee.native.faultSites) { sites in
      guard sites.pointee.contains(rip) else { return nil }
      if mapWindow(address, isWrite: isWrite) { return rip }
      let (target, site) = sites.pointee.find(rip)
      if target == 0 { return nil }
      window.pointee.counts.misses &+= 1
      noteMiss(site)
      return target
    }
  }

  /// A site that misses often no longer compares: its jump, before the access, is taken always.
  private func noteMiss(_ site: UInt) {
    guard let misses = window.pointee.misses else { return }
    let slot = Int(site) & (LinearWindow.missCount - 1)
    misses[slot] &+= 1
    if misses[slot] < LinearWindow.missLimit { return }
    misses[slot] = 0
    guard let code = UnsafeMutableRawPointer(bitPattern: Int(site) + window.pointee.codeDistance)
    else { return }
    let jump = code - 6
    // jne
    if jump.loadUnaligned(as: UInt16.self) != 0x850F { return }
    // nop; jmp
    jump.storeBytes(of: 0xE990, as: UInt16.self)
    window.pointee.counts.givenUp &+= 1
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
  static let size: UInt = 1 << 32

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
        address, rip.load(as: UInt.self), isWrite: code & 2 != 0)
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
  /// Reserves a window, once.
  ///
  /// - Returns: the base for GS; nil where there can be none.
  package func makeWindow() -> UInt? {
    guard chost_has_fsgsbase() else { return nil }
    let guardSize = 1 << 20
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    let whole = mmap(nil, Int(WindowFaults.size) + 4 * guardSize, PROT_NONE, flags, -1, 0)
    let count = LinearWindow.pageCount
    let tables = mmap(nil, 5 * count, PROT_READ | PROT_WRITE, flags, -1, 0)
    guard whole != MAP_FAILED, tables != MAP_FAILED, let whole, let tables else { return nil }
    let base = (UInt(bitPattern: whole) + UInt(3 * guardSize)) & ~UInt(2 * guardSize - 1)
    let s = cpu.s
    s.pointee.native.window.writers = tables.bindMemory(to: UInt32.self, capacity: count)
    s.pointee.native.window.pages = (tables + 4 * count).bindMemory(to: UInt8.self, capacity: count)
    let misses = UnsafeMutablePointer<UInt16>.allocate(capacity: LinearWindow.missCount)
    misses.initialize(repeating: 0, count: LinearWindow.missCount)
    s.pointee.native.window.misses = misses
    s.pointee.native.window.base = base
    WindowFaults.add(number, base, cpu)
    return base
  }
}
