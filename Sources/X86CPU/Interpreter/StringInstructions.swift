// SPDX-License-Identifier: Apache-2.0
//
// MOVS, STOS, LODS, CMPS, SCAS with their REP prefixes. (INS and OUTS are in
// System/PortInstructions.)
//
// A repeated instruction commits its registers after each iteration, so it can stop anywhere: at a
// fault, and when the CPU is asked to exit guest code; it then restarts where it was. During
// emulation or single-stepping it makes one iteration. REP MOVS and REP STOS process a page at a
// time if both sides are plain memory.

import Glibc
import X86
import X86Decoder

/// One string instruction in progress.
struct StringState {
  let c: CPU
  let i: MicroOpPointer
  /// Mask of the address size.
  let mask: UInt64
  let size: Int
  /// The pointers' increment: the size, negative with DF set.
  let step: UInt64
  let source: SegmentRegister

  @inline(__always) init(_ c: CPU, _ i: MicroOpPointer, size: Int) {
    self.c = c
    self.i = i
    self.size = size
    mask = c.addressMask(i)
    let backward = c.s.pointee.rflags & RFLAGS.df.rawValue != 0
    let width = UInt64(truncatingIfNeeded: size)
    step = backward ? 0 &- width : width
    source = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
  }

  var count: UInt64 { c.gpr[1] & mask }

  /// Linear addresses of `size` bytes, at a distance from the pointers.
  @inline(__always) func sourceAddress(
    _ size: Int, ahead: Int = 0
  ) throws(GuestException) -> UInt64 {
    try c.linear(source, (c.gpr[6] &+ UInt64(truncatingIfNeeded: ahead)) & mask, size: size, .read)
  }

  @inline(__always) func destinationAddress(
    _ size: Int, _ access: AccessKind, ahead: Int = 0
  ) throws(GuestException) -> UInt64 {
    try c.linear(.es, (c.gpr[7] &+ UInt64(truncatingIfNeeded: ahead)) & mask, size: size, access)
  }

  @inline(__always) func advanceSource(_ delta: UInt64) {
    c.writeAddressSized(6, c.gpr[6] &+ delta, i)
  }
  @inline(__always) func advanceDestination(_ delta: UInt64) {
    c.writeAddressSized(7, c.gpr[7] &+ delta, i)
  }
  @inline(__always) func reduceCount(by n: UInt64) { c.writeAddressSized(1, c.gpr[1] &- n, i) }

  /// Whether to stop after an iteration although more remain.
  var mustYield: Bool { c.s.requests != 0 || isStepped }

  /// Whether each iteration must be visible.
  var isStepped: Bool {
    c.s.pointee.emulation != nil
      || c.s.pointee.slow & ~(SlowReason.breakpoints | SlowReason.counting) != 0
  }

  /// Elements from the current pointers to the nearer page end, at most the count; 0 if the fast
  /// path is unavailable.
  func run(usesSource: Bool) -> Int {
    if step != UInt64(truncatingIfNeeded: size) || c.s.pointee.emulation != nil
      || c.s.pointee.slow & ~SlowReason.counting != 0 || c.checksAlignment
    {
      return 0
    }
    var bytes = Page.size &- (c.gpr[7] & mask &+ base(.es)) & Page.offsetMask
    if usesSource {
      bytes = min(bytes, Page.size &- (c.gpr[6] & mask &+ base(source)) & Page.offsetMask)
    }
    return Int(min(bytes / UInt64(size), count))
  }

  private func base(_ register: SegmentRegister) -> UInt64 {
    if c.is64Bit && register != .fs && register != .gs { return 0 }
    return c.segment(register).pointee.base
  }
}

/// One iteration; false ends a REPE or REPNE.
private protocol StringOperation {
  static func iterate<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> Bool
  /// As many iterations as possible at once; 0 if none.
  static func bulk<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> UInt64
}

extension StringOperation {
  static func bulk<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> UInt64 { 0 }
}

@inline(__always) private func execute<O: StringOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ repeated: Repeat, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  let comparing = repeated == .whileEqual || repeated == .whileNotEqual
  let flags = c.lazyFlags
  do throws(GuestException) {
    let state = StringState(c, i, size: MemoryLayout<T>.size)
    if repeated == .once {
      _ = try O.iterate(state, T.self)
      return Step.next
    }
    while state.count != 0 {
      var done = repeated == .always ? try O.bulk(state, T.self) : 0
      var goesOn = true
      if done == 0 {
        goesOn = try O.iterate(state, T.self)
        done = 1
      }
      state.reduceCount(by: done)
      if repeated != .always && goesOn != (repeated == .whileEqual) { break }
      if state.count != 0 && state.mustYield {
        // So that a fault in a later iteration, too, restores the flags from before the first.
        if comparing && !state.isStepped { c.lazyFlags = flags }
        c.s.pointee.rip = c.currentRIP(i)
        c.noteUnfinished()
        return Step.branch
      }
    }
    return Step.next
  } catch {
    // A fault restores the flags from before, whatever earlier iterations made of them (SDM volume
    // 2, "REP/REPE/REPZ/REPNE/REPNZ").
    if comparing { c.lazyFlags = flags }
    return c.raise(error)
  }
}

extension CPU {
  fileprivate var lazyFlags: (result: UInt64, aux: UInt64) {
    @inline(__always) get { (s.pointee.flagResult, s.pointee.flagAux) }
    @inline(__always) nonmutating set { (s.pointee.flagResult, s.pointee.flagAux) = newValue }
  }
}

/// The prefix's meaning.
private enum Repeat { case once, always, whileEqual, whileNotEqual }

private enum MoveString: StringOperation {
  @inline(__always) static func iterate<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> Bool {
    let c = state.c
    let value: T = try c.load(try state.sourceAddress(state.size))
    try c.store(value, at: try state.destinationAddress(state.size, .write))
    state.advanceSource(state.step)
    state.advanceDestination(state.step)
    return true
  }

  static func bulk<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> UInt64 {
    let n = state.run(usesSource: true)
    if n < 2 { return 0 }
    let bytes = n * MemoryLayout<T>.size
    let c = state.c
    let (source, destination): (UInt64, UInt64)
    do throws(GuestException) {
      source = try state.sourceAddress(bytes)
      destination = try state.destinationAddress(bytes, .write)
    } catch { return 0 }
    let from = try c.pointerForRead(source, size: bytes)
    guard let to = try c.pointerForModify(destination, size: bytes) else { return 0 }
    // A destination just above the source repeats a pattern: copy element by element.
    let distance = UInt(bitPattern: to) &- UInt(bitPattern: from)
    if distance != 0 && distance < UInt(bytes) { return 0 }
    let all = bytes + more(state, T.self, from + bytes, to + bytes, bytes)
    memmove(to, from, all)
    state.advanceSource(UInt64(all))
    state.advanceDestination(UInt64(all))
    return UInt64(all / MemoryLayout<T>.size)
  }

  /// How many bytes after the first are contiguous in host memory, too: one large copy is faster
  /// than several of a page.
  private static func more<T: OperandInteger>(
    _ state: StringState, _ t: T.Type, _ from: UnsafeRawPointer, _ to: UnsafeMutableRawPointer,
    _ first: Int
  ) -> Int {
    let c = state.c
    guard c.is64Bit, state.mask == .max else { return 0 }
    let size = MemoryLayout<T>.size
    let room = Int(min(state.count, UInt64(mostAtOnce / size))) * size - first
    var ahead = 0
    do throws(GuestException) {
      while ahead < room {
        let source = try state.sourceAddress(size, ahead: first &+ ahead)
        let destination = try state.destinationAddress(size, .write, ahead: first &+ ahead)
        var bytes = Page.size &- max(source & Page.offsetMask, destination & Page.offsetMask)
        bytes = min(bytes, UInt64(room - ahead)) & ~UInt64(size - 1)
        if bytes == 0 { break }
        let next = try c.pointerForRead(source, size: Int(bytes))
        if next != from + ahead { break }
        guard try c.pointerForModify(destination, size: Int(bytes)) == to + ahead else { break }
        let distance = UInt(bitPattern: to) &- UInt(bitPattern: from)
        if distance < UInt(first &+ ahead) + UInt(bytes) { break }
        ahead &+= Int(bytes)
      }
    } catch {
      // The next element will meet the same fault in its turn.
    }
    return ahead
  }

  /// Bytes between two checks of `request`.
  private static let mostAtOnce = 1 << 16
}

private enum StoreString: StringOperation {
  @inline(__always) static func iterate<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> Bool {
    let c = state.c
    try c.store(c.read(c.raw, as: T.self), at: try state.destinationAddress(state.size, .write))
    state.advanceDestination(state.step)
    return true
  }

  static func bulk<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> UInt64 {
    let n = state.run(usesSource: false)
    if n < 2 { return 0 }
    let bytes = n * MemoryLayout<T>.size
    let c = state.c
    let destination: UInt64
    do throws(GuestException) {
      destination = try state.destinationAddress(bytes, .write)
    } catch { return 0 }
    guard let to = try c.pointerForModify(destination, size: bytes) else { return 0 }
    let value: T = c.read(c.raw)
    if value == 0 || MemoryLayout<T>.size == 1 {
      memset(to, Int32(truncatingIfNeeded: value), bytes)
    } else {
      for index in 0..<n {
        (to + index * MemoryLayout<T>.size).storeBytes(of: value, as: T.self)
      }
    }
    state.advanceDestination(UInt64(bytes))
    return UInt64(n)
  }
}

private enum LoadString: StringOperation {
  @inline(__always) static func iterate<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> Bool {
    let value: T = try state.c.load(try state.sourceAddress(state.size))
    state.c.write(value, to: state.c.raw)
    state.advanceSource(state.step)
    return true
  }
}

private enum CompareString: StringOperation {
  @inline(__always) static func iterate<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> Bool {
    let c = state.c
    let a: T = try c.load(try state.sourceAddress(state.size))
    let b: T = try c.load(try state.destinationAddress(state.size, .read))
    _ = Subtract.apply(c, a, b)
    state.advanceSource(state.step)
    state.advanceDestination(state.step)
    return a == b
  }
}

private enum ScanString: StringOperation {
  @inline(__always) static func iterate<T: OperandInteger>(
    _ state: StringState, _ t: T.Type
  ) throws(GuestException) -> Bool {
    let c = state.c
    let a: T = c.read(c.raw)
    let b: T = try c.load(try state.destinationAddress(state.size, .read))
    _ = Subtract.apply(c, a, b)
    state.advanceDestination(state.step)
    return a == b
  }
}

enum StringInstructions {
  static func register(_ t: inout LoweringTable) {
    // Rows: strings
    t[.movs] = repeatRule(
      once: .init(
        { execute(MoveString.self, UInt8.self, .once, $0, $1) },
        { execute(MoveString.self, UInt16.self, .once, $0, $1) },
        { execute(MoveString.self, UInt32.self, .once, $0, $1) },
        { execute(MoveString.self, UInt64.self, .once, $0, $1) }),
      equal: .init(
        { execute(MoveString.self, UInt8.self, .always, $0, $1) },
        { execute(MoveString.self, UInt16.self, .always, $0, $1) },
        { execute(MoveString.self, UInt32.self, .always, $0, $1) },
        { execute(MoveString.self, UInt64.self, .always, $0, $1) }),
      notEqual: .init(
        { execute(MoveString.self, UInt8.self, .always, $0, $1) },
        { execute(MoveString.self, UInt16.self, .always, $0, $1) },
        { execute(MoveString.self, UInt32.self, .always, $0, $1) },
        { execute(MoveString.self, UInt64.self, .always, $0, $1) }))
    t[.stos] = repeatRule(
      once: .init(
        { execute(StoreString.self, UInt8.self, .once, $0, $1) },
        { execute(StoreString.self, UInt16.self, .once, $0, $1) },
        { execute(StoreString.self, UInt32.self, .once, $0, $1) },
        { execute(StoreString.self, UInt64.self, .once, $0, $1) }),
      equal: .init(
        { execute(StoreString.self, UInt8.self, .always, $0, $1) },
        { execute(StoreString.self, UInt16.self, .always, $0, $1) },
        { execute(StoreString.self, UInt32.self, .always, $0, $1) },
        { execute(StoreString.self, UInt64.self, .always, $0, $1) }),
      notEqual: .init(
        { execute(StoreString.self, UInt8.self, .always, $0, $1) },
        { execute(StoreString.self, UInt16.self, .always, $0, $1) },
        { execute(StoreString.self, UInt32.self, .always, $0, $1) },
        { execute(StoreString.self, UInt64.self, .always, $0, $1) }))
    t[.lods] = repeatRule(
      once: .init(
        { execute(LoadString.self, UInt8.self, .once, $0, $1) },
        { execute(LoadString.self, UInt16.self, .once, $0, $1) },
        { execute(LoadString.self, UInt32.self, .once, $0, $1) },
        { execute(LoadString.self, UInt64.self, .once, $0, $1) }),
      equal: .init(
        { execute(LoadString.self, UInt8.self, .always, $0, $1) },
        { execute(LoadString.self, UInt16.self, .always, $0, $1) },
        { execute(LoadString.self, UInt32.self, .always, $0, $1) },
        { execute(LoadString.self, UInt64.self, .always, $0, $1) }),
      notEqual: .init(
        { execute(LoadString.self, UInt8.self, .always, $0, $1) },
        { execute(LoadString.self, UInt16.self, .always, $0, $1) },
        { execute(LoadString.self, UInt32.self, .always, $0, $1) },
        { execute(LoadString.self, UInt64.self, .always, $0, $1) }))
    // End of rows
    // Rows: comparing strings
    t[.cmps] = repeatRule(
      once: .init(
        { execute(CompareString.self, UInt8.self, .once, $0, $1) },
        { execute(CompareString.self, UInt16.self, .once, $0, $1) },
        { execute(CompareString.self, UInt32.self, .once, $0, $1) },
        { execute(CompareString.self, UInt64.self, .once, $0, $1) }),
      equal: .init(
        { execute(CompareString.self, UInt8.self, .whileEqual, $0, $1) },
        { execute(CompareString.self, UInt16.self, .whileEqual, $0, $1) },
        { execute(CompareString.self, UInt32.self, .whileEqual, $0, $1) },
        { execute(CompareString.self, UInt64.self, .whileEqual, $0, $1) }),
      notEqual: .init(
        { execute(CompareString.self, UInt8.self, .whileNotEqual, $0, $1) },
        { execute(CompareString.self, UInt16.self, .whileNotEqual, $0, $1) },
        { execute(CompareString.self, UInt32.self, .whileNotEqual, $0, $1) },
        { execute(CompareString.self, UInt64.self, .whileNotEqual, $0, $1) }))
    t[.scas] = repeatRule(
      once: .init(
        { execute(ScanString.self, UInt8.self, .once, $0, $1) },
        { execute(ScanString.self, UInt16.self, .once, $0, $1) },
        { execute(ScanString.self, UInt32.self, .once, $0, $1) },
        { execute(ScanString.self, UInt64.self, .once, $0, $1) }),
      equal: .init(
        { execute(ScanString.self, UInt8.self, .whileEqual, $0, $1) },
        { execute(ScanString.self, UInt16.self, .whileEqual, $0, $1) },
        { execute(ScanString.self, UInt32.self, .whileEqual, $0, $1) },
        { execute(ScanString.self, UInt64.self, .whileEqual, $0, $1) }),
      notEqual: .init(
        { execute(ScanString.self, UInt8.self, .whileNotEqual, $0, $1) },
        { execute(ScanString.self, UInt16.self, .whileNotEqual, $0, $1) },
        { execute(ScanString.self, UInt32.self, .whileNotEqual, $0, $1) },
        { execute(ScanString.self, UInt64.self, .whileNotEqual, $0, $1) }))
    // End of rows
  }

  /// By prefix: none, F3, F2.
  private static func repeatRule(
    once: WidthHandlers, equal: WidthHandlers, notEqual: WidthHandlers
  ) -> LoweringRule {
    .custom { i, _, _ in
      if i.prefixes.contains(.repne) { return notEqual[i.operandSize] }
      return (i.prefixes.contains(.rep) ? equal : once)[i.operandSize]
    }
  }
}
