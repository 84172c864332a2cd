// SPDX-License-Identifier: Apache-2.0
//
// The registers with which the first CPU enters a loaded image, as KVM's structs.

import CHost
import GuestMemory
import Host
import X86

/// Entry address and mode of a loaded image.
package enum EntryPoint: Sendable, Hashable {
  /// Linux's 64-bit boot protocol: long mode with an identity map, RSI points to the zero page.
  case linux64(address: UInt64)
  /// PVH: 32-bit protected mode without paging, EBX points to the start info.
  case pvh(address: UInt32)
  /// Real mode at a segment and an offset.
  case realMode(segment: UInt16, offset: UInt16)
  /// A processor's reset state: 16 bytes below 4 GiB, where firmware is.
  case reset
}

/// The boot GDT: the selectors are those of Linux's boot protocol.
package enum BootDescriptorTable {
  package static let code64Selector: UInt16 = 0x10
  package static let dataSelector: UInt16 = 0x18
  package static let code32Selector: UInt16 = 0x20
  package static let taskSelector: UInt16 = 0x28

  /// Flat segments of 4 GiB, accessed, and a TSS of minimum size.
  package static let entries: [UInt64] = [
    0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_9B00_0000_FFFF,
    0x0000_8B00_0000_0067,
  ]

  /// Writes the table to memory.
  static func write(to memory: GuestMemory) -> Bool {
    var bytes: [UInt8] = []
    for entry in entries { bytes.append(little: entry) }
    return memory.write(bytes, at: GuestMap.bootGDT)
  }

  /// A segment register loaded from the table.
  static func segment(_ selector: UInt16) -> kvm_segment {
    let descriptor = SegmentDescriptor(rawValue: entries[Int(selector / 8)])
    let rights = descriptor.accessRights
    var segment = kvm_segment()
    segment.base = descriptor.base
    segment.limit = descriptor.limit
    segment.selector = selector
    segment.type = rights.type
    segment.present = rights.isPresent ? 1 : 0
    segment.dpl = rights.dpl
    segment.db = rights.isBig ? 1 : 0
    segment.s = rights.isCodeOrData ? 1 : 0
    segment.l = rights.isLong ? 1 : 0
    segment.g = rights.isPageGranular ? 1 : 0
    return segment
  }
}

/// Page tables that map the first 4 GiB to themselves with 2 MiB pages: a root, a page of
/// directory pointers, four directories.
enum BootPageTables {
  static func write(to memory: GuestMemory) -> Bool {
    let table = PageTableEntry.present | PageTableEntry.writable
    let page = table | PageTableEntry.pageSize
    let root = GuestMap.pageTables
    var bytes: [UInt8] = []
    bytes.append(little: (root + Page.size) | table)
    bytes += [UInt8](repeating: 0, count: 4096 - 8)
    for index in 0..<4 as Range<UInt64> {
      bytes.append(little: (root + (2 + index) * Page.size) | table)
    }
    bytes += [UInt8](repeating: 0, count: 4096 - 32)
    for index in 0..<2048 as Range<UInt64> { bytes.append(little: index << 21 | page) }
    return memory.write(bytes, at: root)
  }
}

extension EntryPoint {
  /// General-purpose registers at the entry.
  package var registers: kvm_regs {
    var registers = kvm_regs()
    registers.rflags = RFLAGS.fixed.rawValue
    switch self {
    case .linux64(let address):
      registers.rip = address
      registers.rsi = GuestMap.zeroPage
      registers.rsp = GuestMap.zeroPage
    case .pvh(let address):
      registers.rip = UInt64(address)
      registers.rbx = GuestMap.startInfo
    case .realMode(_, let offset):
      registers.rip = UInt64(offset)
    case .reset:
      registers.rip = Self.resetOffset
    }
    return registers
  }

  /// Changes the special registers of a CPU after reset to those at the entry.
  package func apply(to special: inout kvm_sregs) {
    switch self {
    case .linux64:
      special.cr3 = GuestMap.pageTables
      special.cr4 = CR4.pae.rawValue
      special.cr0 = CR0([.pe, .et, .ne, .pg]).rawValue
      special.efer = EFER([.lme, .lma]).rawValue
      loadSegments(&special, code: BootDescriptorTable.code64Selector)
    case .pvh:
      special.cr4 = 0
      special.cr0 = CR0([.pe, .et]).rawValue
      special.efer = 0
      loadSegments(&special, code: BootDescriptorTable.code32Selector)
    case .realMode(let segment, _):
      special.cs.selector = segment
      special.cs.base = UInt64(segment) << 4
    case .reset: break
    }
  }

  private static let resetOffset: UInt64 = 0xFFF0

  private func loadSegments(_ special: inout kvm_sregs, code: UInt16) {
    special.cs = BootDescriptorTable.segment(code)
    let data = BootDescriptorTable.segment(BootDescriptorTable.dataSelector)
    (special.ds, special.es, special.ss, special.fs, special.gs) = (data, data, data, data, data)
    special.tr = BootDescriptorTable.segment(BootDescriptorTable.taskSelector)
    special.gdt.base = GuestMap.bootGDT
    special.gdt.limit = UInt16(BootDescriptorTable.entries.count * 8 - 1)
    special.idt.base = 0
    special.idt.limit = 0
  }
}
