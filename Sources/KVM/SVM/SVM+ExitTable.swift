// SPDX-License-Identifier: Apache-2.0
//
// Converts SVM's exit codes to vendor-neutral exits: one flat table, with a small function per code
// that decodes EXITINFO1 and EXITINFO2. A function that needs vendor-specific work (a window, a
// write of CR4) does it here.

import X86
import X86CPU

extension SVM {
  typealias Decoder = @Sendable (SVM) -> GuestExit

  /// By exit code, except the nested page fault's and VMEXIT_INVALID.
  private static let decoders: [Decoder] = {
    var table = [Decoder](repeating: unexpected, count: SVMExitCode.count)
    for (code, decoder) in entries { table[Int(code.rawValue)] = decoder }
    for number in 0..<UInt8(16) {
      table[Int(SVMExitCode.readDR(number).rawValue)] = debugRegister
      table[Int(SVMExitCode.writeDR(number).rawValue)] = debugRegister
    }
    for vector in 0..<UInt8(32) {
      table[Int(SVMExitCode.exception(vector).rawValue)] = exception
    }
    return table
  }()

  /// Codes without further information: a closure for each would count its context's references.
  private static let plainInstructions: [InterceptedInstruction?] = {
    var table = [InterceptedInstruction?](repeating: nil, count: SVMExitCode.count)
    for (code, instruction) in instructions { table[Int(code.rawValue)] = instruction }
    return table
  }()

  private static let entries: [(SVMExitCode, Decoder)] = [
    (.readCR(8), controlRegister), (.writeCR(8), controlRegister), (.writeCR(4), writeCR4),
    (.interrupt, interrupt), (.virtualInterrupt, interruptWindow), (.port, port), (.msr, msr),
    (.taskSwitch, taskSwitch), (.shutdown, { _ in .tripleFault }),
  ]

  /// Instructions that their code fully describes.
  private static let instructions: [(SVMExitCode, InterceptedInstruction)] = [
    (.cpuid, .cpuid), (.hlt, .hlt), (.xsetbv, .xsetbv), (.pause, .pause), (.rdpmc, .rdpmc),
    (.vmmcall, .hypercall), (.monitor, .monitorWait), (.mwait, .monitorWait),
    (.armedMWAIT, .monitorWait), (.invd, .cacheFlush), (.wbinvd, .cacheFlush),
    (.vmrun, .virtualization), (.vmload, .virtualization), (.vmsave, .virtualization),
    (.stgi, .virtualization), (.clgi, .virtualization), (.invlpga, .virtualization),
    (.rsm, .undefined), (.skinit, .undefined),
    (.rdpru, .undefined),
    // They exit only if the guest's CPUID lacks them.
    (.rdtscp, .undefined), (.invpcid, .undefined),
  ]

  func takeExit() -> GuestExit {
    if failure != nil { return .entryFailed(reason: 0) }
    let code = vmcb[.exitCode]
    if code == SVMExitCode.exception(ExceptionVector.debug.rawValue).rawValue {
      return debugException()
    }
    restoreDR6(isDebug: false)
    if code == SVMExitCode.nestedPageFault.rawValue { return nestedFault }
    if code == SVMExitCode.invalid.rawValue { return .entryFailed(reason: code) }
    guard code < UInt64(SVMExitCode.count) else { return Self.unexpected(self) }
    if let instruction = Self.plainInstructions[Int(code)] { return .instruction(instruction) }
    return Self.decoders[Int(code)](self)
  }

  private var code: UInt64 { vmcb[.exitCode] }
  private var info1: UInt64 { vmcb[.exitInfo1] }

  // MARK: Events

  private func debugException() -> GuestExit {
    let event = GuestEvent(
      exception: ExceptionVector.debug.rawValue, errorCode: nil, instructionLength: 0)
    return .exception(event, debugCauses: takeDebugCauses())
  }

  /// EXITINFO1 is the error code, even if the exception has none.
  private static let exception: Decoder = { svm in
    let vector = UInt8(truncatingIfNeeded: svm.code & 31)
    let event = GuestEvent(
      exception: vector, errorCode: UInt32(truncatingIfNeeded: svm.info1),
      instructionLength: UInt32(truncatingIfNeeded: svm.instructionLength))
    return .exception(event, debugCauses: 0)
  }

  private static let interrupt: Decoder = { svm in
    unsafe svm.cpu.hasHostFault ? .hostFault : .externalInterrupt
  }

  private static let interruptWindow: Decoder = { svm in
    svm.setInterruptWindow(false)
    return .interruptWindow
  }

  private static let taskSwitch: Decoder = { svm in
    let interrupts = SVMEvent(rawValue: svm.vmcb[.exitInterruptInfo]).isValid
    let source = SVMTaskSwitchInfo(rawValue: svm.vmcb[.exitInfo2]).source(interrupts: interrupts)
    return .taskSwitch(selector: UInt16(truncatingIfNeeded: svm.info1), source: source)
  }

  // MARK: Instructions

  private static let controlRegister: Decoder = { svm in
    let access = SVMControlRegisterInfo(rawValue: svm.info1)
    return .controlRegister(
      number: UInt8(truncatingIfNeeded: svm.code & 15), general: Int(access.general),
      isWrite: svm.code & 0x10 != 0)
  }

  /// The processor does the write, unless it sets a bit that the guest's CPUID lacks.
  private static let writeCR4: Decoder = { svm in
    let general = Int(SVMControlRegisterInfo(rawValue: svm.info1).general)
    let cpu = unsafe svm.cpu.cpu
    let value = unsafe cpu.is64Bit ? cpu.gpr[general] : cpu.gpr[general] & 0xFFFF_FFFF
    let refused = GuestExit.controlRegister(number: 4, general: general, isWrite: true)
    if value & ~svm.allowedCR4 != 0 { return refused }
    do throws(GuestException) {
      guard try unsafe svm.cpu.writeControlRegister4(value) else { return .hostFault }
    } catch {
      return error.isVMExit ? svm.nestedFaultOfWrite : refused
    }
    svm.stateChangedInPlace()
    return .instruction(.controlRegisterWrite)
  }

  private static let debugRegister: Decoder = { svm in
    .debugRegister(
      number: Int(svm.code & 15), general: Int(svm.info1 & 15), isRead: svm.code < 0x30)
  }

  private static let msr: Decoder = { svm in
    .instruction(svm.info1 & 1 != 0 ? .wrmsr : .rdmsr)
  }

  private static let port: Decoder = { svm in
    let access = SVMPortInfo(rawValue: svm.info1)
    guard access.isString else {
      return .port(PortExit(number: access.port, size: access.size, isInput: access.isInput))
    }
    let mask: UInt64 =
      access.addressSize == 2 ? 0xFFFF : access.addressSize == 4 ? 0xFFFF_FFFF : .max
    return .stringPort(
      StringPortExit(
        size: Int(access.size), isInput: access.isInput, isRepeated: access.isRepeated,
        linear: svm.linear(of: access, mask), addressMask: mask))
  }

  /// The memory operand of INS and OUTS, which is in no field.
  private func linear(of access: SVMPortInfo, _ mask: UInt64) -> UInt64 {
    let register: GeneralRegister = access.isInput ? .rdi : .rsi
    let offset = unsafe cpu.cpu.gpr[Int(register.rawValue)] & mask
    let segment: SegmentRegister = access.isInput ? .es : access.segment
    let isFlat = unsafe cpu.cpu.is64Bit && segment != .fs && segment != .gs
    let linear = offset &+ (isFlat ? 0 : self.segment(segment).base)
    return unsafe cpu.cpu.is64Bit ? linear : linear & 0xFFFF_FFFF
  }

  // MARK: Memory

  private var nestedFault: GuestExit {
    let info = NestedFaultInfo(rawValue: info1)
    return .nestedFault(
      NestedFault(
        address: vmcb[.exitInfo2], linear: 0, isWrite: info.contains(.write),
        isFetch: info.contains(.fetch)))
  }

  /// A PAE page directory that is not mapped yet.
  private var nestedFaultOfWrite: GuestExit {
    unsafe .nestedFault(
      NestedFault(
        address: cpu.cpu.s.pointee.exit.physical, linear: 0, isWrite: false, isFetch: false))
  }

  // MARK: Failures

  private static let unexpected: Decoder = { svm in
    .unexpected(code: svm.code, detail: svm.info1)
  }
}
