// SPDX-License-Identifier: Apache-2.0
//
// Why guest code exited, and the information that the hypervisor needs, vendor-neutral. A backend
// converts its exit information to it (`VMX+ExitTable.swift`); `VirtualCPU+ExitHandlers.swift`
// handles it for every vendor. The backend has already done vendor-specific work (closing a window,
// writing a shadow register).
//
//     let exit = backend.takeExit()        // such as .port(PortExit(...))
//     let disposition = vcpu.handle(exit)

public enum GuestExit: Sendable {
  /// An intercepted exception.
  ///
  /// - Parameter debugCauses: of #DB, in DR6's format.
  case exception(GuestEvent, debugCauses: UInt64)
  /// Another thread kicked the processor: the run loop checks the requests.
  case externalInterrupt
  /// An access of the processor found that the client's memory has vanished.
  case hostFault
  case tripleFault
  /// An interrupt, or an NMI, can be delivered now.
  case interruptWindow
  case nmiWindow
  case taskSwitch(selector: UInt16, source: TaskSwitchSource)
  case instruction(InterceptedInstruction)
  case controlRegister(number: UInt8, general: Int, isWrite: Bool)
  case debugRegister(number: Int, general: Int, isRead: Bool)
  case port(PortExit)
  case stringPort(StringPortExit)
  /// An access that the nested page tables deny.
  case nestedFault(NestedFault)
  /// An instruction of a single-stepped guest has finished.
  case singleStep
  case busLock
  /// The guest delayed exits for too long.
  case notify(isContextLost: Bool)
  /// The backend has handled it completely: enter again.
  case handled(Cause)
  /// VM entry failed because of the guest's state or the control block.
  case entryFailed(reason: UInt64)
  /// An exit unknown to this hypervisor, by the vendor's number.
  ///
  /// - Parameter detail: its information for a report; nil: none.
  case unexpected(code: UInt64, detail: UInt64?)
}

/// Instructions whose exits carry no further information.
public enum InterceptedInstruction: UInt8, Sendable, CaseIterable {
  case cpuid, hlt, rdmsr, wrmsr, xsetbv, pause, rdpmc, rdtsc, rdtscp
  /// VMCALL, VMMCALL.
  case hypercall
  /// MONITOR, MWAIT.
  case monitorWait
  /// WBINVD, INVD.
  case cacheFlush
  /// The backend has flushed the page's translations.
  case invlpg
  /// The backend has done a control register write.
  case controlRegisterWrite
  /// VMRUN and its like, or VMXON and its like: of a guest that is a hypervisor.
  case virtualization
  /// One that this machine does not have.
  case undefined
  /// An unrequested exit: the instruction is emulated.
  case emulated
}

/// IN or OUT.
public struct PortExit: Sendable {
  public var number: UInt16
  /// Bytes: 1, 2 or 4.
  public var size: UInt8
  public var isInput: Bool

  @inlinable public init(number: UInt16, size: UInt8, isInput: Bool) {
    self.number = number
    self.size = size
    self.isInput = isInput
  }
}

/// INS or OUTS; the port is in DX.
public struct StringPortExit: Sendable {
  public var size: Int
  public var isInput: Bool
  public var isRepeated: Bool
  /// The address of the first item in memory.
  public var linear: UInt64
  /// The address-size mask of RCX, RSI and RDI.
  public var addressMask: UInt64

  @inlinable public init(
    size: Int, isInput: Bool, isRepeated: Bool, linear: UInt64, addressMask: UInt64
  ) {
    self.size = size
    self.isInput = isInput
    self.isRepeated = isRepeated
    self.linear = linear
    self.addressMask = addressMask
  }
}

public struct NestedFault: Sendable {
  /// Guest-physical.
  public var address: UInt64
  /// The linear address of the access, if there is one.
  public var linear: UInt64
  public var isWrite: Bool
  public var isFetch: Bool

  @inlinable public init(address: UInt64, linear: UInt64, isWrite: Bool, isFetch: Bool) {
    self.address = address
    self.linear = linear
    self.isWrite = isWrite
    self.isFetch = isFetch
  }
}

// MARK: Causes

extension GuestExit {
  /// The categories of exit statistics.
  public enum Cause: UInt8, Sendable, CaseIterable {
    case exception, externalInterrupt, hostFault, tripleFault, interruptWindow, nmiWindow
    case taskSwitch, controlRegister, debugRegister, port, nestedFault, singleStep, busLock, notify
    case entryFailed, unexpected
    case cpuid, hlt, rdmsr, wrmsr, xsetbv, pause, rdpmc, rdtsc, rdtscp, hypercall, monitorWait
    case cacheFlush, invlpg, virtualization, undefined, emulated

    /// The size of a table by cause.
    public static let count = allCases.count

    @inlinable public init(_ instruction: InterceptedInstruction) {
      self =
        switch instruction {
        case .cpuid: .cpuid
        case .hlt: .hlt
        case .rdmsr: .rdmsr
        case .wrmsr: .wrmsr
        case .xsetbv: .xsetbv
        case .pause: .pause
        case .rdpmc: .rdpmc
        case .rdtsc: .rdtsc
        case .rdtscp: .rdtscp
        case .hypercall: .hypercall
        case .monitorWait: .monitorWait
        case .cacheFlush: .cacheFlush
        case .invlpg: .invlpg
        case .controlRegisterWrite: .controlRegister
        case .virtualization: .virtualization
        case .undefined: .undefined
        case .emulated: .emulated
        }
    }
  }

  @inlinable public var cause: Cause {
    switch self {
    case .exception: .exception
    case .externalInterrupt: .externalInterrupt
    case .hostFault: .hostFault
    case .tripleFault: .tripleFault
    case .interruptWindow: .interruptWindow
    case .nmiWindow: .nmiWindow
    case .taskSwitch: .taskSwitch
    case .instruction(let instruction): Cause(instruction)
    case .controlRegister: .controlRegister
    case .debugRegister: .debugRegister
    case .port, .stringPort: .port
    case .nestedFault: .nestedFault
    case .singleStep: .singleStep
    case .busLock: .busLock
    case .notify: .notify
    case .handled(let cause): cause
    case .entryFailed: .entryFailed
    case .unexpected: .unexpected
    }
  }
}
