// SPDX-License-Identifier: Apache-2.0
//
// Random contents of control structures into VM entry and VMRUN, and guests of random instructions
// of virtualization: each entry ends, nothing traps, and nothing outside of what was handed over is
// written to. `MARTLET_ENTRIES` is how many entries each test makes (else 25,000 for each of four),
// `MARTLET_ENTRY_SEED` the seed, which is printed.

import Foundation
import Support
import TestRandom
import Testing
import X86
import X86CPU

private func setting(_ name: String) -> UInt64? {
  ProcessInfo.processInfo.environment[name].flatMap(UInt64.init)
}

private func makeGenerator(_ title: String, _ salt: UInt64) -> SplitMix {
  let seed = setting("MARTLET_ENTRY_SEED") ?? UInt64.random(in: 0 ... .max)
  print("\(title): MARTLET_ENTRY_SEED=\(seed)")
  return SplitMix(seed: seed &+ salt)
}

private let entries = Int(setting("MARTLET_ENTRIES") ?? 25_000)

/// Kicks a processor at short intervals, so that guests that loop end.
private final class EntryKicker: @unchecked Sendable {
  private let processor: PhysicalCPU
  private let lock = NSLock()
  private var isStopped = false
  private let done = DispatchSemaphore(value: 0)

  init(_ processor: PhysicalCPU) {
    self.processor = processor
    Thread.detachNewThread { [self] in
      while !lock.withLock({ isStopped }) {
        usleep(200)
        processor.kick()
      }
      done.signal()
    }
  }

  func stop() {
    lock.withLock { isStopped = true }
    done.wait()
  }
}

/// Instructions of virtualization, and what goes with them.
private enum HostileInstructions {
  static let all: [[UInt8]] = [
    [0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xC2], [0x0F, 0x01, 0xC3], [0x0F, 0x01, 0xC4],
    [0x0F, 0x01, 0xD4], [0x0F, 0x01, 0xD8], [0x0F, 0x01, 0xD9], [0x0F, 0x01, 0xDA],
    [0x0F, 0x01, 0xDB], [0x0F, 0x01, 0xDC], [0x0F, 0x01, 0xDD], [0x0F, 0x01, 0xDE],
    [0x0F, 0x01, 0xDF], [0x0F, 0x78, 0xD8], [0x0F, 0x79, 0xD8], [0x0F, 0x78, 0x18],
    [0x0F, 0x79, 0x18], [0x0F, 0xC7, 0x30], [0x66, 0x0F, 0xC7, 0x30], [0xF3, 0x0F, 0xC7, 0x30],
    [0x0F, 0xC7, 0x38], [0x66, 0x0F, 0x38, 0x80, 0x10], [0x66, 0x0F, 0x38, 0x81, 0x10],
    [0x44, 0x0F, 0x22, 0xC0], [0x44, 0x0F, 0x20, 0xC0], [0x0F, 0x30], [0x0F, 0x32], [0xFB],
    [0xFA], [0x9D], [0x89, 0x02], [0x8B, 0x02], [0x09, 0x02], [0xF0, 0x01, 0x02], [0xCD, 0x20],
    [0x0F, 0x01, 0xD1], [0xF3, 0x90], [0xF4], [0xCF], [0x48, 0xCF], [0xA4], [0xF3, 0xA4],
    [0x0F, 0xC7, 0xF0], [0x0F, 0x22, 0xD8], [0x0F, 0x22, 0xE0], [0x0F, 0x31],
  ]

  static func code(_ generator: inout SplitMix, count: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count { bytes += all[generator.below(all.count)] }
    return bytes
  }
}

/// A VMCS whose addresses are of pages that are there.
private struct VMXFuzz {
  let m: VMXMachine
  let pages: [HostPage]
  var generator: SplitMix
  var p: PhysicalCPU { m.processor }

  static let addresses: Set<VMCSField> = [
    .ioBitmapA, .ioBitmapB, .msrBitmap, .exitMSRStoreAddress, .exitMSRLoadAddress,
    .entryMSRLoadAddress, .pmlAddress, .virtualAPICAddress, .apicAccessAddress,
    .postedInterruptDescriptor, .eptpListAddress, .vmreadBitmap, .vmwriteBitmap,
    .virtualizationExceptionInfo, .vmcsLinkPointer, .eptPointer,
  ]
  static let counts: Set<VMCSField> = [
    .exitMSRStoreCount, .exitMSRLoadCount, .entryMSRLoadCount,
  ]
  static let fields = VMCSLayout.fields.filter { $0.area != .readOnlyData }

  init(threshold: UInt32?, generator: SplitMix) throws {
    m = try VMXMachine(threshold: threshold)
    let m = m
    pages = (0..<16).map { _ in m.makePage() }
    self.generator = generator
  }

  /// Not the first, which is the list of EPT pointers: the processor writes to none of those.
  private mutating func page() -> UInt64 { pages[1 + generator.below(pages.count - 1)].address }

  private mutating func address() -> UInt64 {
    switch generator.below(8) {
    case 0: return generator.next() | 1 << 50  // beyond the width
    case 1: return .max
    case 2: return UInt64(UInt(bitPattern: m.test.memory)) + UInt64(generator.below(2048)) << 12
    default: return page()
    }
  }

  private mutating func value(_ field: VMCSField, _ old: UInt64) -> UInt64 {
    // The number of levels is the hypervisor's word, too.
    if field == .eptPointer { return old ^ 1 << [0, 1, 2, 6, 6, 6, 7, 11][generator.below(8)] }
    if Self.addresses.contains(field) { return address() }
    if Self.counts.contains(field) { return UInt64(generator.below(4)) }
    switch generator.below(4) {
    case 0: return generator.next()
    case 1: return 0
    default: return old ^ 1 << UInt64(generator.below(64))
    }
  }

  /// Controls are changed by features, so that entries get past their reserved bits.
  private mutating func flip(_ field: VMCSField, _ allowed: UInt32) {
    let bit = UInt64(1) << UInt64(generator.below(32))
    if UInt64(allowed) & bit != 0 { p.vmwrite(field, p.vmread(field) ^ bit) }
  }

  mutating func scramble() throws {
    if generator.oneIn(8) { try restore() }
    for page in pages.dropFirst() where generator.oneIn(16) {
      let place = generator.below(500) * 8 + 8
      page.base.storeBytes(of: generator.next(), toByteOffset: place, as: UInt64.self)
    }
    for _ in 0..<generator.below(4) {
      let field = Self.fields[generator.below(Self.fields.count)]
      p.vmwrite(field, value(field, p.vmread(field)))
    }
    for _ in 0..<generator.below(4) {
      flip(.pinBasedControls, VMXCapabilities.pin.allowed & ~VMXCapabilities.pin.required)
      flip(.primaryControls, VMXCapabilities.primary.allowed & ~VMXCapabilities.primary.required)
      flip(.secondaryControls, VMXCapabilities.secondary.allowed)
      flip(.exitControls, VMXCapabilities.exit.allowed & ~VMXCapabilities.exit.required)
    }
    // Without EPT the guest's addresses would be the program's.
    p.vmwrite(
      .secondaryControls, p.vmread(.secondaryControls) | UInt64(SecondaryControls.enableEPT))
    p.vmwrite(
      .primaryControls, p.vmread(.primaryControls) | UInt64(PrimaryControls.secondaryControls))
    fillAreas()
    signal()
  }

  /// Lists of MSRs and of EPT pointers have entries that are the hypervisor's word.
  private mutating func fillAreas() {
    let list = pages[0]
    for n in 0..<4 {
      list.base.storeBytes(of: p.vmread(.eptPointer), toByteOffset: n * 8, as: UInt64.self)
    }
    if generator.oneIn(2) { p.vmwrite(.eptpListAddress, list.address) }
    // On any other page may be something that looks like an EPT pointer.
    if p.vmread(.eptpListAddress) != list.address { p.vmwrite(.vmFunctionControls, 0) }
  }

  private mutating func signal() {
    switch generator.below(16) {
    case 0: p.interrupt(generator.byte())
    case 1: p.raiseNMI()
    case 2: p.raiseINIT()
    case 3: p.startUp(generator.byte())
    default: break
    }
    while generator.oneIn(2), p.acknowledgeInterrupt() != nil {}
  }

  mutating func restore() throws {
    let ept = m.test.nestedRoot | EPTPointer.writeBack | EPTPointer.fourLevels
    if !p.isInVMXOperation {
      try p.vmxon(m.region.address)
      try p.vmclear(m.vmcs.address)
      try p.vmptrld(m.vmcs.address)
    }
    m.test.setLongMode()
    for field in Self.fields { p.vmwrite(field, 0) }
    VMXMachine.writeControls(p, ept: ept)
    VMXMachine.writeHost(p)
    VMXMachine.writeLongModeGuest(p)
    for field in Self.addresses where field != .eptPointer && field != .vmcsLinkPointer {
      p.vmwrite(field, page())
    }
    m.test.load(HostileInstructions.code(&generator, count: 64), at: 0x1000)
    for n in 0..<16 {
      m.cpu.gpr[n] =
        [0, 1, 0x808, 0x80B, 0x83F, 0x20_0080, 0x681E, generator.next(), UInt64(n) << 12][
          generator.below(9)]
    }
    m.cpu.gpr[4] = 0x8000
  }

  /// - Returns: whether guest code ran.
  mutating func enter() throws -> Bool {
    do {
      let reason = try p.vmlaunch()
      return reason != .invalidGuestState && reason != .msrLoading
    } catch VMXError.failValid(.vmlaunchNonClear) {
      return try resume()
    } catch VMXError.abort {
      try restore()
      return true
    } catch VMXError.failValid {
      return false
    }
  }

  private mutating func resume() throws -> Bool {
    do {
      let reason = try p.vmresume()
      return reason != .invalidGuestState && reason != .msrLoading
    } catch VMXError.abort {
      try restore()
      return true
    } catch VMXError.failValid {
      return false
    }
  }
}

@Suite struct EntryFuzzTests {
  @Test(arguments: [nil, 1] as [UInt32?]) func randomVMCSs(_ threshold: UInt32?) throws {
    var fuzz = try VMXFuzz(
      threshold: threshold, generator: makeGenerator("random VMCSs", UInt64(threshold ?? 0)))
    let kicker = EntryKicker(fuzz.p)
    defer { kicker.stop() }
    try fuzz.restore()
    var ran = 0
    for _ in 0..<entries {
      try fuzz.scramble()
      if try fuzz.enter() { ran += 1 }
    }
    // The fuzz is worth something only if it gets into guests.
    #expect(ran > entries / 20)
  }

  @Test(arguments: [nil, 1] as [UInt32?]) func randomVMCBs(_ threshold: UInt32?) throws {
    let m = try SVMMachine(threshold: threshold)
    var generator = makeGenerator("random VMCBs", UInt64(threshold ?? 0) &+ 2)
    let kicker = EntryKicker(m.processor)
    defer { kicker.stop() }
    let good = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 16)
    defer { good.deallocate() }
    good.copyMemory(from: m.vmcb.base, byteCount: 4096)
    let maps = (m.vmcb[.ioPermissionMap], m.vmcb[.msrPermissionMap])
    var ran = 0
    for _ in 0..<entries {
      if generator.oneIn(8) {
        m.vmcb.base.copyMemory(from: good, byteCount: 4096)
        m.test.setLongMode()
        m.test.load(HostileInstructions.code(&generator, count: 64), at: 0x1000)
      }
      for _ in 0..<generator.below(6) {
        let place = generator.below(0x700)
        let old = m.vmcb.base.load(fromByteOffset: place, as: UInt8.self)
        let new = generator.oneIn(2) ? old ^ 1 << UInt8(generator.below(8)) : generator.byte()
        m.vmcb.base.storeBytes(of: new, toByteOffset: place, as: UInt8.self)
      }
      // Addresses are the hypervisor's word, and without nested paging the guest's would be the
      // program's.
      m.vmcb[.nestedControl] |= NestedControl.paging
      m.vmcb[.nestedCR3] = m.test.nestedRoot
      (m.vmcb[.ioPermissionMap], m.vmcb[.msrPermissionMap]) = maps
      // Without intercepts, their addresses are host-physical, of the guest's choice.
      m.intercept([.vmload, .vmsave, .vmrun])
      if generator.oneIn(2) { m.vmcb[.cleanBits] = 0 }
      if try m.processor.vmrun(m.address) != .invalid { ran += 1 }
    }
    #expect(ran > entries / 20)
  }
}
