// SPDX-License-Identifier: Apache-2.0
//
// The slow path of loads and stores, on a TLB miss: it resolves each page to host memory or to
// MMIO, fills the TLB if later accesses may take the fast path, and handles code pages and data
// breakpoints.

import X86

/// The location of the bytes in one page.
enum ResolvedAccess {
  case host(UInt64)
  /// Guest-physical address without memory, during emulation.
  case mmio(UInt64)
}

extension CPU {
  /// The bank of `CPUState.tlb`.
  @inline(__always) var currentBank: Int {
    (s.pointee.tlb - s.pointee.tlbBanks) / TLB.entriesPerBank
  }

  @inline(__always) package func isCanonical(_ linear: UInt64) -> Bool {
    let bits: UInt64 = s.pointee.cr4 & CR4.la57.rawValue != 0 ? 57 : 48
    let shift = Int64(64 - bits)
    return Int64(bitPattern: linear << UInt64(shift)) >> shift == Int64(bitPattern: linear)
  }

  /// Translates one page's part of an access and fills the TLB.
  func resolve(_ linear: UInt64, _ size: Int, _ kind: AccessKind) throws(GuestException)
    -> ResolvedAccess
  {
    let linear = isLongMode ? linear : linear & 0xFFFF_FFFF
    if isLongMode && !isCanonical(linear) { throw .nonCanonical }
    if s.pointee.slow & SlowReason.breakpoints != 0 {
      noteDataAccess(linear, size: size, isWrite: kind == .write)
    }
    let entry = tlbEntry(linear)
    if kind == .write, entry.pointee.readTag == tag(linear, 1),
      entry.pointee.info & TLBEntry.tracked != 0
    {
      let host = linear &+ entry.pointee.addend
      noteCodeWrite(host)
      return .host(host)
    }
    let bank = currentBank
    if let host = refill(linear, kind, bank) { return .host(host) }
    let translation = try translate(linear, kind, bank: bank)
    let physical = translation.physical | linear & Page.offsetMask
    guard let page = physicalPage(physical, kind) else {
      if s.pointee.emulation != nil { return .mmio(physical) }
      throw eptViolation(physical, kind, .linear(linear, translation))
    }
    if page.host == s.pointee.virtualAPIC.accessPage {
      return .host(try accessVirtualAPIC(linear, size, kind))
    }
    fill(linear, translation, page, kind)
    let host = page.host | linear & Page.offsetMask
    if kind == .write { noteCodeWrite(host) }
    return .host(host)
  }

  private func fill(
    _ linear: UInt64, _ t: PageTranslation, _ page: PhysicalPage, _ kind: AccessKind
  ) {
    if s.pointee.slow & SlowReason.breakpoints != 0 || checksAlignment { return }
    // Protection keys, which are part of the context, determine the rights of user pages.
    let isGlobal = t.global && !t.user
    if !isGlobal && currentBank == TLB.supervisor { noteLocalSupervisorPage() }
    let key = linear & Page.mask | s.pointee.tlbContext
    let isCode = CodePages.contains(page.host, s.pointee.codePages)
    let writable = kind == .write || t.writable && t.dirty && page.rights & EPTEntry.write != 0
    let mayWrite = writable && page.rights & EPTEntry.write != 0 && mayWriteNow(t, linear)
    var info: UInt64 = 0
    if isCode && mayWrite { info |= TLBEntry.tracked }
    if t.shift > Page.shift {
      info |= TLBEntry.largePage
      owner.noteLargePage(linear, shift: t.shift)
    }
    if t.global { info |= TLBEntry.global }
    s.pointee.tlbFills &+= 1
    let readable = page.rights & EPTEntry.read != 0
    let addend = page.host &- (linear & Page.mask)
    enter(
      linear,
      TLBEntry(
        readTag: readable ? key : .max, writeTag: mayWrite && !isCode ? key : .max,
        addend: addend, info: info))
    let context = isGlobal ? TLB.anyContext : s.pointee.addressSpace
    info &= ~TLBEntry.tracked
    if readable { info |= SecondTLBEntry.readable }
    if mayWrite { info |= SecondTLBEntry.writable }
    var second = SecondTLBEntry(
      key: linear & Page.mask | context, addend: addend, info: info,
      generation: s.pointee.tlbGeneration)
    secondEntry(linear, currentBank).pointee = second
    if t.shift >= LargeTLB.shift && page.isLarge && isWithoutAPIC(page.host) {
      second.key = linear & LargeTLB.mask | context
      largeEntry(linear, currentBank).pointee = second
    }
  }

  private func enter(_ linear: UInt64, _ entry: TLBEntry) {
    let place = tlbEntry(linear)
    place.pointee = entry
    if entry.writeTag != .max {
      let page = ((linear & Page.mask) &+ entry.addend) >> Page.shift
      s.pointee.writablePages[place - s.pointee.tlbBanks] = UInt32(truncatingIfNeeded: page)
    }
  }

  private func secondEntry(_ linear: UInt64, _ bank: Int) -> UnsafeMutablePointer<SecondTLBEntry> {
    s.pointee.secondTLB + (bank &* SecondTLB.entriesPerBank &+ SecondTLB.index(linear))
  }

  private func largeEntry(_ linear: UInt64, _ bank: Int) -> UnsafeMutablePointer<SecondTLBEntry> {
    s.pointee.secondTLB
      + (LargeTLB.start &+ bank &* LargeTLB.entriesPerBank &+ LargeTLB.index(linear))
  }

  /// Looks up the second table and that of large pages; the host address on a hit, if the access
  /// needs no further checks.
  private func refill(_ linear: UInt64, _ kind: AccessKind, _ bank: Int) -> UInt64? {
    if s.pointee.slow & SlowReason.breakpoints != 0 || checksAlignment { return nil }
    let page = linear & Page.mask
    let small = secondEntry(linear, bank).pointee
    if isKnown(small, page) { return refill(linear, kind, small) }
    let large = largeEntry(linear, bank).pointee
    return isKnown(large, linear & LargeTLB.mask) ? refill(linear, kind, large) : nil
  }

  /// Whether an entry of the second table belongs to a page in this address space.
  private func isKnown(_ entry: SecondTLBEntry, _ page: UInt64) -> Bool {
    let isOwn =
      entry.key == page | s.pointee.addressSpace
      && s.pointee.tlbContext == s.pointee.addressSpace
    return (isOwn || entry.key == page | TLB.anyContext)
      && entry.generation == s.pointee.tlbGeneration
  }

  private func refill(_ linear: UInt64, _ kind: AccessKind, _ found: SecondTLBEntry) -> UInt64? {
    let page = linear & Page.mask
    let isCode = CodePages.contains(page &+ found.addend, s.pointee.codePages)
    let mayWrite = found.info & SecondTLBEntry.writable != 0
    let readable = found.info & SecondTLBEntry.readable != 0
    if kind == .write ? !mayWrite || isCode : !readable { return nil }
    let key = page | s.pointee.tlbContext
    let info = found.info & (TLBEntry.largePage | TLBEntry.global)
    enter(
      linear,
      TLBEntry(
        readTag: readable ? key : .max, writeTag: mayWrite && !isCode ? key : .max,
        addend: found.addend, info: isCode && mayWrite ? info | TLBEntry.tracked : info))
    return linear &+ found.addend
  }

  /// After a read filled this entry: whether a write is allowed as well. Protection keys may forbid
  /// it.
  private func mayWriteNow(_ t: PageTranslation, _ linear: UInt64) -> Bool {
    if t.user && isLongMode && s.pointee.cr4 & CR4.pke.rawValue != 0 {
      return (s.pointee.pkru &>> (t.protectionKey &* 2)) & 3 == 0
    }
    return true
  }

  @inline(never) func loadSlow(_ linear: UInt64, _ size: Int) throws(GuestException) -> UInt64 {
    try checkAlignment(linear, size)
    let first = min(size, Int(Page.size - linear & Page.offsetMask))
    if first < size { try checkEnd(linear, size) }
    var value = try loadPart(linear, first)
    if first < size {
      value |= try loadPart(nextPage(linear), size - first) << UInt64(first * 8)
    }
    return value
  }

  /// An access across pages whose end is not canonical is #GP, whatever its first page would raise.
  private func checkEnd(_ linear: UInt64, _ size: Int) throws(GuestException) {
    if isLongMode && !isCanonical(linear &+ UInt64(truncatingIfNeeded: size &- 1)) {
      throw .nonCanonical
    }
  }

  /// Address of the page after `linear`'s, wrapped to 4 GiB outside 64-bit mode.
  private func nextPage(_ linear: UInt64) -> UInt64 {
    let next = (linear & Page.mask) &+ Page.size
    return isLongMode ? next : next & 0xFFFF_FFFF
  }

  private func loadPart(_ linear: UInt64, _ size: Int) throws(GuestException) -> UInt64 {
    switch try resolve(linear, size, .read) {
    case .host(let host):
      return loadBytes(UnsafeRawPointer(bitPattern: UInt(host)).unsafelyUnwrapped, size)
    case .mmio(let address):
      guard let value = emulationContext?.readMMIO(address, size: size) else { throw .vmExit }
      return value
    }
  }

  var emulationContext: (any EmulationContext)? { owner.emulationContext }

  private func loadBytes(_ host: UnsafeRawPointer, _ size: Int) -> UInt64 {
    switch size {
    case 1: return UInt64(host.load(as: UInt8.self))
    case 2: return UInt64(host.loadUnaligned(as: UInt16.self))
    case 4: return UInt64(host.loadUnaligned(as: UInt32.self))
    case 8: return host.loadUnaligned(as: UInt64.self)
    default:
      var value: UInt64 = 0
      for n in 0..<size {
        value |= UInt64(host.load(fromByteOffset: n, as: UInt8.self)) << UInt64(n * 8)
      }
      return value
    }
  }

  @inline(never) func storeSlow(
    _ linear: UInt64, _ value: UInt64, _ size: Int
  ) throws(GuestException) {
    try checkAlignment(linear, size)
    let first = min(size, Int(Page.size - linear & Page.offsetMask))
    if first < size { try checkEnd(linear, size) }
    let low = try resolve(linear, first, .write)
    if first == size { return try storePart(low, value, size) }
    // Resolve both pages for writing before the first byte is written.
    let high = try resolve(nextPage(linear), size - first, .write)
    try storePart(low, value, first)
    try storePart(high, value >> UInt64(first * 8), size - first)
  }

  private func storePart(
    _ place: ResolvedAccess, _ value: UInt64, _ size: Int
  ) throws(GuestException) {
    switch place {
    case .host(let host):
      let host = UnsafeMutableRawPointer(bitPattern: UInt(host)).unsafelyUnwrapped
      switch size {
      case 1: host.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
      case 2: host.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
      case 4: host.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
      case 8: host.storeBytes(of: value, as: UInt64.self)
      default:
        for n in 0..<size {
          host.storeBytes(
            of: UInt8(truncatingIfNeeded: value >> UInt64(n * 8)), toByteOffset: n, as: UInt8.self)
        }
      }
    case .mmio(let address):
      let done = emulationContext?.writeMMIO(address, size: size, value: value) ?? false
      if !done { throw .vmExit }
    }
  }

  @inline(never) func pointerForModifySlow(
    _ linear: UInt64, size: Int
  ) throws(GuestException) -> UnsafeMutableRawPointer? {
    try checkAlignment(linear, size)
    let first = Int(Page.size - linear & Page.offsetMask)
    if first < size {
      try checkEnd(linear, size)
      // The caller's load comes first, but must fault like its store, in the order of the pages.
      _ = try resolve(linear, first, .write)
      _ = try resolve(nextPage(linear), size - first, .write)
      return nil
    }
    switch try resolve(linear, size, .write) {
    case .host(let host): return UnsafeMutableRawPointer(bitPattern: UInt(host))
    case .mmio: return nil
    }
  }

  @inline(never) func pointerForReadSlow(
    _ linear: UInt64, size: Int
  ) throws(GuestException) -> UnsafeRawPointer {
    try checkAlignment(linear, size)
    let room = Int(Page.size - linear & Page.offsetMask)
    if size <= room, case .host(let host) = try resolve(linear, size, .read) {
      return UnsafeRawPointer(bitPattern: UInt(host)).unsafelyUnwrapped
    }
    if size > room { try checkEnd(linear, size) }
    let bounce = owner.bounce
    var offset = 0
    while offset < size {
      let address = linear &+ UInt64(truncatingIfNeeded: offset)
      let part = min(size - offset, Int(Page.size - address & Page.offsetMask))
      if case .host(let host) = try resolve(address, part, .read) {
        (bounce + offset).copyMemory(
          from: UnsafeRawPointer(bitPattern: UInt(host)).unsafelyUnwrapped, byteCount: part)
        offset += part
        continue
      }
      let piece = min(8, part)
      let value = try loadPart(address, piece)
      for n in 0..<piece {
        bounce.storeBytes(
          of: UInt8(truncatingIfNeeded: value >> UInt64(n * 8)), toByteOffset: offset + n,
          as: UInt8.self)
      }
      offset += piece
    }
    return UnsafeRawPointer(bounce)
  }

  /// Stores `size` bytes (vector registers, state images): resolves every page for writing before
  /// the first byte is written.
  package func storeBytes(
    _ source: UnsafeRawPointer, at linear: UInt64, size: Int
  ) throws(GuestException) {
    if size == 0 { return }
    try checkEnd(linear, size)
    try checkAlignment(linear, size)
    let last = linear &+ UInt64(truncatingIfNeeded: size &- 1)
    var page = linear & Page.mask
    while true {
      let start = max(page, linear)
      _ = try resolve(start, Int(min(page &+ Page.offsetMask, last) &- start) + 1, .write)
      if page == last & Page.mask { break }
      page = page &+ Page.size
    }
    var offset = 0
    while offset < size {
      let address = linear &+ UInt64(truncatingIfNeeded: offset)
      let room = min(size - offset, Int(Page.size - address & Page.offsetMask))
      switch try resolve(address, room, .write) {
      case .host(let host):
        UnsafeMutableRawPointer(bitPattern: UInt(host)).unsafelyUnwrapped
          .copyMemory(from: source + offset, byteCount: room)
        offset += room
      case .mmio:
        let part = min(8, room)
        try storePart(try resolve(address, part, .write), loadBytes(source + offset, part), part)
        offset += part
      }
    }
  }
}

extension GuestException {
  /// A non-canonical address: #GP(0), or #SS(0) for the stack segment; the run loop decides by the
  /// instruction.
  package static let nonCanonical = GuestException(
    rawValue: GuestException.generalProtection.rawValue | nonCanonicalBit)
  package static let nonCanonicalBit: UInt64 = 1 << 10
}
