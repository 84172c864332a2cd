// SPDX-License-Identifier: Apache-2.0
//
// The state save area of system management mode, 512 bytes at SMBASE + FE00: in AMD64's layout (APM
// volume 2, "SMRAM State-Save Area"), which KVM uses for guests of either vendor, or in that of
// 32-bit processors if the guest's CPUID has no long mode. Offsets are the manuals', from SMBASE +
// 8000.

import Host
import X86
import X86CPU

struct StateSaveArea {
  /// Its offset from SMBASE.
  static let offset: UInt64 = 0xFE00
  static let size = 512
  private static let first = 0x7E00

  private(set) var bytes = [UInt8](repeating: 0, count: size)

  init() {}

  /// Nil if `read`, which fills `size` bytes, fails.
  init?(_ read: (UnsafeMutableRawPointer) -> Bool) {
    let isRead = unsafe bytes.withUnsafeMutableBytes { unsafe $0.baseAddress.map(read) ?? false }
    if !isRead { return nil }
  }

  subscript<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, type: T.Type = T.self) -> T {
    get { bytes.load(T.self, at: offset - Self.first) ?? 0 }
    set { bytes.store(newValue, at: offset - Self.first) }
  }

  /// A register of 64 bits.
  subscript(word offset: Int) -> UInt64 {
    get { self[offset, UInt64.self] }
    set { self[offset, UInt64.self] = newValue }
  }

  /// A register of 32 bits.
  subscript(dword offset: Int) -> UInt64 {
    get { UInt64(self[offset, UInt32.self]) }
    set { self[offset, UInt32.self] = UInt32(truncatingIfNeeded: newValue) }
  }
}

/// Segment attributes in the area: bits 15:12 and 7:0 of the access rights; unusable segments are
/// not present.
extension SegmentState {
  fileprivate var savedAttributes: UInt32 {
    let present: UInt32 = 1 << 7
    return rights.rawValue & (rights.isUnusable ? 0xF0FF & ~present : 0xF0FF)
  }

  fileprivate init(base: UInt64, limit: UInt32, attributes: UInt32, selector: UInt16) {
    var rights = attributes & 0xF0FF
    if rights & 1 << 7 == 0 { rights |= SegmentAccessRights.unusableBit }
    self.init(base: base, limit: limit, accessRights: rights, selector: selector)
  }
}

extension StateSaveArea {
  /// Offsets of fields, common to both layouts or not.
  enum Layout {
    static let revision = 0x7EFC
    static let revision64: UInt64 = 0x2_0064
    static let revision32: UInt64 = 0x2_0000
    static let base64 = 0x7F00
    static let base32 = 0x7EF8
    /// KVM's: the shadow of STI or MOV SS.
    static let shadow = 0x7ECB

    /// By SegmentRegister.
    static let segments64: [SegmentRegister: Int] = [
      .es: 0x7E00, .cs: 0x7E10, .ss: 0x7E20, .ds: 0x7E30, .fs: 0x7E40, .gs: 0x7E50,
      .ldtr: 0x7E70, .tr: 0x7E90,
    ]
    static let selectors32: [SegmentRegister: Int] = [
      .es: 0x7FA8, .cs: 0x7FAC, .ss: 0x7FB0, .ds: 0x7FB4, .fs: 0x7FB8, .gs: 0x7FBC,
      .ldtr: 0x7FC0, .tr: 0x7FC4,
    ]
    /// Attributes; the limit and the base follow.
    static let segments32: [SegmentRegister: Int] = [
      .es: 0x7F84, .cs: 0x7F90, .ss: 0x7F9C, .ds: 0x7F2C, .fs: 0x7F38, .gs: 0x7F44,
      .ldtr: 0x7F78, .tr: 0x7F5C,
    ]
    static let gdtr64 = 0x7E60
    static let idtr64 = 0x7E80
    /// The limit; the base follows.
    static let gdtr32 = 0x7F70
    static let idtr32 = 0x7F54
    static let efer = 0x7ED0
    /// 1: the SMI came while a guest's guest ran; its control block; SVM's virtual interrupt.
    static let isNested = 0x7ED8
    static let nestedControlBlock = 0x7EE0
    static let nestedVirtualInterrupt = 0x7EE8
    /// RAX; the others in their order below it.
    static let rax64 = 0x7FF8
    /// EAX; the others in their order above it.
    static let eax32 = 0x7FD0

    struct Registers: Sendable {
      var cr0, cr3, cr4, dr6, dr7, rflags, rip: Int
    }
    static let registers64 = Registers(
      cr0: 0x7F58, cr3: 0x7F50, cr4: 0x7F48, dr6: 0x7F68, dr7: 0x7F60, rflags: 0x7F70, rip: 0x7F78)
    static let registers32 = Registers(
      cr0: 0x7FFC, cr3: 0x7FF8, cr4: 0x7F14, dr6: 0x7FCC, dr7: 0x7FC8, rflags: 0x7FF4, rip: 0x7FF0)
  }

  func segment64(_ offset: Int) -> SegmentState {
    SegmentState(
      base: self[word: offset + 8], limit: self[offset + 4],
      attributes: UInt32(self[offset + 2, UInt16.self]), selector: self[offset])
  }

  mutating func setSegment64(_ offset: Int, _ value: SegmentState) {
    self[offset, UInt16.self] = value.selector
    self[offset + 2, UInt16.self] = UInt16(truncatingIfNeeded: value.savedAttributes)
    self[offset + 4, UInt32.self] = value.limit
    self[word: offset + 8] = value.base
  }

  /// The 32-bit layout has the attributes as in a descriptor's second word.
  func segment32(_ offset: Int, selector: Int) -> SegmentState {
    SegmentState(
      base: self[dword: offset + 8], limit: self[offset + 4],
      attributes: self[offset, UInt32.self] >> 8,
      selector: UInt16(truncatingIfNeeded: self[dword: selector]))
  }

  mutating func setSegment32(_ offset: Int, selector: Int, _ value: SegmentState) {
    self[dword: selector] = UInt64(value.selector)
    self[offset, UInt32.self] = value.savedAttributes << 8
    self[offset + 4, UInt32.self] = value.limit
    self[dword: offset + 8] = value.base
  }
}
