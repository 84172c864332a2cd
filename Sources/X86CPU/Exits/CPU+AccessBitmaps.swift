// SPDX-License-Identifier: Apache-2.0
//
// Port and MSR accesses that exit: by VT-x's bitmaps (SDM volume 3, "I/O-Bitmap Addresses" and
// "MSR-Bitmap Address") and SVM's permission maps (APM volume 2, "IOIO Intercepts" and "MSR
// Intercepts"). `BitmapLayout` describes their layouts. A set bit exits.

import X86

/// The MSR ranges in bitmaps, of 2000H numbers each.
private enum MSRRange {
  static let count: UInt32 = 0x2000
  static let extended: UInt32 = 0xC000_0000
  static let amd: UInt32 = 0xC001_0000
}

extension CPU {
  /// Whether an access to these ports exits.
  func portExits(_ port: UInt16, size: Int) -> Bool {
    if s.pointee.emulation != nil { return false }
    let layout = s.pointee.intercepts.portLayout
    if layout == .none { return false }
    if layout == .all { return true }
    // An access that wraps around the port space exits on VT-x; SVM's map has bits for it.
    let end = Int(port) &+ size
    if layout == .vmx && end > 0x1_0000 { return true }
    for number in Int(port)..<end {
      let isHigh = layout == .vmx && number >= 0x8000
      let base =
        isHigh ? s.pointee.intercepts.portBitmapHigh : s.pointee.intercepts.portBitmap
      let index = isHigh ? number &- 0x8000 : number
      if bit(index, at: base) { return true }
    }
    return false
  }

  /// Whether an access to an MSR exits.
  func msrExits(_ number: UInt32, isWrite: Bool) -> Bool {
    switch s.pointee.intercepts.msrLayout {
    case .none: return false
    case .all: return true
    case .vmx:
      let isExtended = number >= MSRRange.extended
      let index = isExtended ? number &- MSRRange.extended : number
      if index >= MSRRange.count { return true }
      let part = (isWrite ? 2 : 0) + (isExtended ? 1 : 0)
      return bit(part &* 0x2000 &+ Int(index), at: s.pointee.intercepts.msrBitmap)
    case .svm:
      let start = number & ~(MSRRange.count &- 1)
      let part =
        switch start {
        case 0: 0
        case MSRRange.extended: 1
        case MSRRange.amd: 2
        default: -1
        }
      if part < 0 { return true }
      let place = (part &* 0x2000 &+ Int(number &- start)) &* 2 &+ (isWrite ? 1 : 0)
      return bit(place, at: s.pointee.intercepts.msrBitmap)
    }
  }

  /// A bit of a bitmap; set if there is no bitmap.
  private func bit(_ number: Int, at base: UInt64) -> Bool {
    guard let bitmap = UnsafePointer<UInt8>(bitPattern: UInt(base)) else { return true }
    return bitmap[number >> 3] & 1 << UInt8(truncatingIfNeeded: number & 7) != 0
  }
}
