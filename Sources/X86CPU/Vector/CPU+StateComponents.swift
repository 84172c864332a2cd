// SPDX-License-Identifier: Apache-2.0
//
// The components of extended state: which are in use, and copies between the processor's registers
// and each component's image in XSAVE format (SDM volume 1, "Managing State Using the XSAVE Feature
// Set"). Outside 64-bit mode, registers that only it can access are skipped.

import X86

/// Offsets of the legacy area.
enum LegacyArea {
  static let mxcsr = 24
  static let st = 32
  static let xmm = 160
  static let xmmEnd = 416
  static let xstateBV = 512
  static let xcompBV = 520
  static let reserved = 528
  static let headerEnd = 576
}

extension CPU {
  private var vectorCount: Int { is64Bit ? 16 : 8 }

  /// Components of `mask` that are not in their initial configuration.
  package func inUse(_ mask: UInt64) -> UInt64 {
    var used: UInt64 = 0
    for component in StateComponents.numbers where mask >> UInt64(component) & 1 != 0 {
      if isInUse(component) { used |= 1 << UInt64(component) }
    }
    return used
  }

  private func isInUse(_ component: Int) -> Bool {
    switch component {
    case 0: return isX87InUse
    case 1: return anyNonzero(0..<vectorCount, 0, SIMD2<UInt64>.self)
    case 2: return anyNonzero(0..<vectorCount, 16, SIMD2<UInt64>.self)
    case 5:
      let masks = UnsafeRawPointer(opmask).loadUnaligned(as: SIMD8<UInt64>.self)
      return masks != .zero
    case 6: return anyNonzero(0..<vectorCount, 32, SIMD4<UInt64>.self)
    case 7: return is64Bit && anyNonzero(16..<32, 0, SIMD8<UInt64>.self)
    case 9: return s.pointee.pkru != 0
    default: return false
    }
  }

  private var isX87InUse: Bool {
    if fcw != 0x37F || fsw != 0 || ftw != 0 || fop != 0 || fip != 0 || fdp != 0 { return true }
    for n in 0..<8 where st(n).load(as: SIMD2<UInt64>.self) != .zero { return true }
    return false
  }

  @inline(__always) private func anyNonzero<T: SIMD>(
    _ registers: Range<Int>, _ offset: Int, _: T.Type
  ) -> Bool where T.Scalar == UInt64 {
    var all = T()
    for n in registers {
      let part = (vectorRaw + n * 64 + offset).loadUnaligned(as: T.self)
      for index in 0..<T.scalarCount { all[index] |= part[index] }
    }
    return all != T()
  }

  // MARK: Saving

  /// The x87 part of the legacy area: bytes 0 to 23 and 32 to 159. Without REX.W the pointers have
  /// 32 bits and selectors, which are 0.
  func saveX87(_ area: UnsafeMutableRawPointer, wide: Bool) {
    let image = vectorRaw + VectorLayout.fx
    area.copyMemory(from: image, byteCount: LegacyArea.mxcsr)
    if !wide {
      area.storeBytes(of: fip & 0xFFFF_FFFF, toByteOffset: 8, as: UInt64.self)
      area.storeBytes(of: fdp & 0xFFFF_FFFF, toByteOffset: 16, as: UInt64.self)
    }
    (area + LegacyArea.st).copyMemory(from: image + LegacyArea.st, byteCount: 128)
  }

  func saveMXCSR(_ area: UnsafeMutableRawPointer) {
    area.storeBytes(of: mxcsr, toByteOffset: LegacyArea.mxcsr, as: UInt32.self)
    area.storeBytes(of: MXCSR.mask, toByteOffset: LegacyArea.mxcsr + 4, as: UInt32.self)
  }

  /// XMM registers, to byte 160 of the legacy area.
  func saveXMM(_ area: UnsafeMutableRawPointer) {
    copyOut(vectorCount, area + LegacyArea.xmm, 0, SIMD2<UInt64>.self)
  }

  /// A component above SSE, to its start.
  func saveComponent(_ number: Int, _ target: UnsafeMutableRawPointer) {
    switch number {
    case 2: copyOut(vectorCount, target, 16, SIMD2<UInt64>.self)
    case 5: target.copyMemory(from: opmask, byteCount: 64)
    case 6: copyOut(vectorCount, target, 32, SIMD4<UInt64>.self)
    case 7: if is64Bit { target.copyMemory(from: vectorRaw + 1024, byteCount: 1024) }
    case 9: target.storeBytes(of: s.pointee.pkru & 0xFFFF_FFFF, as: UInt64.self)
    default: break
    }
  }

  @inline(__always) private func copyOut<T: SIMD>(
    _ count: Int, _ target: UnsafeMutableRawPointer, _ offset: Int, _: T.Type
  ) where T.Scalar == UInt64 {
    let size = MemoryLayout<T>.size
    for n in 0..<count {
      let part = (vectorRaw + n * 64 + offset).loadUnaligned(as: T.self)
      (target + n * size).storeBytes(of: part, as: T.self)
    }
  }

  // MARK: Loading

  func loadX87(_ area: UnsafeRawPointer, wide: Bool) {
    let image = vectorRaw + VectorLayout.fx
    // Control and status word are checked together: in the copy.
    CPU.copyOnce(from: area, to: image, byteCount: LegacyArea.mxcsr)
    if !wide {
      fip &= 0xFFFF_FFFF
      fdp &= 0xFFFF_FFFF
    }
    for n in 0..<8 {
      let offset = LegacyArea.st + n * 16
      (image + offset).copyMemory(from: area + offset, byteCount: 10)
      (image + offset + 10).initializeMemory(as: UInt8.self, repeating: 0, count: 6)
    }
    normalizeX87()
  }

  func loadXMM(_ area: UnsafeRawPointer) {
    copyIn(vectorCount, area + LegacyArea.xmm, 0, SIMD2<UInt64>.self)
  }

  /// A component above SSE, from its start.
  func loadComponent(_ number: Int, _ source: UnsafeRawPointer) {
    switch number {
    case 2: copyIn(vectorCount, source, 16, SIMD2<UInt64>.self)
    case 5: UnsafeMutableRawPointer(opmask).copyMemory(from: source, byteCount: 64)
    case 6: copyIn(vectorCount, source, 32, SIMD4<UInt64>.self)
    case 7: if is64Bit { (vectorRaw + 1024).copyMemory(from: source, byteCount: 1024) }
    case 9: setPKRU(UInt64(source.loadUnaligned(as: UInt32.self)))
    default: break
    }
  }

  @inline(__always) private func copyIn<T: SIMD>(
    _ count: Int, _ source: UnsafeRawPointer, _ offset: Int, _: T.Type
  ) where T.Scalar == UInt64 {
    let size = MemoryLayout<T>.size
    for n in 0..<count {
      let part = (source + n * size).loadUnaligned(as: T.self)
      (vectorRaw + n * 64 + offset).storeBytes(of: part, as: T.self)
    }
  }

  /// Puts a component into its initial configuration.
  func initializeComponent(_ number: Int) {
    switch number {
    case 0:
      initializeX87()
      st(0).initializeMemory(as: UInt8.self, repeating: 0, count: 128)
    case 1: fillIn(vectorCount, 0, SIMD2<UInt64>.zero)
    case 2: fillIn(vectorCount, 16, SIMD2<UInt64>.zero)
    case 5: opmask.update(repeating: 0, count: 8)
    case 6: fillIn(vectorCount, 32, SIMD4<UInt64>.zero)
    case 7:
      if is64Bit {
        (vectorRaw + 1024).initializeMemory(as: UInt8.self, repeating: 0, count: 1024)
      }
    case 9: setPKRU(0)
    default: break
    }
  }

  @inline(__always) private func fillIn<T>(_ count: Int, _ offset: Int, _ value: T) {
    for n in 0..<count { (vectorRaw + n * 64 + offset).storeBytes(of: value, as: T.self) }
  }

  /// The TLB's rights include PKRU's.
  private func setPKRU(_ value: UInt64) {
    if s.pointee.pkru == value { return }
    s.pointee.pkru = value
    switchAddressSpace()
  }
}

/// Components by number, with their offsets.
enum StateComponents {
  static let numbers = [0, 1] + ExtendedStateLayout.components.map(\.number)

  /// Those above SSE; a global constant so that no access copies an array.
  static let extended = ExtendedStateLayout.components
}
