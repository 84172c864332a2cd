// SPDX-License-Identifier: Apache-2.0
//
// The ioctls for x87, vector and XSAVE state and for XCR0. The client's image is copied before the
// check, because the client may change it meanwhile.

import CHost
import Host
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
        try argument.write(ExtendedState.area(vcpu.cpu, size: 4096).bytes)
        return 0
      }
    ),
    (
      CKVM_GET_XSAVE2,
      { (vcpu, argument) throws(Errno) in
        try argument.write(ExtendedState.area(vcpu.cpu, size: ExtendedState.areaSize).bytes)
        return 0
      }
    ),
    (
      CKVM_SET_XSAVE,
      { (vcpu, argument) throws(Errno) in
        let area: [UInt8] = try argument.elements(ExtendedState.areaSize)
        try ExtendedState.restore(vcpu.cpu, from: area.bytes)
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

  /// Offsets in `VectorState`.
  private enum State {
    static let image = MemoryLayout<VectorState>.offset(of: \.fx)!
    static let opmask = MemoryLayout<VectorState>.offset(of: \.opmask)!
    /// Bytes of a register of 512 bits.
    static let register = 64
  }

  /// Offsets in the FXSAVE image.
  private enum Image {
    static let mxcsr = 24
    static let st = 32
    static let xmm = 160
  }

  /// The CPU's registers, opmasks and x87 image. The vCPU's thread alone uses them.
  private static func withState<Result>(
    _ cpu: CPU, _ body: (inout MutableRawSpan) -> Result
  ) -> Result {
    var state = unsafe MutableRawSpan(
      _unsafeStart: UnsafeMutableRawPointer(cpu.vector), byteCount: MemoryLayout<VectorState>.size)
    return body(&state)
  }

  // MARK: kvm_fpu

  static func fpu(_ cpu: CPU) -> kvm_fpu {
    var value = kvm_fpu()
    withState(cpu) { state in
      let image = state.bytes.extracting(State.image...)
      func word<Value: FixedWidthInteger & BitwiseCopyable>(_ offset: Int) -> Value {
        image.load(Value.self, at: offset) ?? 0
      }
      (value.fcw, value.fsw, value.ftwx) = (word(0), word(2), word(4))
      (value.last_opcode, value.last_ip, value.last_dp) = (word(6), word(8), word(16))
      withMutableBytes(of: &value.fpr) { $0.copy(from: image.extracting(Image.st..<Image.xmm)) }
      withMutableBytes(of: &value.xmm) { xmm in
        for n in 0..<16 {
          let start = n * State.register
          xmm.copy(from: state.bytes.extracting(start..<start + 16), at: n * 16)
        }
      }
    }
    value.mxcsr = cpu.mxcsr
    return value
  }

  static func setFPU(_ cpu: CPU, _ value: kvm_fpu) {
    withState(cpu) { state in
      func set<Value: FixedWidthInteger & BitwiseCopyable>(
        _ value: Value, _ offset: Int, _ state: inout MutableRawSpan
      ) {
        state.storeBytes(of: value, toByteOffset: State.image + offset, as: Value.self)
      }
      set(value.fcw, 0, &state)
      set(value.fsw, 2, &state)
      set(UInt16(value.ftwx), 4, &state)
      set(value.last_opcode, 6, &state)
      set(value.last_ip, 8, &state)
      set(value.last_dp, 16, &state)
      withBytes(of: value.fpr) { state.copy(from: $0, at: State.image + Image.st) }
      withBytes(of: value.xmm) { xmm in
        for n in 0..<16 {
          state.copy(from: xmm.extracting(n * 16..<n * 16 + 16), at: n * State.register)
        }
      }
    }
    cpu.mxcsr = value.mxcsr
    cpu.normalizeX87()
  }

  // MARK: XSAVE area, standard format

  private static let headerOffset = 512

  /// A part of a state component: where it is in `VectorState` and from the component's start.
  private typealias Piece = (state: Int, area: Int, count: Int)

  /// Of the FXSAVE image's x87 part, without MXCSR.
  private static let x87: [Piece] = [
    (State.image, 0, Image.mxcsr), (State.image + Image.st, Image.st, Image.xmm - Image.st),
  ]
  private static let sse = registers(0, from: 0, count: 16).map { piece in
    (state: piece.state, area: Image.xmm + piece.area, count: piece.count)
  }

  /// Of components above SSE. PKRU is not in `VectorState`.
  private static let pieces: [Int: [Piece]] = [
    2: registers(0, from: 16, count: 16), 5: [(State.opmask, 0, 64)],
    6: registers(0, from: 32, count: 32), 7: registers(16, from: 0, count: 64),
  ]
  private static let pkru = 9

  /// Bytes of 16 registers.
  private static func registers(_ first: Int, from offset: Int, count: Int) -> [Piece] {
    (0..<16).map { ((first + $0) * State.register + offset, $0 * count, count) }
  }

  /// The area as the client gets it, with as many components as there is room for.
  static func area(_ cpu: CPU, size: Int) -> [UInt8] {
    var area = [UInt8](repeating: 0, count: size)
    area.store(ExtendedStateLayout.supported, at: headerOffset)
    let pkru = unsafe UInt64(cpu.s.pointee.pkru)
    area.withMutableBytes { area in
      withState(cpu) { state in
        let state = state.bytes
        area.copy(from: state.extracting(State.image..<State.image + Image.xmm))
        put(sse, from: state, &area, at: 0)
        for component in ExtendedStateLayout.components {
          let place = Int(component.offset)
          guard place + Int(component.size) <= size else { continue }
          if component.number == Self.pkru {
            area.storeBytes(of: pkru, toByteOffset: place, as: UInt64.self)
          }
          put(pieces[component.number] ?? [], from: state, &area, at: place)
        }
      }
    }
    return area
  }

  private static func put(
    _ pieces: [Piece], from state: RawSpan, _ area: inout MutableRawSpan, at place: Int
  ) {
    for piece in pieces {
      let source = state.extracting(piece.state..<piece.state + piece.count)
      area.copy(from: source, at: place + piece.area)
    }
  }

  /// - Parameter area: of `areaSize` bytes.
  static func restore(_ cpu: CPU, from area: RawSpan) throws(Errno) {
    guard let present = area.load(UInt64.self, at: headerOffset),
      let compaction = area.load(UInt64.self, at: headerOffset + 8),
      let mxcsr = area.load(UInt32.self, at: Image.mxcsr),
      present & ~ExtendedStateLayout.supported == 0, compaction == 0, mxcsr & ~MXCSR.mask == 0
    else { throw .invalidArgument }
    cpu.resetVectorState()
    initializeX87(cpu)
    if present & XCR0.x87.rawValue != 0 { take(x87, cpu, from: area) }
    if present & XCR0.sse.rawValue != 0 { take(sse, cpu, from: area) }
    if present & (XCR0.sse.rawValue | XCR0.avx.rawValue) != 0 { cpu.mxcsr = mxcsr }
    unsafe cpu.s.pointee.pkru = 0
    for component in ExtendedStateLayout.components
    where present & 1 << UInt64(component.number) != 0 {
      let place = Int(component.offset)
      if component.number == pkru {
        let value = area.load(UInt64.self, at: place) ?? 0
        unsafe cpu.s.pointee.pkru = value & 0xFFFF_FFFF
      }
      take(pieces[component.number] ?? [], cpu, from: area.extracting(place...))
    }
    cpu.normalizeX87()
  }

  private static func take(_ pieces: [Piece], _ cpu: CPU, from area: RawSpan) {
    withState(cpu) { state in
      for piece in pieces {
        state.copy(
          from: area.extracting(piece.area..<piece.area + piece.count), at: piece.state)
      }
    }
  }
}
