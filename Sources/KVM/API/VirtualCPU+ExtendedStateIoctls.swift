// SPDX-License-Identifier: Apache-2.0
//
// The ioctls for x87, vector and XSAVE state and for XCR0. The client's image is copied before the
// check, because the client may change it meanwhile.

import CHost
import SystemPackage
import X86
import X86CPU

/// x87, vector and other XSAVE-managed state.
extension VirtualCPU {
  static let extendedStateIoctls: [(UInt32, Method)] = [
    (
      CKVM_GET_FPU,
      { (vcpu, argument) throws(Errno) in
        try argument.write(ExtendedState.fpu(vcpu.cpu))
        return 0
      }
    ),
    (
      CKVM_SET_FPU,
      { (vcpu, argument) throws(Errno) in
        ExtendedState.setFPU(vcpu.cpu, try argument.read())
        return 0
      }
    ),
    (
      CKVM_GET_XSAVE,
      { (vcpu, argument) throws(Errno) in
        try unsafe argument.write(count: 4096) {
          unsafe ExtendedState.save(vcpu.cpu, to: $0, size: 4096)
        }
        return 0
      }
    ),
    (
      CKVM_GET_XSAVE2,
      { (vcpu, argument) throws(Errno) in
        let size = ExtendedState.areaSize
        try unsafe argument.write(count: size) {
          unsafe ExtendedState.save(vcpu.cpu, to: $0, size: size)
        }
        return 0
      }
    ),
    (
      CKVM_SET_XSAVE,
      { (vcpu, argument) throws(Errno) in
        try unsafe argument.read(count: ExtendedState.areaSize) { (area) throws(Errno) in
          try unsafe ExtendedState.restore(vcpu.cpu, from: area)
        }
        return 0
      }
    ),
    (
      CKVM_GET_XCRS,
      { (vcpu, argument) throws(Errno) in
        var value = kvm_xcrs()
        value.nr_xcrs = 1
        value.xcrs.0.value = unsafe vcpu.cpu.s.pointee.xcr0
        try argument.write(value)
        return 0
      }
    ),
    (
      CKVM_SET_XCRS,
      { (vcpu, argument) throws(Errno) in
        let value: kvm_xcrs = try argument.read()
        guard value.flags == 0, value.nr_xcrs <= 16 else { throw .invalidArgument }
        try vcpu.setXCRs(value)
        return 0
      }
    ),
  ]

  private func setXCRs(_ value: kvm_xcrs) throws(Errno) {
    let entries = unsafe withUnsafeBytes(of: value.xcrs) {
      unsafe Array($0.bindMemory(to: kvm_xcr.self).prefix(Int(value.nr_xcrs)))
    }
    for entry in entries where entry.xcr == 0 {
      // The client may set all that the processor has, before or after it sets CPUID.
      let supported = ExtendedStateLayout.supported
      guard ExtendedState.isValidXCR0(entry.value, supported: supported) else {
        throw .invalidArgument
      }
      unsafe cpu.s.pointee.xcr0 = entry.value
    }
  }
}

/// Converts vector state to and from KVM's structs.
enum ExtendedState {
  /// Size of the whole XSAVE area, at least the 4096 bytes of `kvm_xsave`.
  static let areaSize = max(
    4096, Int(ExtendedStateLayout.standardSize(ExtendedStateLayout.supported)))

  /// SDM volume 2, "XSETBV": x87 always; AVX requires SSE; AVX-512's three components go together
  /// and require AVX.
  static func isValidXCR0(_ value: UInt64, supported: UInt64) -> Bool {
    let xcr0 = XCR0(rawValue: value)
    guard value & ~supported == 0, xcr0.contains(.x87) else { return false }
    if xcr0.contains(.avx), !xcr0.contains(.sse) { return false }
    if xcr0.isDisjoint(with: .avx512) { return true }
    return xcr0.isSuperset(of: .avx512) && xcr0.contains(.avx)
  }

  static func initializeX87(_ cpu: CPU) {
    cpu.initializeX87()
    cpu.mxcsr = MXCSR.initial
  }

  private static func image(_ cpu: CPU) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(cpu.vector) + MemoryLayout<VectorState>.offset(of: \.fx)!
  }

  private static func register(_ cpu: CPU, _ number: Int) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(cpu.vector) + number * 64
  }

  private static func opmask(_ cpu: CPU) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(cpu.vector) + MemoryLayout<VectorState>.offset(of: \.opmask)!
  }

  /// Offsets in the FXSAVE image.
  private enum Image {
    static let st = 32
    static let xmm = 160
  }

  // MARK: kvm_fpu

  static func fpu(_ cpu: CPU) -> kvm_fpu {
    var value = kvm_fpu()
    let image = unsafe image(cpu)
    unsafe withUnsafeMutableBytes(of: &value.fpr) {
      unsafe $0.copyMemory(from: UnsafeRawBufferPointer(start: image + Image.st, count: 128))
    }
    value.fcw = unsafe image.load(as: UInt16.self)
    value.fsw = unsafe image.load(fromByteOffset: 2, as: UInt16.self)
    value.ftwx = unsafe image.load(fromByteOffset: 4, as: UInt8.self)
    value.last_opcode = unsafe image.load(fromByteOffset: 6, as: UInt16.self)
    value.last_ip = unsafe image.load(fromByteOffset: 8, as: UInt64.self)
    value.last_dp = unsafe image.load(fromByteOffset: 16, as: UInt64.self)
    unsafe withUnsafeMutableBytes(of: &value.xmm) { xmm in
      for number in 0..<16 {
        unsafe (xmm.baseAddress! + number * 16).copyMemory(
          from: register(cpu, number), byteCount: 16)
      }
    }
    value.mxcsr = cpu.mxcsr
    return value
  }

  static func setFPU(_ cpu: CPU, _ value: kvm_fpu) {
    let image = unsafe image(cpu)
    unsafe withUnsafeBytes(of: value.fpr) {
      unsafe (image + Image.st).copyMemory(from: $0.baseAddress!, byteCount: 128)
    }
    unsafe image.storeBytes(of: value.fcw, as: UInt16.self)
    unsafe image.storeBytes(of: value.fsw, toByteOffset: 2, as: UInt16.self)
    unsafe image.storeBytes(of: UInt16(value.ftwx), toByteOffset: 4, as: UInt16.self)
    unsafe image.storeBytes(of: value.last_opcode, toByteOffset: 6, as: UInt16.self)
    unsafe image.storeBytes(of: value.last_ip, toByteOffset: 8, as: UInt64.self)
    unsafe image.storeBytes(of: value.last_dp, toByteOffset: 16, as: UInt64.self)
    unsafe withUnsafeBytes(of: value.xmm) { xmm in
      for number in 0..<16 {
        unsafe register(cpu, number).copyMemory(from: xmm.baseAddress! + number * 16, byteCount: 16)
      }
    }
    cpu.mxcsr = value.mxcsr
    cpu.normalizeX87()
  }

  // MARK: XSAVE area, standard format

  private static let headerOffset = 512

  static func save(_ cpu: CPU, to area: UnsafeMutableRawPointer, size: Int) {
    unsafe area.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    unsafe area.copyMemory(from: image(cpu), byteCount: Image.xmm)
    for number in 0..<16 {
      unsafe (area + Image.xmm + number * 16).copyMemory(from: register(cpu, number), byteCount: 16)
    }
    unsafe area.storeBytes(
      of: ExtendedStateLayout.supported, toByteOffset: headerOffset, as: UInt64.self)
    for component in ExtendedStateLayout.components {
      let place = Int(component.offset)
      guard place + Int(component.size) <= size else { continue }
      unsafe copy(cpu, component.number, area + place, saving: true)
    }
  }

  static func restore(_ cpu: CPU, from area: UnsafeMutableRawPointer) throws(Errno) {
    let present = unsafe area.loadUnaligned(fromByteOffset: headerOffset, as: UInt64.self)
    let compaction = unsafe area.loadUnaligned(fromByteOffset: headerOffset + 8, as: UInt64.self)
    let mxcsr = unsafe area.loadUnaligned(fromByteOffset: 24, as: UInt32.self)
    guard present & ~ExtendedStateLayout.supported == 0, compaction == 0,
      mxcsr & ~MXCSR.mask == 0
    else { throw .invalidArgument }
    cpu.resetVectorState()
    initializeX87(cpu)
    if present & XCR0.x87.rawValue != 0 {
      unsafe image(cpu).copyMemory(from: area, byteCount: 24)
      unsafe (image(cpu) + Image.st).copyMemory(from: area + Image.st, byteCount: 128)
    }
    if present & XCR0.sse.rawValue != 0 {
      for number in 0..<16 {
        unsafe register(cpu, number).copyMemory(from: area + Image.xmm + number * 16, byteCount: 16)
      }
    }
    if present & (XCR0.sse.rawValue | XCR0.avx.rawValue) != 0 { cpu.mxcsr = mxcsr }
    unsafe cpu.s.pointee.pkru = 0
    for component in ExtendedStateLayout.components
    where present & 1 << UInt64(component.number) != 0 {
      unsafe copy(cpu, component.number, area + Int(component.offset), saving: false)
    }
    cpu.normalizeX87()
  }

  /// Copies a component above SSE between the CPU and the area.
  private static func copy(
    _ cpu: CPU, _ component: Int, _ place: UnsafeMutableRawPointer, saving: Bool
  ) {
    func move(_ here: UnsafeMutableRawPointer, _ offset: Int, _ count: Int) {
      let there = unsafe place + offset
      if saving {
        unsafe there.copyMemory(from: here, byteCount: count)
      } else {
        unsafe here.copyMemory(from: there, byteCount: count)
      }
    }
    switch component {
    case 2: for number in 0..<16 { unsafe move(register(cpu, number) + 16, number * 16, 16) }
    case 5: unsafe move(opmask(cpu), 0, 64)
    case 6: for number in 0..<16 { unsafe move(register(cpu, number) + 32, number * 32, 32) }
    case 7: for number in 0..<16 { unsafe move(register(cpu, number + 16), number * 64, 64) }
    case 9:
      if saving {
        unsafe place.storeBytes(of: cpu.s.pointee.pkru, as: UInt64.self)
      } else {
        unsafe cpu.s.pointee.pkru = unsafe place.loadUnaligned(as: UInt64.self) & 0xFFFF_FFFF
      }
    default: break
    }
  }
}
