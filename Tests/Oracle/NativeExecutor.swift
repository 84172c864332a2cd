// SPDX-License-Identifier: Apache-2.0
//
// Runs a slot on the host processor.
//
// A stub loads the whole state from a page at a fixed address, the stack pointer included, and
// jumps to the slot; the landing pads jump to a second stub that stores the whole state there. A
// fault comes as a signal on its own stack; the handler, which is emitted code too because the FS
// base may be the guest's then, notes the trap and continues at the second stub. `running` tells
// the faults of guest code from those of the test itself, which are left to kill it.
//
// The handlers, the signal stack and the fixed addresses are the process's, and guest code runs
// with the guest's stack pointer and FS base, which no other handler of a signal survives: so it
// needs a process in which nothing else handles signals (see Workers).

import CHost
import Host
import SystemPackage
import X86
import X86CPU

#if canImport(Glibc)
  import Glibc
#endif

/// What lies where in the context page.
private enum Context {
  static let input = Layout.context
  static let output = Layout.context + 0x100
  static let flags: UInt64 = 128
  static let rip: UInt64 = 136
  static let gs: UInt64 = 144
  static let fs: UInt64 = 152
  static let trap = Layout.context + 0x200
  static let errorCode = trap + 8
  static let address = trap + 16
  static let hostStack = Layout.context + 0x220
  static let hostFS = Layout.context + 0x228
  static let running = Layout.context + 0x230
  static let capture = Layout.context + 0x238
  static let mxcsr = Layout.context + 0x240
  static let vectorIn = Layout.context + 0x400
  static let vectorOut = Layout.context + 0x1400
  static let size = 0x3000

  static let zmm: UInt64 = 0
  static let fx = UInt64(MemoryLayout<VectorState>.offset(of: \.fx)!)
  static let opmask = UInt64(MemoryLayout<VectorState>.offset(of: \.opmask)!)
}

package final class NativeExecutor: Executor {
  package let name = "host"
  package let sandbox: UnsafeMutableRawPointer
  private let code: UnsafeMutableRawPointer
  private let codeSize = Int(Layout.slots - Layout.stubs) + Layout.slotBytes
  private let signalStack: UnsafeMutableRawPointer
  private static let signalStackSize = 256 << 10
  private static let signals = [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP]
  private var oldActions: [sigaction] = []
  private let vectorSize: Int
  private var enter: [UInt64] = []
  private var capture: [UInt64] = []
  private var handler: UInt64 = 0
  private var padTarget: UInt64 = 0

  private typealias Stub = @convention(c) () -> Void

  package init() throws(Errno) {
    let features = HostFeatures.current
    vectorSize = features.hasAVX512 ? 64 : features.hasAVX ? 32 : 16
    let file = try MemoryFile(name: "martlet-oracle", size: codeSize)
    _ = try Self.map(Layout.context, Context.size, PROT_READ | PROT_WRITE)
    let guarded = Int(2 * Layout.guardSize) + Layout.sandboxSize
    _ = try Self.map(Layout.sandbox - Layout.guardSize, guarded, PROT_NONE)
    sandbox = try Self.mapSandbox()
    _ = try Self.map(
      Layout.stubs, codeSize, PROT_READ | PROT_EXEC, descriptor: file.descriptor.rawValue)
    let writable = mmap(
      nil, codeSize, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor.rawValue, 0)
    guard let writable, writable != MAP_FAILED else { throw Errno(rawValue: errno) }
    code = writable
    signalStack = .allocate(byteCount: Self.signalStackSize, alignment: 4096)
    emitStubs()
    installHandlers()
  }

  deinit {
    for (signal, action) in zip(Self.signals, oldActions) {
      var action = action
      sigaction(signal, &action, nil)
    }
    munmap(code, codeSize)
    munmap(UnsafeMutableRawPointer(bitPattern: UInt(Layout.stubs)), codeSize)
    munmap(UnsafeMutableRawPointer(bitPattern: UInt(Layout.context)), Context.size)
    munmap(
      UnsafeMutableRawPointer(bitPattern: UInt(Layout.sandbox - Layout.guardSize)),
      Int(2 * Layout.guardSize) + Layout.sandboxSize)
    var off = stack_t()
    off.ss_flags = Int32(SS_DISABLE)
    sigaltstack(&off, nil)
    signalStack.deallocate()
  }

  private static let fixedNoReplace: Int32 = 0x10_0000

  private static func map(
    _ address: UInt64, _ size: Int, _ protection: Int32, descriptor: Int32 = -1,
    replace: Bool = false
  ) throws(Errno) -> UnsafeMutableRawPointer {
    var flags = descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED
    flags |= replace ? MAP_FIXED : fixedNoReplace
    let place = UnsafeMutableRawPointer(bitPattern: UInt(address))
    let result = mmap(place, size, protection, flags, descriptor, 0)
    guard let result, result != MAP_FAILED else { throw Errno(rawValue: errno) }
    guard result == place else {
      munmap(result, size)
      throw .fileExists
    }
    return result
  }

  /// The sandbox is one file mapped twice: the read-only page is written through the second
  /// mapping.
  private static func mapSandbox() throws(Errno) -> UnsafeMutableRawPointer {
    let file = try MemoryFile(name: "martlet-sandbox", size: Layout.sandboxSize)
    let fd = file.descriptor.rawValue
    let place = try map(
      Layout.sandbox, Layout.sandboxSize, PROT_READ | PROT_WRITE, descriptor: fd, replace: true)
    mprotect(
      place + Layout.writableSize, Layout.sandboxSize - Layout.writableSize, PROT_READ)
    let twin = mmap(nil, Layout.sandboxSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    guard let twin, twin != MAP_FAILED else { throw Errno(rawValue: errno) }
    for page in stride(from: 0, to: Layout.sandboxSize, by: 4096) {
      twin.storeBytes(of: 1, toByteOffset: page, as: UInt8.self)
      _ = place.load(fromByteOffset: page, as: UInt8.self)
      if page < Layout.writableSize { place.storeBytes(of: 1, toByteOffset: page, as: UInt8.self) }
    }
    return twin
  }
}

// MARK: Stubs

extension NativeExecutor {
  private func emitStubs() {
    var w = CodeWriter(code, linear: Layout.stubs)
    padTarget = w.here
    w.jump(through: Context.capture)
    for vector in [false, true] {
      capture.append(w.here)
      emitCapture(&w, vector: vector)
      enter.append(w.here)
      emitEnter(&w, vector: vector)
    }
    handler = w.here
    emitHandler(&w)
  }

  private static let saved: [UInt8] = [3, 5, 12, 13, 14, 15]

  private func emitEnter(_ w: inout CodeWriter, vector: Bool) {
    for register in Self.saved { w.push(register) }
    w.store(4, Context.hostStack)
    w.baseOfSegment(0)
    w.store(0, Context.hostFS)
    if vector { emitVectors(&w, Context.vectorIn, store: false) }
    w.load(0, Context.input + Context.gs)
    w.baseOfSegment(3)
    w.setDword(Context.running, 1)
    w.load(0, Context.input + Context.fs)
    w.baseOfSegment(2)
    w.bytes(0xFF)  // push the flags, popfq
    w.absolute(6, Context.input + Context.flags)
    w.bytes(0x9D)
    for register: UInt8 in 0..<16 { w.load(register, Context.input + UInt64(register) * 8) }
    w.jump(through: Context.input + Context.rip)
  }

  private func emitCapture(_ w: inout CodeWriter, vector: Bool) {
    for register: UInt8 in 0..<16 { w.store(register, Context.output + UInt64(register) * 8) }
    w.load(4, Context.hostStack)
    w.bytes(0x9C, 0x8F)  // pushfq, pop the flags
    w.absolute(0, Context.output + Context.flags)
    w.bytes(0x68)
    w.dword(0x202)
    w.bytes(0x9D)
    w.baseOfSegment(1)
    w.store(0, Context.output + Context.gs)
    w.baseOfSegment(0)
    w.store(0, Context.output + Context.fs)
    w.load(0, Context.hostFS)
    w.baseOfSegment(2)
    w.setDword(Context.running, 0)
    if vector {
      emitVectors(&w, Context.vectorOut, store: true)
      w.bytes(0xDB, 0xE3, 0x0F, 0xAE)  // fninit, ldmxcsr
      w.absolute(2, Context.mxcsr)
      if vectorSize > 16 { w.bytes(0xC5, 0xF8, 0x77) }  // vzeroupper
    }
    for register in Self.saved.reversed() { w.pop(register) }
    w.bytes(0xC3)
  }

  private func emitVectors(_ w: inout CodeWriter, _ base: UInt64, store: Bool) {
    w.bytes(0x48, 0x0F, 0xAE)  // fxsave64, fxrstor64
    w.absolute(store ? 0 : 1, base + Context.fx)
    for register: UInt8 in 0..<(vectorSize == 64 ? 32 : 16) {
      w.moveVector(
        register, base + Context.zmm + UInt64(register) * 64, size: vectorSize, store: store)
    }
    guard vectorSize == 64 else { return }
    for register: UInt8 in 0..<8 {
      w.moveMask(register, base + Context.opmask + UInt64(register) * 8, store: store)
    }
  }

  /// The signal handler: the ucontext is in RDX.
  private func emitHandler(_ w: inout CodeWriter) {
    w.bytes(0x83)  // cmp dword [running], 0
    w.absolute(7, Context.running)
    w.bytes(0x00)
    w.bytes(0x75, 0x02, 0x0F, 0x0B)  // jne over; ud2: kills the process, the signal is blocked
    let copies: [(UInt32, UInt64)] = [
      (200, Context.trap), (192, Context.errorCode), (216, Context.address),
      (168, Context.output + Context.rip),
    ]
    for (offset, address) in copies {
      w.bytes(0x48, 0x8B, 0x82)  // mov rax, [rdx + offset]
      w.dword(offset)
      w.store(0, address)
    }
    w.load(0, Context.capture)
    w.bytes(0x48, 0x89, 0x82)  // RIP
    w.dword(168)
    w.bytes(0x81, 0xA2)  // and dword [flags], ~TF
    w.dword(176)
    w.dword(~0x100)
    w.bytes(0xC3)
  }

  private func installHandlers() {
    var stack = stack_t()
    stack.ss_sp = signalStack
    stack.ss_size = Self.signalStackSize
    sigaltstack(&stack, nil)
    typealias Action =
      @convention(c) (Int32, UnsafeMutablePointer<siginfo_t>?, UnsafeMutableRawPointer?) -> Void
    for signal in Self.signals {
      var action = sigaction()
      action.__sigaction_handler.sa_sigaction = unsafeBitCast(UInt(handler), to: Action.self)
      action.sa_flags = SA_SIGINFO | SA_ONSTACK
      var old = sigaction()
      sigaction(signal, &action, &old)
      oldActions.append(old)
    }
  }
}

// MARK: Running

extension NativeExecutor {
  package func startRound() {}

  package func load(_ bytes: UnsafeRawBufferPointer, slot: Int) {
    let offset = Int(Layout.slots - Layout.stubs) + slot * Layout.slotSize
    for pad in Layout.padOffsets { emitPad(offset + pad) }
    let start = offset + Layout.instructionOffset
    (code + start).copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
    emitPad(start + bytes.count)
  }

  package func load(_ bytes: UnsafeRawBufferPointer, block: UInt64) {
    let offset = Int(block - Layout.stubs)
    (code + offset).copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
    emitPad(offset + bytes.count)
  }

  /// 16 bytes: notes its own address and captures, without a change of state.
  private func emitPad(_ offset: Int) {
    var w = CodeWriter(code + offset, linear: Layout.stubs + UInt64(offset))
    w.setDword(Context.output + Context.rip, UInt32(truncatingIfNeeded: w.here))
    w.jump(to: padTarget)
  }

  private func at<T>(_ address: UInt64, _ type: T.Type) -> UnsafeMutablePointer<T> {
    UnsafeMutablePointer<T>(bitPattern: UInt(address)).unsafelyUnwrapped
  }

  package func run(
    _ input: UnsafePointer<Registers>, vector: UnsafeMutablePointer<VectorState>?,
    into outcome: UnsafeMutablePointer<Outcome>
  ) {
    at(Context.input, Registers.self).pointee = input.pointee
    at(Context.output + Context.rip, UInt64.self).pointee = 0
    at(Context.trap, UInt64.self).pointee = Fault.none
    at(Context.mxcsr, UInt64.self).pointee = 0x1F80
    let which = vector == nil ? 0 : 1
    at(Context.capture, UInt64.self).pointee = capture[which]
    if let vector {
      at(Context.vectorIn, VectorState.self).pointee = vector.pointee
      at(Context.vectorOut, VectorState.self).pointee = vector.pointee
    }
    unsafeBitCast(UInt(enter[which]), to: Stub.self)()
    if let vector { vector.pointee = at(Context.vectorOut, VectorState.self).pointee }
    outcome.pointee.registers = at(Context.output, Registers.self).pointee
    outcome.pointee.fault = at(Context.trap, Fault.self).pointee
    let vectorNumber = outcome.pointee.fault.vector
    if vectorNumber != 14 { outcome.pointee.fault.address = 0 }
    if vectorNumber == Fault.none { outcome.pointee.fault.errorCode = 0 }
    // Whether a page of the sandbox was in memory just then is the host kernel's affair. A read
    // fails at the page behind it, though its address may be that of an element's first byte.
    let code = PageFaultCode(
      rawValue: UInt32(truncatingIfNeeded: outcome.pointee.fault.errorCode))
    if code.contains(.write),
      outcome.pointee.fault.address &- Layout.sandbox < UInt64(Layout.sandboxSize)
    {
      outcome.pointee.fault.errorCode |= UInt64(PageFaultCode.present.rawValue)
    }
  }
}
