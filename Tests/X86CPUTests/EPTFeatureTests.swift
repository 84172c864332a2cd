// SPDX-License-Identifier: Apache-2.0
//
// Guests under the features of EPT: page-modification logging, virtualization exceptions, EPTP
// switching, mode-based execute control, execute-only pages, five levels, and what an EPT violation
// tells; VMCS shadowing.

import Support
import Testing
import X86
import X86CPU

@Suite struct EPTFeatureTests {
  let m: VMXMachine
  var p: PhysicalCPU { m.processor }

  init() throws {
    m = try VMXMachine()
    p.vmwrite(.guestIDTRBase, 0x3000)
    p.vmwrite(.guestIDTRLimit, 0xFFF)
    m.test.store(UInt64(0x00AF_9B00_0000_FFFF), at: 0x2008)
    for vector in 0..<32 {
      m.test.store(UInt64(0x8E00_0008_0000 | 0x1100), at: 0x3000 + vector * 16)
    }
    m.test.load([0xF4], at: 0x1100)
    // The guest's tables have their flags, so that walks change nothing.
    for place in [0x10000, 0x11000] {
      m.test.store(m.test.read(place, as: UInt64.self) | 0x20, at: place)
    }
    for n in 0..<4 {
      m.test.store(m.test.read(0x12000 + n * 8, as: UInt64.self) | 0x60, at: 0x12000 + n * 8)
    }
  }

  private func set(_ field: VMCSField, _ bits: UInt32) {
    p.vmwrite(field, p.vmread(field) | UInt64(bits))
  }

  /// A table of 4 KiB pages for the 2 MiB at 2 MiB, in tables of its own.
  private struct Tables {
    let root: HostPage
    let middle: HostPage
    let directory: HostPage
    let small: HostPage

    var pointer: UInt64 { root.address | EPTPointer.writeBack | EPTPointer.fourLevels }

    func set(_ page: Int, _ entry: UInt64) {
      small.base.storeBytes(of: entry, toByteOffset: page * 8, as: UInt64.self)
    }

    func entry(_ page: Int) -> UInt64 {
      small.base.load(fromByteOffset: page * 8, as: UInt64.self)
    }
  }

  private func makeTables() -> Tables {
    let t = Tables(
      root: m.makePage(), middle: m.makePage(), directory: m.makePage(), small: m.makePage())
    let host = UInt64(UInt(bitPattern: m.test.memory))
    t.root.base.storeBytes(of: t.middle.address | 7, as: UInt64.self)
    t.middle.base.storeBytes(of: t.directory.address | 7, as: UInt64.self)
    for n in 0..<4 {
      let leaf = host + UInt64(n) << 21 | 7 | EPTEntry.memoryTypeWriteBack | EPTEntry.pageSize
      t.directory.base.storeBytes(of: leaf, toByteOffset: n * 8, as: UInt64.self)
    }
    t.directory.base.storeBytes(of: t.small.address | 7, toByteOffset: 8, as: UInt64.self)
    for n in 0..<512 {
      t.set(n, host + 0x20_0000 + UInt64(n) << 12 | 7 | EPTEntry.memoryTypeWriteBack)
    }
    p.vmwrite(.eptPointer, t.pointer)
    return t
  }

  private static func bytes(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> (UInt32($0) * 8)) }
  }

  /// mov [2 MiB + offset], eax; hlt at 0x1007
  private func loadStore(_ offset: Int) {
    let address = UInt32(0x20_0000 + offset)
    m.test.load([0x89, 0x04, 0x25] + Self.bytes(address) + [0xF4], at: 0x1000)
    p.vmwrite(.guestRIP, 0x1000)
  }

  // MARK: Page-modification logging

  @Test func modifiedPagesAreLogged() throws {
    let t = makeTables()
    let log = m.makePage()
    p.vmwrite(.eptPointer, t.pointer | EPTPointer.accessedDirty)
    p.vmwrite(.pmlAddress, log.address)
    p.vmwrite(.pmlIndex, 511)
    set(.secondaryControls, SecondaryControls.enablePML)
    loadStore(0x5008)
    #expect(try p.vmlaunch() == .hlt)
    #expect(t.entry(5) & EPTEntry.dirty != 0)
    // The guest's own tables and code pages lie in one large page; the data page comes last.
    let index = Int(p.vmread(.pmlIndex))
    #expect(index < 511)
    #expect(log.base.load(fromByteOffset: (index + 1) * 8, as: UInt64.self) == 0x20_5000)
    // A page is logged once.
    p.vmwrite(.guestRIP, 0x1000)
    #expect(try p.vmresume() == .hlt)
    #expect(p.vmread(.pmlIndex) == UInt64(index))
    // A full log exits before the write.
    p.vmwrite(.pmlIndex, 0xFFFF)
    loadStore(0x6008)
    m.cpu.gpr[0] = 0x77
    #expect(try p.vmresume() == .pmlFull)
    #expect(p.vmread(.guestRIP) == 0x1000)
    #expect(m.test.read(0x20_6008, as: UInt32.self) == 0)
    p.vmwrite(.pmlIndex, 0)
    #expect(try p.vmresume() == .hlt)
    #expect(p.vmread(.pmlIndex) == 0xFFFF)
    #expect(log.base.load(as: UInt64.self) == 0x20_6000)
  }

  // MARK: Violations

  @Test func aViolationTellsOfTheGuestsTables() throws {
    let t = makeTables()
    t.set(5, t.entry(5) & ~EPTEntry.write)
    loadStore(0x5008)
    #expect(try p.vmlaunch() == .eptViolation)
    // Write; read and execute allowed; linear, translated, user page, writable.
    #expect(p.vmread(.exitQualification) == 0x7AA)
    #expect(p.vmread(.guestPhysicalAddress) == 0x20_5008)
    #expect(p.vmread(.guestLinearAddress) == 0x20_5008)
  }

  @Test func anExecuteOnlyPageIsExecutedAndNotRead() throws {
    let t = makeTables()
    t.set(5, t.entry(5) & ~7 | EPTEntry.execute)
    m.test.load([0xF4], at: 0x20_5000)
    p.vmwrite(.guestRIP, 0x20_5000)
    #expect(try p.vmlaunch() == .hlt)
    m.test.load([0x8B, 0x04, 0x25] + Self.bytes(0x20_5000), at: 0x1000)
    p.vmwrite(.guestRIP, 0x1000)
    #expect(try p.vmresume() == .eptViolation)
    #expect(p.vmread(.exitQualification) & 0x3F == 0x21)
    // Writable and not readable is a misconfiguration.
    t.set(5, t.entry(5) & ~7 | EPTEntry.write)
    try p.invept(2)
    #expect(try p.vmresume() == .eptMisconfiguration)
  }

  @Test func fiveLevelsAreWalked() throws {
    let t = makeTables()
    let top = m.makePage()
    top.base.storeBytes(of: t.root.address | 7, as: UInt64.self)
    p.vmwrite(.eptPointer, top.address | EPTPointer.writeBack | EPTPointer.fiveLevels)
    loadStore(0x5008)
    m.cpu.gpr[0] = 0x1234
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.test.read(0x20_5008, as: UInt32.self) == 0x1234)
    top.base.storeBytes(of: 0, as: UInt64.self)
    try p.invept(1, eptPointer: p.vmread(.eptPointer))
    #expect(try p.vmresume() == .eptViolation)
  }

  /// The guest's pages are user pages: bit 10 lets them be executed, bit 2 does not.
  @Test func modeBasedExecuteControl() throws {
    let t = makeTables()
    for n in 0..<4 where n != 1 {
      let old = t.directory.base.load(fromByteOffset: n * 8, as: UInt64.self)
      t.directory.base.storeBytes(
        of: old | EPTEntry.userExecute, toByteOffset: n * 8, as: UInt64.self)
    }
    for table in [t.root, t.middle] {
      let old = table.base.load(as: UInt64.self)
      table.base.storeBytes(of: old | EPTEntry.userExecute, as: UInt64.self)
    }
    t.directory.base.storeBytes(
      of: t.small.address | 7 | EPTEntry.userExecute, toByteOffset: 8, as: UInt64.self)
    set(.secondaryControls, SecondaryControls.modeBasedExecute)
    m.test.load([0xF4], at: 0x20_5000)
    p.vmwrite(.guestRIP, 0x20_5000)
    #expect(try p.vmlaunch() == .eptViolation)
    // Fetch; read, write and supervisor execution allowed, user execution not.
    #expect(p.vmread(.exitQualification) & 0x7F == 0x3C)
    t.set(5, t.entry(5) & ~EPTEntry.execute | EPTEntry.userExecute)
    try p.invept(2)
    #expect(try p.vmresume() == .hlt)
  }

  // MARK: Virtualization exceptions

  @Test func aViolationIsAnException() throws {
    let t = makeTables()
    let area = m.makePage()
    area.base.storeBytes(of: 0, as: UInt64.self)
    p.vmwrite(.virtualizationExceptionInfo, area.address)
    p.vmwrite(.eptpIndex, 7)
    set(.secondaryControls, SecondaryControls.eptViolationVE)
    t.set(5, 0)
    loadStore(0x5008)
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestRIP) == 0x1100)
    #expect(m.test.read(0x8000 - 40, as: UInt64.self) == 0x1000)
    #expect(area.base.load(as: UInt64.self) == 0xFFFF_FFFF_0000_0030)
    #expect(area.base.load(fromByteOffset: 8, as: UInt64.self) == 0x782)
    #expect(area.base.load(fromByteOffset: 16, as: UInt64.self) == 0x20_5008)
    #expect(area.base.load(fromByteOffset: 24, as: UInt64.self) == 0x20_5008)
    #expect(area.base.load(fromByteOffset: 32, as: UInt16.self) == 7)
    // The area is not released: it exits.
    p.vmwrite(.guestRIP, 0x1000)
    #expect(try p.vmresume() == .eptViolation)
    // Suppressed.
    area.base.storeBytes(of: 0, as: UInt64.self)
    t.set(5, EPTEntry.suppressException)
    #expect(try p.vmresume() == .eptViolation)
    // The exception itself may exit.
    t.set(5, 0)
    p.vmwrite(.exceptionBitmap, 1 << 20)
    #expect(try p.vmresume() == .exceptionOrNMI)
    #expect(p.vmread(.exitInterruptionInfo) == 0x8000_0314)
  }

  // MARK: VM functions

  @Test func theGuestSwitchesItsTables() throws {
    let first = makeTables()
    let second = makeTables()
    let host = UInt64(UInt(bitPattern: m.test.memory))
    second.set(5, host + 0x20_6000 | 7 | EPTEntry.memoryTypeWriteBack)
    p.vmwrite(.eptPointer, first.pointer)
    let list = m.makePage()
    list.base.storeBytes(of: second.pointer, toByteOffset: 8, as: UInt64.self)
    list.base.storeBytes(of: second.pointer | 1 << 7, toByteOffset: 16, as: UInt64.self)
    p.vmwrite(.eptpListAddress, list.address)
    p.vmwrite(.vmFunctionControls, 1)
    set(.secondaryControls, SecondaryControls.enableVMFunctions)
    m.test.store(UInt32(1), at: 0x20_5000)
    m.test.store(UInt32(2), at: 0x20_6000)
    // mov ebx, [page 5]; vmfunc; mov edx, [page 5]; hlt
    let place = Self.bytes(0x20_5000)
    m.test.load(
      [0x8B, 0x1C, 0x25] + place + [0x0F, 0x01, 0xD4, 0x8B, 0x14, 0x25] + place + [0xF4],
      at: 0x1000)
    m.cpu.gpr[0] = 0
    m.cpu.gpr[1] = 1
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.cpu.gpr[3] == 1)
    #expect(m.cpu.gpr[2] == 2)
    #expect(p.vmread(.eptPointer) == second.pointer)
    #expect(p.vmread(.eptpIndex) == 1)
    // Functions, indexes and pointers that are not there exit.
    for (function, index) in [(1, 1), (64, 1), (0, 512), (0, 2)] as [(UInt64, UInt64)] {
      p.vmwrite(.guestRIP, 0x1007)
      m.cpu.gpr[0] = function
      m.cpu.gpr[1] = index
      #expect(try p.vmresume() == .vmfunc)
      #expect(p.vmread(.exitInstructionLength) == 3)
    }
  }

  // MARK: VMCS shadowing

  @Test func fieldsOfAShadowVMCS() throws {
    let shadow = m.makePage()
    shadow.base.storeBytes(
      of: VMXCapabilities.revision | VMCSLayout.shadowIndicator, as: UInt32.self)
    let bitmaps = [m.makePage(), m.makePage()]
    for bitmap in bitmaps { bitmap.base.storeBytes(of: 0, as: UInt32.self) }
    p.vmwrite(.vmreadBitmap, bitmaps[0].address)
    p.vmwrite(.vmwriteBitmap, bitmaps[1].address)
    set(.secondaryControls, SecondaryControls.vmcsShadowing)
    p.vmwrite(.vmcsLinkPointer, shadow.address)
    // vmwrite rbx, rax; vmread rdx, rbx; hlt
    m.test.load([0x0F, 0x79, 0xD8, 0x0F, 0x78, 0xDA, 0xF4], at: 0x1000)
    m.cpu.gpr[0] = 0x1234_5678_9ABC
    m.cpu.gpr[3] = UInt64(VMCSField.guestRIP.rawValue)
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.cpu.gpr[2] == 0x1234_5678_9ABC)
    #expect(p.vmread(.guestRFLAGS) == 2)
    #expect(p.vmread(.guestRIP) == 0x1006)
    // A field that does not exist fails with error 12, in the shadow VMCS.
    p.vmwrite(.guestRIP, 0x1003)
    m.cpu.gpr[3] = 0x6FFE
    #expect(try p.vmresume() == .hlt)
    #expect(p.vmread(.guestRFLAGS) == 0x42)
    // A bit that is 1 exits, and so does what is beyond the bitmap.
    bitmaps[0].base.storeBytes(of: 4, toByteOffset: 0x802 / 8, as: UInt8.self)
    for encoding in [0x802, 0x8000] as [UInt64] {
      p.vmwrite(.guestRIP, 0x1003)
      m.cpu.gpr[3] = encoding
      #expect(try p.vmresume() == .vmread)
    }
    // Without a link it fails without a number.
    p.vmwrite(.vmcsLinkPointer, .max)
    p.vmwrite(.guestRIP, 0x1003)
    m.cpu.gpr[3] = UInt64(VMCSField.guestRIP.rawValue)
    #expect(try p.vmresume() == .hlt)
    #expect(p.vmread(.guestRFLAGS) == 3)
    // The hypervisor reads what the guest has written, but does not enter it.
    try p.vmclear(shadow.address)
    try p.vmptrld(shadow.address)
    #expect(p.vmread(.guestRIP) == 0x1234_5678_9ABC)
    #expect(throws: VMXError.failInvalid) { try p.vmlaunch() }
    try p.vmclear(shadow.address)
  }

  // MARK: Monitor trap flag

  /// A fault of the first instruction: the exit comes when the handler is entered.
  @Test func theMonitorTrapFlagStopsAtAFaultsHandler() throws {
    m.test.load([0x0F, 0x0B], at: 0x1000)
    set(.primaryControls, PrimaryControls.monitorTrapFlag)
    #expect(try p.vmlaunch() == .monitorTrapFlag)
    #expect(p.vmread(.guestRIP) == 0x1100)
    #expect(try p.vmresume() == .hlt)
  }
}
