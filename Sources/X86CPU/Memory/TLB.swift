// SPDX-License-Identifier: Apache-2.0
//
// The translation look-aside buffer: linear page to host address, direct mapped.
//
// There are three banks, because a page may be accessible in one and not in another: supervisor,
// user, and supervisor with SMAP off (RFLAGS.AC set, or CR4.SMAP clear). An entry has one tag for
// reads and one for writes, each a page's linear address with the address-space context in its low
// 12 bits, so one compare checks page, permission and address space:
//
//     tag  = page | context            (context: 0 to 4093; invalid entries have all ones)
//     host = linear + addend
//
// The supervisor's bank contains only supervisor pages, which kernels make global. While all are,
// the bank has a context of its own that does not change with the address space.
//
// A miss looks in a larger second table (`SecondTLB`) before it walks. There an entry of a global
// page is valid in every address space.
//
// A small table has 2 MiB pages (`LargeTLB`) that are large in the guest's tables and in EPT: one
// walk covers all their 4 KiB pages.
//
// Pages that must take the slow path have no tag: pages with translated code have no write tag (the
// slow path drops the code), pages with a data breakpoint have neither, MMIO is never entered. A
// flush of everything changes the context; entries are wiped only when contexts run out.

import X86

package struct TLBEntry {
  package var readTag: UInt64
  package var writeTag: UInt64
  /// Host address minus linear address.
  package var addend: UInt64
  /// Bit 0: from a page larger than 4 KiB. Bit 1: global.
  package var info: UInt64

  package static let invalid = TLBEntry(
    readTag: .max, writeTag: .max, addend: 0, info: 0)
  package static let largePage: UInt64 = 1 << 0
  package static let global: UInt64 = 1 << 1
  /// Writable, but the page contains translated code, which the slow path drops.
  package static let tracked: UInt64 = 1 << 2
}

package enum TLB {
  package static let entriesPerBank = 4096
  package static let indexMask = UInt64(entriesPerBank - 1)
  package static let bankCount = 3
  package static let supervisor = 0
  package static let user = 1
  package static let supervisorWithoutSMAP = 2
  package static let lastContext: UInt64 = 4093
  /// The context at CPL 3 while alignment is checked: no entry has it, so every access of the
  /// interpreter and of translated code takes the slow path, which checks it.
  package static let checkedContext: UInt64 = 4094
  /// In place of a context: any address space.
  static let anyContext: UInt64 = 4095
}

/// Which context an address space has.
typealias TLBContext = (pcid: UInt64, root: UInt64, keys: UInt64, context: UInt64)

/// An entry of the second table.
package struct SecondTLBEntry {
  /// Page with the context, or with `TLB.anyContext` for a global page.
  var key: UInt64
  /// Host address minus linear address.
  var addend: UInt64
  /// `TLBEntry`'s bits, and those below.
  var info: UInt64
  /// `CPUState.tlbGeneration` when the entry was made.
  var generation: UInt64

  static let invalid = SecondTLBEntry(key: .max, addend: 0, info: 0, generation: 0)
  static let readable: UInt64 = 1 << 8
  /// A write needs no walk, unless the page contains code.
  static let writable: UInt64 = 1 << 9
}

/// As many entries as 64 MiB have pages.
enum SecondTLB {
  static let entriesPerBank = 16384

  @inline(__always) static func index(_ linear: UInt64) -> Int {
    Int((linear >> Page.shift ^ linear >> 28) & UInt64(entriesPerBank - 1))
  }
}

/// Entries like those of the second table, which they follow; keys and addends are of 2 MiB.
enum LargeTLB {
  static let entriesPerBank = 64
  static let shift: UInt64 = 21
  static let mask = ~((UInt64(1) << shift) - 1)
  /// Offset of the first entry from the second table's.
  static let start = SecondTLB.entriesPerBank * TLB.bankCount

  @inline(__always) static func index(_ linear: UInt64) -> Int {
    Int((linear >> shift ^ linear >> 27) & UInt64(entriesPerBank - 1))
  }
}

/// The kind of an access, for the page walk.
package enum AccessKind: UInt8 {
  case read = 0
  case write = 1
  case execute = 2
}
