// SPDX-License-Identifier: Apache-2.0
//
// L1's VMX instructions, each in the order of its operation section (SDM volume 3, "VMX Instruction
// Reference"). The processor has checked the mode. An address in L1's operand is guest-physical and
// goes through the machine's memory.

import X86
import X86CPU

/// How an instruction ends (SDM volume 3, "Conventions" of the VMX instruction reference).
enum VMXOutcome: Error {
  case succeed
  case failInvalid
  /// VMfailValid where there is a current VMCS.
  case fail(VMXInstructionError)
  case exception(GuestException)
  /// Another exit came first: the instruction is executed again.
  case again(Disposition)
}

extension NestedVMX {
  func execute(_ vcpu: VirtualCPU) -> Disposition {
    guard vcpu.cpuid.features.contains(.vmx) else {
      return finish(.exception(.invalidOpcode), vcpu)
    }
    do throws(VMXOutcome) {
      return finish(try perform(vcpu), vcpu)
    } catch {
      return finish(error, vcpu)
    }
  }

  private var exitReason: ExitReason {
    ExitReason(rawValue: UInt16(truncatingIfNeeded: vmx.read(.exitReason)))
  }

  private func perform(_ vcpu: VirtualCPU) throws(VMXOutcome) -> VMXOutcome {
    let reason = exitReason
    if reason == .vmxon { return try vmxon(vcpu) }
    guard vmxonPointer != nil else { throw .exception(.invalidOpcode) }
    guard vcpu.cpu.cpl == 0 else { throw .exception(.generalProtection) }
    switch reason {
    case .vmxoff: return vmxoff(vcpu)
    case .vmclear: return try vmclear(vcpu)
    case .vmptrld: return try vmptrld(vcpu)
    case .vmptrst:
      try store(currentPointer ?? .max, size: 8, vcpu)
      return .succeed
    case .vmread: return try vmread(vcpu)
    case .vmwrite: return try vmwrite(vcpu)
    case .vmlaunch: return try enter(vcpu, launches: true)
    case .vmresume: return try enter(vcpu, launches: false)
    case .invept: return try invept(vcpu)
    case .invvpid: return try invvpid(vcpu)
    default: throw .exception(.invalidOpcode)
    }
  }

  private func finish(_ outcome: VMXOutcome, _ vcpu: VirtualCPU) -> Disposition {
    switch outcome {
    case .succeed: setFlags(0)
    case .failInvalid: setFlags(RFLAGS.cf.rawValue)
    case .fail(let number): setFailure(number)
    case .exception(let exception):
      if exception.vector == ExceptionVector.pageFault.rawValue {
        unsafe vcpu.cpu.s.pointee.cr2 = vcpu.cpu.s.pointee.faultAddress
      }
      vcpu.raise(exception)
      return .resume
    case .again(let disposition): return disposition
    }
    vcpu.advance()
    return .resume
  }

  private func setFlags(_ flags: UInt64) {
    vmx[.rflags] = vmx[.rflags] & ~RFLAGS.arithmetic.rawValue | flags
  }

  /// VMfail(number).
  func setFailure(_ number: VMXInstructionError) {
    guard currentPointer != nil else { return setFlags(RFLAGS.cf.rawValue) }
    setFlags(RFLAGS.zf.rawValue)
    block.fields[.vmInstructionError] = UInt64(number.rawValue)
  }

  // MARK: Operands

  private func operands() -> VMXOperands {
    VMXOperands(rawValue: UInt32(truncatingIfNeeded: vmx.read(.exitInstructionInfo)))
  }

  /// Bytes of a register operand.
  private func width(_ vcpu: VirtualCPU) -> Int { vcpu.cpu.is64Bit ? 8 : 4 }

  private func register(_ number: Int, _ vcpu: VirtualCPU) -> UInt64 {
    let value = unsafe vcpu.cpu.gpr[number]
    return vcpu.cpu.is64Bit ? value : value & 0xFFFF_FFFF
  }

  private func load(size: Int, _ vcpu: VirtualCPU) throws(VMXOutcome) -> ExitOperand {
    try access(vcpu) { (cpu) throws(GuestException) in try cpu.loadExitOperand(size: size) }
  }

  private func store(_ value: UInt64, size: Int, _ vcpu: VirtualCPU) throws(VMXOutcome) {
    _ = try access(vcpu) { (cpu) throws(GuestException) -> ExitOperand? in
      try cpu.storeExitOperand(value, size: size) ? ExitOperand() : nil
    }
  }

  private func access(
    _ vcpu: VirtualCPU, _ body: (PhysicalCPU) throws(GuestException) -> ExitOperand?
  ) throws(VMXOutcome) -> ExitOperand {
    guard let slot = vcpu.slot else { throw .again(.resume) }
    vcpu.mailbox.enter(slot.index)
    defer { vcpu.leaveGuest() }
    guard vcpu.isMemoryCurrent(slot) else { throw .again(.resume) }
    let value: ExitOperand?
    do throws(GuestException) {
      value = try body(slot.cpu)
    } catch {
      if error.isVMExit { throw .again(vcpu.handle(vmx.takeExit())) }
      throw .exception(error)
    }
    guard let value else { throw .again(vcpu.memoryVanished()) }
    return value
  }

  /// The address of a region in the operand; nil if no region can be there.
  private func region(_ vcpu: VirtualCPU) throws(VMXOutcome) -> UInt64? {
    let address = try load(size: 8, vcpu).low
    return Self.isPage(address, vcpu) ? address : nil
  }

  static func isPage(_ address: UInt64, _ vcpu: VirtualCPU) -> Bool {
    address & Page.offsetMask == 0 && !vcpu.isBeyondWidth(address)
      && address >> CPU.physicalAddressBits == 0
  }

  // MARK: VMX operation

  private func vmxon(_ vcpu: VirtualCPU) throws(VMXOutcome) -> VMXOutcome {
    guard vmx[.cr4] & CR4.vmxe.rawValue != 0 else { throw .exception(.invalidOpcode) }
    guard vcpu.cpu.cpl == 0 else { throw .exception(.generalProtection) }
    if vmxonPointer != nil { return .fail(.vmxonInRootOperation) }
    let (cr0, cr4) = (vmx[.cr0], vmx[.cr4])
    guard cr0 & capabilities.cr0Fixed0 == capabilities.cr0Fixed0,
      cr4 & capabilities.cr4Fixed0 == capabilities.cr4Fixed0, isEnabledByFirmware
    else { throw .exception(.generalProtection) }
    guard let address = try region(vcpu),
      vcpu.memory.load(address) == NestedVMXCapabilities.revision
    else { return .failInvalid }
    beginOperation(address)
    return .succeed
  }

  private func vmxoff(_ vcpu: VirtualCPU) -> VMXOutcome {
    writeBack(vcpu)
    endOperation()
    return .succeed
  }

  // MARK: The current VMCS

  private func vmclear(_ vcpu: VirtualCPU) throws(VMXOutcome) -> VMXOutcome {
    guard let address = try region(vcpu) else { return .fail(.vmclearInvalidAddress) }
    if address == vmxonPointer { return .fail(.vmclearVMXONPointer) }
    if address == currentPointer {
      isLaunched = false
      writeBack(vcpu)
      currentPointer = nil
      vmx.setShadow(nil)
    } else {
      _ = vcpu.writeMemory(address &+ UInt64(VMCSPage.launchState), count: 4) {
        $0.storeBytes(of: 0, as: UInt32.self)
      }
    }
    return .succeed
  }

  private func vmptrld(_ vcpu: VirtualCPU) throws(VMXOutcome) -> VMXOutcome {
    guard let address = try region(vcpu) else { return .fail(.vmptrldInvalidAddress) }
    if address == vmxonPointer { return .fail(.vmptrldVMXONPointer) }
    guard vcpu.memory.load(address) == NestedVMXCapabilities.revision else {
      return .fail(.vmptrldIncorrectRevision)
    }
    if address == currentPointer { return .succeed }
    writeBack(vcpu)
    currentPointer = nil
    let header = Self.header
    guard
      unsafe vcpu.memory.read(
        address &+ UInt64(header), to: block.bytes + header, count: 4096 - header)
    else { return .fail(.vmptrldIncorrectRevision) }
    block.fields.truncateFields()
    let state: UInt32? = vcpu.memory.load(address &+ UInt64(VMCSPage.launchState))
    isLaunched = state == 1
    currentPointer = address
    vmx.setShadow(block)
    return .succeed
  }

  /// Bytes before the first field.
  private static let header = VMCSPage.guestState.lowerBound

  /// Writes vmcs12 to L1's memory.
  func writeBack(_ vcpu: VirtualCPU) {
    guard let address = currentPointer else { return }
    let (block, state) = (block, UInt32(isLaunched ? 1 : 0))
    _ = vcpu.writeMemory(address, count: 4096) { place in
      place.storeBytes(of: state, toByteOffset: VMCSPage.launchState, as: UInt32.self)
      unsafe place.copyMemory(
        at: Self.header, from: block.bytes + Self.header, byteCount: 4096 - Self.header)
    }
  }

  /// Called only for accesses that the shadow VMCS does not cover.
  private func vmread(_ vcpu: VirtualCPU) throws(VMXOutcome) -> VMXOutcome {
    guard currentPointer != nil else { return .failInvalid }
    let operands = operands()
    guard let field = field(operands.other, vcpu) else { return .fail(.unsupportedField) }
    let value = block.fields[field]
    if operands.isRegister {
      unsafe vcpu.cpu.gpr[operands.register] = vcpu.cpu.is64Bit ? value : value & 0xFFFF_FFFF
    } else {
      try store(value, size: width(vcpu), vcpu)
    }
    return .succeed
  }

  private func vmwrite(_ vcpu: VirtualCPU) throws(VMXOutcome) -> VMXOutcome {
    guard currentPointer != nil else { return .failInvalid }
    let operands = operands()
    let value =
      operands.isRegister
      ? register(operands.register, vcpu) : try load(size: width(vcpu), vcpu).low
    guard let field = field(operands.other, vcpu) else { return .fail(.unsupportedField) }
    block.fields[field] = value
    return .succeed
  }

  /// The field that a register names.
  private func field(_ register: Int, _ vcpu: VirtualCPU) -> VMCSField? {
    let encoding = self.register(register, vcpu)
    let field = VMCSField(rawValue: UInt32(truncatingIfNeeded: encoding))
    return encoding >> 32 == 0 && Self.hasField(field) ? field : nil
  }

  // MARK: Translations

  private func invept(_ vcpu: VirtualCPU) throws(VMXOutcome) -> VMXOutcome {
    guard capabilities.secondary.allowed & SecondaryControls.enableEPT != 0,
      capabilities.eptVPID & EPTCapabilities.invept != 0
    else { throw .exception(.invalidOpcode) }
    let type = register(operands().other, vcpu)
    let offered = capabilities.eptVPID & EPTCapabilities.inveptTypes
    guard type == 1 || type == 2, offered >> (24 &+ type) & 1 != 0 else {
      return .fail(.invalidOperandToInvalidate)
    }
    let pointer = try load(size: 16, vcpu).low
    if type == 1 {
      guard Self.isPage(pointer & Page.mask, vcpu),
        pointer & (EPTPointer.reserved | EPTPointer.levelsMask) == EPTPointer.fourLevels
      else { return .fail(.invalidOperandToInvalidate) }
      clearShadows(of: pointer)
    } else {
      shadows.clear()
    }
    return .succeed
  }

  /// L2's own translations are dropped whenever L1 runs, as the TLB holds one guest's at a time.
  private func invvpid(_ vcpu: VirtualCPU) throws(VMXOutcome) -> VMXOutcome {
    guard capabilities.secondary.allowed & SecondaryControls.enableVPID != 0,
      capabilities.eptVPID & EPTCapabilities.invvpid != 0
    else { throw .exception(.invalidOpcode) }
    let type = register(operands().other, vcpu)
    let offered = capabilities.eptVPID & EPTCapabilities.invvpidTypes
    guard type < 4, offered >> (40 &+ type) & 1 != 0 else {
      return .fail(.invalidOperandToInvalidate)
    }
    let descriptor = try load(size: 16, vcpu)
    let linear = descriptor.high
    let isCanonical = UInt64(bitPattern: Int64(bitPattern: linear << 7) >> 7) == linear
    guard descriptor.low >> 16 == 0, type == 2 || descriptor.low & 0xFFFF != 0,
      type != 0 || isCanonical
    else { return .fail(.invalidOperandToInvalidate) }
    return .succeed
  }
}

/// The VM-exit instruction-information field of instructions with a register and a memory operand
/// (SDM volume 3, "Information for VM Exits Due to Instruction Execution"):
///
///     6:3 the operand's register   10 it is a register   31:28 the other register
private struct VMXOperands {
  var rawValue: UInt32
  var register: Int { Int(rawValue >> 3 & 15) }
  var isRegister: Bool { rawValue & 1 << 10 != 0 }
  var other: Int { Int(rawValue >> 28) }
}
