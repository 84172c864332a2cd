// SPDX-License-Identifier: Apache-2.0
//
// Address translation in each paging mode: one table has every cause of a page fault with its
// error code, and what TLBs may keep is what the SDM allows.

import Support
import Testing
import X86
import X86CPU

/// One access to a page with given entry bits, and the page fault that it must raise.
struct PageFaultCase: Sendable, CustomTestStringConvertible {
  enum Access: Sendable { case read, write, execute }
  var name: String
  var entry: UInt64
  var access: Access
  var cpl: UInt8 = 3
  var cr4: CR4 = []
  var alignmentFlag = false
  var pkru: UInt64 = 0
  /// Nil: the access succeeds.
  var code: PageFaultCode?

  var testDescription: String { name }

  static let table: [PageFaultCase] = [
    .init(name: "read of an absent page", entry: 0, access: .read, code: [.user]),
    .init(name: "write to an absent page", entry: 0, access: .write, code: [.user, .write]),
    .init(
      name: "fetch from an absent page", entry: 0, access: .execute,
      code: [.user, .instructionFetch]),
    .init(name: "supervisor read of an absent page", entry: 0, access: .read, cpl: 0, code: []),
    .init(name: "user read", entry: 7, access: .read, code: nil),
    .init(name: "user write", entry: 7, access: .write, code: nil),
    .init(name: "user fetch", entry: 7, access: .execute, code: nil),
    .init(
      name: "user write to a read-only page", entry: 5, access: .write,
      code: [.user, .write, .present]),
    .init(
      name: "supervisor write to a read-only page with WP", entry: 5, access: .write, cpl: 0,
      code: [.write, .present]),
    .init(
      name: "user read of a supervisor page", entry: 3, access: .read, code: [.user, .present]),
    .init(
      name: "fetch from an execute-disabled page", entry: 7 | 1 << 63, access: .execute,
      code: [.user, .instructionFetch, .present]),
    .init(name: "read of an execute-disabled page", entry: 7 | 1 << 63, access: .read, code: nil),
    .init(
      name: "SMEP", entry: 7, access: .execute, cpl: 0, cr4: .smep,
      code: [.instructionFetch, .present]),
    .init(
      name: "SMEP and a supervisor page", entry: 3, access: .execute, cpl: 0, cr4: .smep,
      code: nil),
    .init(name: "SMAP read", entry: 7, access: .read, cpl: 0, cr4: .smap, code: [.present]),
    .init(
      name: "SMAP read with AC", entry: 7, access: .read, cpl: 0, cr4: .smap,
      alignmentFlag: true, code: nil),
    .init(
      name: "SMAP and a supervisor page", entry: 3, access: .write, cpl: 0, cr4: .smap,
      code: nil),
    .init(
      name: "reserved bit", entry: 7 | 1 << 51, access: .read,
      code: [.user, .present, .reserved]),
    .init(
      name: "PKU access disabled", entry: 7 | 1 << 59, access: .read, cr4: .pke, pkru: 0b0100,
      code: [.user, .present, .protectionKey]),
    .init(
      name: "PKU write disabled", entry: 7 | 1 << 59, access: .write, cr4: .pke, pkru: 0b1000,
      code: [.user, .write, .present, .protectionKey]),
    .init(
      name: "PKU write disabled, read", entry: 7 | 1 << 59, access: .read, cr4: .pke,
      pkru: 0b1000, code: nil),
    .init(
      name: "PKU does not stop fetches", entry: 7 | 1 << 59, access: .execute, cr4: .pke,
      pkru: 0b1100, code: nil),
  ]
}

@Suite struct PagingTests {
  /// The page under test is at 4 MiB, mapped by a 4 KiB entry to physical 0x5000, which holds
  /// `hlt`.
  private static let page: UInt64 = 0x40_0000
  private static let entryAddress = 0x13000

  private func machine(cpl: UInt8) -> TestMachine {
    let m = TestMachine()
    m.setLongMode(cpl: cpl)
    m.store(UInt64(0x13007), at: 0x12000 + 2 * 8)
    // Code pages for user and supervisor: the first 2 MiB. SMEP needs supervisor code.
    m.store(UInt64(cpl == 3 ? 0x87 : 0x83), at: 0x12000)
    m.store(UInt8(0xF4), at: 0x5000)
    m.cpu.vmxControls.exceptionBitmap = .max
    m.cpu.gpr[3] = Self.page
    m.load([0x8A, 0x03, 0x90, 0xF4], at: 0x1000)  // mov al, [rbx]
    m.load([0x88, 0x03, 0x90, 0xF4], at: 0x1100)  // mov [rbx], al
    m.load([0xFF, 0xE3], at: 0x1200)  // jmp rbx
    return m
  }

  private func start(_ access: PageFaultCase.Access) -> UInt64 {
    switch access {
    case .read: 0x1000
    case .write: 0x1100
    case .execute: 0x1200
    }
  }

  @Test(arguments: PageFaultCase.table) func faultCodes(_ test: PageFaultCase) {
    let m = machine(cpl: test.cpl)
    m.store(test.entry == 0 ? 0 : test.entry | 0x5000, at: Self.entryAddress)
    m.cpu.s.pointee.cr4 |= test.cr4.rawValue
    m.cpu.s.pointee.pkru = test.pkru
    if test.alignmentFlag { m.cpu.s.pointee.rflags |= RFLAGS.ac.rawValue }
    m.cpu.updateMode()
    m.run(from: start(test.access))
    let exit = m.cpu.exitFields
    let isPageFault = exit.reason == 0 && exit.interruptionInfo & 0xFF == 14
    guard let code = test.code else {
      #expect(!isPageFault, "code \(exit.interruptionErrorCode)")
      return
    }
    #expect(isPageFault)
    #expect(PageFaultCode(rawValue: exit.interruptionErrorCode) == code)
    #expect(exit.qualification == Self.page)
    #expect(m.cpu.s.pointee.cr2 == 0, "an intercepted page fault does not write CR2")
  }

  @Test func accessedAndDirtyFlags() {
    let m = machine(cpl: 0)
    m.store(UInt64(0x5003), at: Self.entryAddress)
    m.run(from: 0x1000)
    #expect(m.read(Self.entryAddress, as: UInt64.self) == 0x5003 | PageTableEntry.accessed)
    m.run(from: 0x1100)
    #expect(
      m.read(Self.entryAddress, as: UInt64.self)
        == 0x5003 | PageTableEntry.accessed | PageTableEntry.dirty)
    #expect(m.read(0x12010, as: UInt64.self) == 0x13007 | PageTableEntry.accessed)
  }

  @Test func deniedAccessSetsNoDirtyFlag() {
    let m = machine(cpl: 3)
    m.store(UInt64(0x5005), at: Self.entryAddress)
    m.run(from: 0x1100)
    #expect(m.read(Self.entryAddress, as: UInt64.self) & PageTableEntry.dirty == 0)
  }

  @Test func invalidatedPageIsReadAnew() {
    let m = machine(cpl: 0)
    m.store(UInt64(0x5003), at: Self.entryAddress)
    m.store(UInt8(0x11), at: 0x5000)
    m.store(UInt8(0x22), at: 0x6000)
    // mov al, [rbx]; mov qword [0x13000], 0x6003; invlpg [rbx]; mov ah, [rbx]; hlt
    m.load(
      [
        0x8A, 0x03, 0x48, 0xC7, 0x04, 0x25, 0x00, 0x30, 0x01, 0x00, 0x03, 0x60, 0, 0,
        0x0F, 0x01, 0x3B, 0x8A, 0x23, 0xF4,
      ], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] & 0xFFFF == 0x2211)
  }

  @Test func reloadOfCR3DropsTranslations() {
    let m = machine(cpl: 0)
    m.store(UInt64(0x5003), at: Self.entryAddress)
    m.store(UInt8(0x11), at: 0x5000)
    m.store(UInt8(0x22), at: 0x6000)
    // mov al, [rbx]; mov qword [0x13000], 0x6003; mov rcx, cr3; mov cr3, rcx; mov ah, [rbx]; hlt
    m.load(
      [
        0x8A, 0x03, 0x48, 0xC7, 0x04, 0x25, 0x00, 0x30, 0x01, 0x00, 0x03, 0x60, 0, 0,
        0x0F, 0x20, 0xD9, 0x0F, 0x22, 0xD9, 0x8A, 0x23, 0xF4,
      ], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] & 0xFFFF == 0x2211)
  }

  @Test(arguments: [
    (0x8000_0000_0000 as UInt64, 3, 13), (0x7FFF_FFFF_FFFF, 3, 14), (0x8000_0000_0000, 4, 12),
  ])
  func nonCanonicalAddresses(address: UInt64, register: Int, vector: UInt32) {
    let m = machine(cpl: 0)
    m.cpu.gpr[register] = address
    // mov al, [rbx], or pop rax
    m.load(register == 4 ? [0x58, 0xF4] : [0x8A, 0x03, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.exitFields.interruptionInfo & 0xFF == vector)
  }

  @Test func storeAcrossPagesWritesAllOrNothing() {
    let m = machine(cpl: 0)
    m.store(UInt64(0x5003), at: Self.entryAddress)
    m.store(UInt64(0), at: Self.entryAddress + 8)
    m.cpu.gpr[3] = Self.page + 0xFFC
    m.cpu.gpr[0] = .max
    m.load([0x48, 0x89, 0x03, 0xF4], at: 0x1000)  // mov [rbx], rax
    m.run(from: 0x1000)
    #expect(m.cpu.exitFields.interruptionInfo & 0xFF == 14)
    #expect(m.cpu.exitFields.qualification == Self.page + 0x1000)
    #expect(m.read(0x5FFC, as: UInt32.self) == 0)
    m.store(UInt64(0x7003), at: Self.entryAddress + 8)
    m.run(from: 0x1000)
    #expect(m.read(0x5FFC, as: UInt32.self) == .max)
    #expect(m.read(0x7000, as: UInt32.self) == .max)
  }

  /// Pages of a large one are known by one walk, until INVLPG for any of its addresses.
  @Test func largePagesAreKnownAsAWhole() {
    let m = TestMachine(megabytes: 8)
    m.setLongMode()
    m.cpu.vmxControls.exceptionBitmap = .max
    // 0x400000 and 0x600000 by large pages; both hold bytes that say which is which.
    for n in [2, 3] {
      m.store(UInt64(n << 21 | 0xE3), at: 0x12000 + n * 8)
      for page in 0..<512 { m.store(UInt8(n), at: n << 21 + page << 12) }
    }
    m.cpu.flushTLB()
    // mov al, [rbx]; add rbx, 0x1000; add rdx, rax; dec ecx; jnz; hlt
    let sum: [UInt8] = [
      0x8A, 0x03, 0x48, 0x81, 0xC3, 0, 0x10, 0, 0, 0x48, 0x01, 0xC2, 0xFF, 0xC9, 0x75, 0xF0, 0xF4,
    ]
    func run(_ expected: UInt64) {
      m.load(sum, at: 0x1000)
      (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2], m.cpu.gpr[3]) = (0, 512, 0, 0x40_0000)
      let fills = m.cpu.s.pointee.tlbFills
      #expect(m.run(from: 0x1000) == .hlt)
      #expect(m.cpu.gpr[2] == expected)
      #expect(m.cpu.s.pointee.tlbFills - fills <= 1)
    }
    run(1024)
    m.store(UInt64(3 << 21 | 0xE3), at: 0x12000 + 2 * 8)
    m.cpu.flushPage(0x5F_F000)
    run(1536)
    // Read-only now: what is known of it must not allow a store.
    m.store(UInt64(2 << 21 | 0xA1), at: 0x12000 + 2 * 8)
    m.cpu.flushPage(0x40_0000)
    run(1024)
    m.load([0x88, 0x03, 0xF4], at: 0x1000)  // mov [rbx], al
    m.cpu.s.pointee.cr0 |= CR0.wp.rawValue
    m.cpu.gpr[3] = 0x40_7000
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.exitFields.interruptionInfo & 0xFF == 14)
  }

  /// The same page seen through each kind of paging structure.
  @Test(arguments: ["32-bit", "PSE", "PAE", "PAE large", "4-level 1 GiB", "5-level"])
  func pagingModes(_ mode: String) {
    let m = TestMachine()
    m.store(UInt32(0xCAFE_F00D), at: 0x40_5000 + 0x10)
    let s = m.cpu.s
    switch mode {
    case "32-bit", "PSE":
      m.setProtectedMode()
      m.store(UInt32(0x21003), at: 0x20000)
      m.store(UInt32(mode == "PSE" ? 0x40_0083 : 0x22003), at: 0x20000 + 4)
      for n in 0..<1024 {
        m.store(UInt32(n << 12 | 3), at: 0x21000 + n * 4)
        m.store(UInt32(0x40_0000 + n << 12 | 3), at: 0x22000 + n * 4)
      }
      s.pointee.cr3 = 0x20000
      s.pointee.cr4 = mode == "PSE" ? CR4.pse.rawValue : 0
      s.pointee.cr0 |= CR0.pg.rawValue
    case "PAE", "PAE large":
      m.setProtectedMode()
      m.store(UInt64(0x21001), at: 0x20000)
      s.pointee.pdptrs[0] = 0x21001
      for n in 0..<4 { m.store(UInt64(n << 21 | 0x83), at: 0x21000 + n * 8) }
      if mode == "PAE" {
        m.store(UInt64(0x22003), at: 0x21000 + 2 * 8)
        for n in 0..<512 { m.store(UInt64(0x40_0000 + n << 12 | 3), at: 0x22000 + n * 8) }
      }
      s.pointee.cr3 = 0x20000
      s.pointee.cr4 = CR4.pae.rawValue
      s.pointee.cr0 |= CR0.pg.rawValue
    default:
      m.setLongMode()
      m.store(UInt64(0x83), at: 0x11000)
      if mode == "5-level" {
        m.store(UInt64(0x10003), at: 0x20000)
        s.pointee.cr3 = 0x20000
        s.pointee.cr4 |= CR4.la57.rawValue
      }
    }
    m.cpu.updateMode()
    m.cpu.flushTLB()
    m.cpu.gpr[3] = 0x40_5010
    m.load([0x8B, 0x03, 0xF4], at: 0x1000)  // mov eax, [rbx]
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[0] == 0xCAFE_F00D)
  }
}
