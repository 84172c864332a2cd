// SPDX-License-Identifier: Apache-2.0
//
// A guest that is a hypervisor, on Intel's processor: L1 is a few instructions in 64-bit mode, L2 a
// few in real mode, with EPT that maps its first 2 MiB to L1's.
//
//     0x1000 L1, up to its entry    0x1100 L1, behind the exit    0x3000 operands in memory
//     0x4000 vmcs12   0x5000 VMXON region   0x6000 I/O bitmaps   0x9000 MSR bitmap
//     0x10000 L1's tables   0x14000 EPT   0x17000 virtual APIC   0x18000 L2

import CHost
import KVMClient
import SystemPackage
import Testing
import X86
import X86CPU

/// L1, its L2, and what is between them.
private final class NestedGuest {
  let client: Client
  /// vmcs12 in L1's memory.
  let fields: VMCSPage

  static let vmxon: [UInt8] = [0xF3, 0x0F, 0xC7, 0x34, 0x25, 0x00, 0x30, 0, 0]
  static let vmptrld: [UInt8] = [0x0F, 0xC7, 0x34, 0x25, 0x08, 0x30, 0, 0]
  static let vmclear: [UInt8] = [0x66, 0x0F, 0xC7, 0x34, 0x25, 0x08, 0x30, 0, 0]
  static let vmlaunch: [UInt8] = [0x0F, 0x01, 0xC2]
  static let vmresume: [UInt8] = [0x0F, 0x01, 0xC3]
  static let vmxoff: [UInt8] = [0x0F, 0x01, 0xC4]
  /// lahf; mov al, ah; out 0xE8, al
  static let tellFlags: [UInt8] = [0x9F, 0x88, 0xE0, 0xE6, 0xE8]
  /// mov ecx, VM-instruction error; vmread rax, rcx; out 0xE7, al
  static let tellError: [UInt8] = [0xB9, 0, 0x44, 0, 0, 0x0F, 0x78, 0xC8, 0xE6, 0xE7]
  static let cpuid: [UInt8] = [0x0F, 0xA2]

  /// - Parameters:
  ///   - l1: up to the entry.
  ///   - l2: in real mode at 1800:0000.
  init(
    l1: [UInt8] = vmxon + vmptrld + vmlaunch + tellFlags + tellError, l2: [UInt8] = cpuid,
    isOn: Bool = true, chips: Client.Chips = .none
  ) throws {
    client = try Client(chips: chips)
    fields = VMCSPage(base: client.memory + 0x4000)
    try client.setLongMode()
    #expect(try client.setMSR(MSR.featureControl.rawValue, 5))
    try client.changeSpecial {
      $0.cr0 |= CR0.ne.rawValue
      if isOn { $0.cr4 |= CR4.vmxe.rawValue }
    }
    client.load(l1)
    // Behind the exit: vmclear; mov al, bl; out 0xE9, al; hlt
    client.load(Self.vmclear + [0x88, 0xD8, 0xE6, 0xE9, 0xF4], at: 0x1100)
    client.load(l2, at: 0x18000)
    store(UInt64(0x5000), at: 0x3000)
    store(UInt64(0x4000), at: 0x3008)
    let basic = try #require(try client.msr(MSR.vmxBasic.rawValue))
    for region in [0x4000, 0x5000] { store(UInt32(truncatingIfNeeded: basic), at: region) }
    setControls()
    setHost()
    setGuest()
    // EPT: 2 MiB, read, write, execute; write-back.
    store(UInt64(0x15007), at: 0x14000)
    store(UInt64(0x16007), at: 0x15000)
    store(UInt64(0xB7), at: 0x16000)
  }

  func store<T: FixedWidthInteger>(_ value: T, at address: Int) {
    client.memory.storeBytes(of: value, toByteOffset: address, as: T.self)
  }

  func read<T: FixedWidthInteger>(_ address: Int, as: T.Type = T.self) -> T {
    client.memory.load(fromByteOffset: address, as: T.self)
  }

  private func setControls() {
    fields[.pinBasedControls] = UInt64(VMXCapabilities.pin.required)
    fields[.primaryControls] = UInt64(
      VMXCapabilities.primary.required | PrimaryControls.secondaryControls)
    fields[.secondaryControls] = UInt64(
      SecondaryControls.enableEPT | SecondaryControls.unrestrictedGuest)
    fields[.exitControls] = UInt64(
      VMXCapabilities.exit.required | ExitControls.hostAddressSpaceSize)
    fields[.entryControls] = UInt64(VMXCapabilities.entry.required)
    fields[.eptPointer] = 0x14000 | EPTPointer.writeBack | EPTPointer.fourLevels
    fields[.vmcsLinkPointer] = .max
    fields[.ioBitmapA] = 0x6000
    fields[.ioBitmapB] = 0x7000
    fields[.msrBitmap] = 0x9000
    fields[.virtualAPICAddress] = 0x17000
  }

  private func setHost() {
    fields[.hostCR0] = CR0([.pe, .ne, .et, .pg]).rawValue
    fields[.hostCR3] = 0x10000
    fields[.hostCR4] = CR4([.pae, .vmxe]).rawValue
    fields[.hostCSSelector] = 8
    fields[.hostTRSelector] = 24
    fields[.hostRIP] = 0x1100
    fields[.hostRSP] = 0x8000
  }

  private func setGuest() {
    fields[.guestCR0] = CR0([.ne, .et]).rawValue
    fields[.guestCR4] = CR4.vmxe.rawValue
    for register in UInt32(0)..<8 {
      func field(_ first: VMCSField) -> VMCSField {
        VMCSField(rawValue: first.rawValue + register * 2)
      }
      fields[field(.guestESLimit)] = 0xFFFF
      let rights: UInt64 =
        switch register {
        case 1, 7: register == 1 ? 0x9B : 0x8B
        case 6: 0x82
        default: 0x93
        }
      fields[field(.guestESAccessRights)] = rights
    }
    fields[.guestCSSelector] = 0x1800
    fields[.guestCSBase] = 0x18000
    fields[.guestIDTRLimit] = 0x3FF
    fields[.guestRSP] = 0x8000
    fields[.guestRFLAGS] = RFLAGS.fixed.rawValue
    fields[.guestDR7] = DR7.initial.rawValue
  }

  func set(pin: UInt32 = 0, primary: UInt32 = 0, secondary: UInt32 = 0) {
    fields[.pinBasedControls] |= UInt64(pin)
    fields[.primaryControls] |= UInt64(primary)
    fields[.secondaryControls] |= UInt64(secondary)
  }

  /// Runs until L1 has the exit.
  func exit() throws -> ExitReason? {
    guard try client.nextOut()?.port == 0xE9 else { return nil }
    return ExitReason(rawValue: UInt16(truncatingIfNeeded: fields[.exitReason]))
  }

  /// The flags that an entry left, and the VM-instruction error.
  func failure() throws -> (flags: RFLAGS, error: UInt8)? {
    guard let flags = try client.nextOut(), flags.port == 0xE8,
      let error = try client.nextOut(), error.port == 0xE7
    else { return nil }
    let arithmetic = RFLAGS(rawValue: UInt64(flags.value)).intersection(.arithmetic)
    return (arithmetic, error.value)
  }
}

@Suite(.serialized) struct NestedVMXTests {
  // MARK: Instructions

  /// Each VMfail of an instruction that L1 executes last, by its operand at 3008H.
  @Test(arguments: [
    (NestedGuest.vmclear, UInt64(0x4001), VMXInstructionError.vmclearInvalidAddress),
    (NestedGuest.vmclear, 1 << 60, .vmclearInvalidAddress),
    (NestedGuest.vmclear, 0x5000, .vmclearVMXONPointer),
    (NestedGuest.vmptrld, 0x4001, .vmptrldInvalidAddress),
    (NestedGuest.vmptrld, 0x5000, .vmptrldVMXONPointer),
    (NestedGuest.vmptrld, 0x8000, .vmptrldIncorrectRevision),
    (NestedGuest.vmptrld, 0x7000_0000, .vmptrldIncorrectRevision),
    (NestedGuest.vmresume, 0, .vmresumeNonLaunched),
    (NestedGuest.vmxon, 0, .vmxonInRootOperation),
  ])
  func failures(_ code: [UInt8], _ operand: UInt64, _ error: VMXInstructionError) throws {
    // ...; mov qword [0x3008], operand: mov rax, operand; mov [0x3008], rax
    let change: [UInt8] =
      [0x48, 0xB8] + withUnsafeBytes(of: operand) { Array($0) }
      + [0x48, 0x89, 0x04, 0x25, 0x08, 0x30, 0, 0]
    let guest = try NestedGuest(
      l1: NestedGuest.vmxon + NestedGuest.vmptrld + change + code + NestedGuest.tellFlags
        + NestedGuest.tellError)
    let failure = try #require(try guest.failure())
    #expect(failure.flags == .zf)
    #expect(failure.error == UInt8(error.rawValue))
  }

  @Test(arguments: [NestedGuest.vmlaunch, NestedGuest.vmresume, [0x0F, 0x78, 0xC8]])
  func failInvalidWithoutCurrent(_ code: [UInt8]) throws {
    let guest = try NestedGuest(l1: NestedGuest.vmxon + code + NestedGuest.tellFlags)
    let flags = try #require(try guest.client.nextOut())
    #expect(flags.port == 0xE8)
    #expect(RFLAGS(rawValue: UInt64(flags.value)).intersection(.arithmetic) == .cf)
  }

  /// Without CR4.VMXE, in firmware's disfavour, or outside VMX operation: an exception, and without
  /// an IDT that is the end.
  @Test(arguments: [0, 1, 2])
  func exceptions(_ which: Int) throws {
    let guest = try NestedGuest(
      l1: (which == 2 ? [] : NestedGuest.vmxon) + NestedGuest.vmptrld + NestedGuest.tellFlags,
      isOn: which != 0)
    if which == 1 { #expect(try guest.client.setMSR(MSR.featureControl.rawValue, 1)) }
    #expect(try guest.client.run() == KVM_EXIT_SHUTDOWN)
  }

  @Test func controlRegistersInOperation() throws {
    // vmxon; mov rax, cr4; btr eax, 13; mov cr4, rax
    let clear: [UInt8] = [0x0F, 0x20, 0xE0, 0x0F, 0xBA, 0xF0, 13, 0x0F, 0x22, 0xE0]
    let inside = try NestedGuest(l1: NestedGuest.vmxon + clear + NestedGuest.tellFlags)
    #expect(try inside.client.run() == KVM_EXIT_SHUTDOWN)
    let outside = try NestedGuest(
      l1: NestedGuest.vmxon + NestedGuest.vmxoff + clear + NestedGuest.tellFlags)
    #expect(try outside.client.nextOut()?.port == 0xE8)
    let value = try outside.client.get(outside.client.cpu, CKVM_GET_SREGS, kvm_sregs()).cr4
    #expect(value & CR4.vmxe.rawValue == 0)
  }

  /// mov ecx, 0x6802; mov rax, -1; vmwrite rcx, rax; vmread [0x3020], rcx; VMREAD of a field that
  /// there is not; vmclear, vmptrld and vmread again.
  @Test func fieldsAreKept() throws {
    let guest = try NestedGuest(
      l1: NestedGuest.vmxon + NestedGuest.vmptrld + [
        0xB9, 0x02, 0x68, 0, 0, 0x48, 0xC7, 0xC0, 0x78, 0x56, 0x34, 0x12, 0x0F, 0x79, 0xC8,
        0x0F, 0x78, 0x0C, 0x25, 0x20, 0x30, 0, 0,
      ] + [0xB9, 0x00, 0x20, 0x01, 0x00, 0x0F, 0x78, 0xC8] + NestedGuest.tellFlags
        + NestedGuest.tellError + NestedGuest.vmclear + NestedGuest.vmptrld
        + [0xB9, 0x02, 0x68, 0, 0, 0x0F, 0x78, 0xC8, 0xE6, 0xE6])
    let failure = try #require(try guest.failure())
    #expect(failure.flags == .zf)
    #expect(failure.error == UInt8(VMXInstructionError.unsupportedField.rawValue))
    #expect(guest.read(0x3020, as: UInt64.self) == 0x1234_5678)
    #expect(try guest.client.nextOut()?.value == 0x78)
    #expect(guest.fields[.guestCR3] == 0x1234_5678)
  }

  // MARK: Entries

  @Test func exitOfTheGuestsGuest() throws {
    // mov bl, 0x5A; mov ax, 0x1234; cpuid
    let guest = try NestedGuest(l2: [0xB3, 0x5A, 0xB8, 0x34, 0x12, 0x0F, 0xA2])
    #expect(try guest.exit() == .cpuid)
    #expect(guest.fields[.guestRIP] == 5)
    #expect(guest.fields[.exitInstructionLength] == 2)
    let registers = try guest.client.registers
    #expect(registers.rbx & 0xFF == 0x5A, "registers are as L2 left them")
    #expect(registers.rsp == 0x8000)
    let special = try guest.client.get(guest.client.cpu, CKVM_GET_SREGS, kvm_sregs())
    #expect(special.efer == EFER([.lme, .lma]).rawValue)
    #expect(special.cs.l == 1 && special.cs.selector == 8 && special.tr.limit == 0x67)
    #expect(special.gdt.limit == 0xFFFF)
  }

  @Test(arguments: [
    (VMCSField.pinBasedControls, UInt64(0), VMXInstructionError.invalidControlFields),
    (.eptPointer, 1 << 60, .invalidControlFields), (.eptPointer, 0x1407E, .invalidControlFields),
    (.secondaryControls, UInt64(SecondaryControls.enablePML), .invalidControlFields),
    (.entryInterruptionInfo, 1 << 31 | 1 << 8, .invalidControlFields),
    (.hostCR0, 0, .invalidHostState), (.hostCSSelector, 0, .invalidHostState),
    (.hostRIP, 1 << 60, .invalidHostState), (.hostCR3, 1 << 60, .invalidHostState),
    (.exitControls, 0x36DFB, .invalidHostState),
  ])
  func rulesOfEntries(
    _ field: VMCSField, _ value: UInt64, _ error: VMXInstructionError
  ) throws {
    let guest = try NestedGuest()
    guest.fields[field] = value
    let failure = try #require(try guest.failure())
    #expect(failure.flags == .zf)
    #expect(failure.error == UInt8(error.rawValue))
  }

  @Test(arguments: [
    (VMCSField.guestRFLAGS, UInt64(0), UInt64(0)), (.guestCR4, 0, 0),
    (.guestCR4, CR4([.vmxe, .smxe]).rawValue, 0), (.vmcsLinkPointer, 0x8000, 4),
    (.vmcsLinkPointer, 0x4000, 4), (.guestActivityState, 9, 0),
  ])
  func invalidGuestState(_ field: VMCSField, _ value: UInt64, _ qualification: UInt64) throws {
    let guest = try NestedGuest(l1: NestedGuest.vmxon + NestedGuest.vmptrld + NestedGuest.vmlaunch)
    guest.fields[field] = value
    // Behind the exit: vmresume, which fails as the VMCS is still clear.
    guest.client.load(
      NestedGuest.vmresume + NestedGuest.tellFlags + NestedGuest.tellError + NestedGuest.vmclear
        + [0xE6, 0xE9], at: 0x1100)
    let failure = try #require(try guest.failure())
    #expect(failure.error == UInt8(VMXInstructionError.vmresumeNonLaunched.rawValue))
    #expect(try guest.exit() == .invalidGuestState)
    #expect(guest.fields[.exitReason] == 0x8000_0021)
    #expect(guest.fields[.exitQualification] == qualification)
    #expect(guest.fields[.guestRIP] == 0)
  }

  /// Behind the first exit: vmresume; the second is at the next CPUID.
  @Test func resumes() throws {
    let guest = try NestedGuest(l2: [0x0F, 0xA2, 0xF4])
    // mov ecx, guest RIP; vmread rax, rcx; add rax, 2; vmwrite rcx, rax; mov ecx, host RIP;
    // mov eax, 0x1180; vmwrite rcx, rax; vmresume
    guest.client.load(
      [
        0xB9, 0x1E, 0x68, 0, 0, 0x0F, 0x78, 0xC8, 0x48, 0x83, 0xC0, 2, 0x0F, 0x79, 0xC8, 0xB9,
        0x16, 0x6C, 0, 0, 0xB8, 0x80, 0x11, 0, 0, 0x0F, 0x79, 0xC8,
      ] + NestedGuest.vmresume, at: 0x1100)
    guest.client.load(NestedGuest.vmclear + [0xE6, 0xE9, 0xF4], at: 0x1180)
    guest.set(primary: PrimaryControls.hltExiting)
    #expect(try guest.exit() == .hlt)
    #expect(guest.fields[.guestRIP] == 2)
  }

  // MARK: Exits by L1's controls

  /// What L1 lets through is the machine's.
  @Test func portsAndMemoryOfTheMachine() throws {
    // mov al, 0x55; mov [0x3030], al; out 0x70, al; vmcall
    let guest = try NestedGuest(l2: [0xB0, 0x55, 0xA2, 0x30, 0x30, 0xE6, 0x70, 0x0F, 0x01, 0xC1])
    let out = try #require(try guest.client.nextOut())
    #expect(out.port == 0x70 && out.value == 0x55)
    #expect(guest.read(0x3030, as: UInt8.self) == 0x55)
    #expect(try guest.exit() == .vmcall)
  }

  @Test(arguments: [(UInt16(0x70), 0x600E), (0x8070, 0x700E)])
  func portsByTheBitmapsOfL1(_ port: UInt16, _ place: Int) throws {
    // mov dx, port; out dx, al
    let guest = try NestedGuest(
      l2: [0xBA, UInt8(port & 0xFF), UInt8(port >> 8), 0xEE, 0x0F, 0x01, 0xC1])
    guest.set(primary: PrimaryControls.useIOBitmaps)
    guest.store(UInt8(1), at: place)
    #expect(try guest.exit() == .ioInstruction)
    #expect(IOQualification(rawValue: guest.fields[.exitQualification]).port == port)
  }

  /// Reads of STAR are bit 1 of byte 410H of the bitmap.
  @Test(arguments: [(0x9410, ExitReason.rdmsr), (0x9411, .vmcall)])
  func registersByTheBitmapOfL1(_ place: Int, _ wanted: ExitReason) throws {
    // mov ecx, 0xC0000081; rdmsr; vmcall
    let guest = try NestedGuest(l2: [0x66, 0xB9, 0x81, 0, 0, 0xC0, 0x0F, 0x32, 0x0F, 0x01, 0xC1])
    guest.set(primary: PrimaryControls.useMSRBitmaps)
    guest.store(UInt8(2), at: place)
    #expect(try guest.exit() == wanted)
  }

  /// mov eax, cr0; mov bl, al; or al, 8; mov cr0, eax: TS is L1's, which shows it as 0.
  @Test func controlRegistersByTheMasksOfL1() throws {
    let guest = try NestedGuest(
      l2: [0x0F, 0x20, 0xC0, 0x88, 0xC3, 0x0C, 8, 0x0F, 0x22, 0xC0, 0x0F, 0x01, 0xC1])
    guest.fields[.guestCR0] |= CR0.ts.rawValue
    guest.fields[.cr0Mask] = CR0.ts.rawValue
    #expect(try guest.exit() == .controlRegisterAccess)
    #expect(try guest.client.registers.rbx & 0xFF == 0x30)
    #expect(guest.fields[.guestRIP] == 7)
    let access = ControlRegisterQualification(rawValue: guest.fields[.exitQualification])
    #expect(access.register == 0 && access.access == .movTo && access.general == 0)
  }

  @Test func exceptionsOfL1() throws {
    let guest = try NestedGuest(l2: [0x0F, 0x0B])
    guest.fields[.exceptionBitmap] = 1 << 6
    #expect(try guest.exit() == .exceptionOrNMI)
    let info = InterruptionInfo(
      rawValue: UInt32(truncatingIfNeeded: guest.fields[.exitInterruptionInfo]))
    #expect(info == InterruptionInfo(.hardwareException, vector: 6))
  }

  @Test func tripleFault() throws {
    let guest = try NestedGuest(l2: [0x0F, 0x0B])
    guest.fields[.guestIDTRLimit] = 0
    #expect(try guest.exit() == .tripleFault)
  }

  /// mov eax, 3; mov cr8, rax; xor eax, eax; mov cr8, rax; hlt
  @Test func priorityBelowTheThreshold() throws {
    let guest = try NestedGuest(
      l2: [
        0xB8, 3, 0, 0, 0, 0x44, 0x0F, 0x22, 0xC0, 0x31, 0xC0, 0x44, 0x0F, 0x22, 0xC0, 0xF4,
      ])
    makeLong(guest)
    guest.set(primary: PrimaryControls.useTPRShadow | PrimaryControls.hltExiting)
    guest.fields[.tprThreshold] = 2
    guest.store(UInt32(0x50), at: 0x17080)
    #expect(try guest.exit() == .tprBelowThreshold)
    #expect(guest.fields[.guestRIP] == 0x1800F)
    #expect(guest.read(0x17080, as: UInt32.self) == 0)
  }

  @Test func thresholdAboveThePriority() throws {
    let guest = try NestedGuest()
    guest.set(primary: PrimaryControls.useTPRShadow)
    guest.fields[.tprThreshold] = 2
    #expect(try guest.failure()?.error == UInt8(VMXInstructionError.invalidControlFields.rawValue))
  }

  /// L2 in 64-bit mode with L1's tables.
  private func makeLong(_ guest: NestedGuest) {
    let fields = guest.fields
    fields[.guestCR0] = fields[.hostCR0]
    fields[.guestCR3] = fields[.hostCR3]
    fields[.guestCR4] = fields[.hostCR4]
    fields[.entryControls] |= UInt64(EntryControls.ia32eModeGuest)
    fields[.guestCSAccessRights] = 0xA09B
    fields[.guestCSLimit] = 0xFFFF_FFFF
    fields[.guestCSBase] = 0
    fields[.guestRIP] = 0x18000
  }

  // MARK: Memory

  @Test func withoutEPT() throws {
    // mov byte [0x3030], 0x77; cpuid
    let guest = try NestedGuest(l2: [0xC6, 0x04, 0x25, 0x30, 0x30, 0, 0, 0x77, 0x0F, 0xA2])
    makeLong(guest)
    guest.fields[.secondaryControls] = 0
    #expect(try guest.exit() == .cpuid)
    #expect(guest.read(0x3030, as: UInt8.self) == 0x77)
  }

  @Test func accessedAndDirtyFlags() throws {
    // mov al, [0x3000]; mov [0x3031], al; cpuid
    let guest = try NestedGuest(l2: [0xA0, 0, 0x30, 0xA2, 0x31, 0x30, 0x0F, 0xA2])
    guest.fields[.eptPointer] |= EPTPointer.accessedDirty
    #expect(try guest.exit() == .cpuid)
    #expect(guest.read(0x14000, as: UInt64.self) == 0x15007 | EPTEntry.accessed)
    #expect(guest.read(0x16000, as: UInt64.self) == 0xB7 | EPTEntry.accessed | EPTEntry.dirty)
  }

  /// mov ax, 0x2000; mov ds, ax; mov [0x10], al: page 0x20 can be read and executed.
  @Test(arguments: [
    (UInt64(5), ExitReason.eptViolation), (0, .eptViolation), (2, .eptMisconfiguration),
  ])
  func violationIsL1s(_ rights: UInt64, _ reason: ExitReason) throws {
    let guest = try NestedGuest(l2: [0xB8, 0, 0x20, 0x8E, 0xD8, 0xA2, 0x10, 0, 0x0F, 0xA2])
    guest.store(UInt64(0x20007), at: 0x16000)
    for page in 0..<512 {
      let flags: UInt64 = page == 0x20 ? rights : 7
      guest.store(UInt64(page) << 12 | flags | 0x30, at: 0x20000 + page * 8)
    }
    #expect(try guest.exit() == reason)
    #expect(guest.fields[.guestPhysicalAddress] == 0x20010)
    #expect(guest.fields[.guestRIP] == 5)
    if reason == .eptViolation {
      let wanted: EPTViolationQualification = [.write, .linearIsValid, .isTranslated]
      let mask = wanted.rawValue | 0x3F
      #expect(guest.fields[.exitQualification] & mask == wanted.rawValue | rights << 3)
    }
  }

  /// L1 takes a page back between two entries, and says so by INVEPT.
  @Test func invalidation() throws {
    // mov al, [0x3000]; cpuid; mov al, [0x3000]; cpuid
    let guest = try NestedGuest(l2: [0xA0, 0, 0x30, 0x0F, 0xA2, 0xA0, 0, 0x30, 0x0F, 0xA2])
    guest.store(UInt64(0x20007), at: 0x16000)
    for page in 0..<512 { guest.store(UInt64(page) << 12 | 0x37, at: 0x20000 + page * 8) }
    guest.store(guest.fields[.eptPointer], at: 0x3010)
    // mov ecx, guest RIP; mov eax, 5; vmwrite; mov qword [0x20018], 0; mov eax, 1;
    // invept rax, [0x3010]; mov ecx, host RIP; mov eax, 0x1180; vmwrite; vmresume
    guest.client.load(
      [
        0xB9, 0x1E, 0x68, 0, 0, 0xB8, 5, 0, 0, 0, 0x0F, 0x79, 0xC8, 0x48, 0xC7, 0x04, 0x25,
        0x18, 0, 2, 0, 0, 0, 0, 0, 0xB8, 1, 0, 0, 0, 0x66, 0x0F, 0x38, 0x80, 0x04, 0x25, 0x10,
        0x30, 0, 0, 0xB9, 0x16, 0x6C, 0, 0, 0xB8, 0x80, 0x11, 0, 0, 0x0F, 0x79, 0xC8,
      ] + NestedGuest.vmresume + NestedGuest.tellFlags, at: 0x1100)
    guest.client.load(NestedGuest.vmclear + [0xE6, 0xE9, 0xF4], at: 0x1180)
    #expect(try guest.exit() == .eptViolation)
    #expect(guest.fields[.guestPhysicalAddress] == 0x3000)
  }

  // MARK: MSR areas

  @Test func areas() throws {
    // mov ecx, LSTAR; rdmsr; mov bl, al; mov al, 0x66; wrmsr; cpuid
    let guest = try NestedGuest(
      l2: [
        0x66, 0xB9, 0x82, 0, 0, 0xC0, 0x0F, 0x32, 0x88, 0xC3, 0xB0, 0x66, 0x0F, 0x30, 0x0F, 0xA2,
      ])
    guest.set(primary: PrimaryControls.useMSRBitmaps)
    func entry(_ value: UInt64, at place: Int) {
      guest.store(UInt64(0xC000_0082), at: place)
      guest.store(value, at: place + 8)
    }
    entry(0x42, at: 0x19000)
    entry(0, at: 0x19010)
    entry(0x43, at: 0x19020)
    for (count, address, place) in [
      (VMCSField.entryMSRLoadCount, VMCSField.entryMSRLoadAddress, UInt64(0x19000)),
      (.exitMSRStoreCount, .exitMSRStoreAddress, 0x19010),
      (.exitMSRLoadCount, .exitMSRLoadAddress, 0x19020),
    ] {
      guest.fields[count] = 1
      guest.fields[address] = place
    }
    #expect(try guest.exit() == .cpuid)
    #expect(try guest.client.registers.rbx & 0xFF == 0x42)
    #expect(guest.read(0x19018, as: UInt64.self) == 0x66)
    #expect(try guest.client.msr(0xC000_0082) == 0x43)
  }

  @Test func areaThatCannotBeLoaded() throws {
    let guest = try NestedGuest()
    guest.store(UInt64(0xC000_0082), at: 0x19000)
    guest.store(UInt64(MSR.fsBase.rawValue), at: 0x19010)
    guest.fields[.entryMSRLoadCount] = 2
    guest.fields[.entryMSRLoadAddress] = 0x19000
    #expect(try guest.exit() == .msrLoading)
    #expect(guest.fields[.exitReason] == 0x8000_0022)
    #expect(guest.fields[.exitQualification] == 2)
  }

  // MARK: Events

  /// The interrupt that waits makes L2 exit before its first instruction.
  @Test(arguments: [false, true]) func interruptForL1(acknowledges: Bool) throws {
    let guest = try NestedGuest(l2: [0xEB, 0xFE])
    guest.set(pin: PinControls.externalInterruptExiting)
    if acknowledges { guest.fields[.exitControls] |= UInt64(ExitControls.acknowledgeInterrupt) }
    try guest.client.set(guest.client.cpu, CKVM_INTERRUPT, kvm_interrupt(irq: 0x30))
    #expect(try guest.exit() == .externalInterrupt)
    #expect(guest.fields[.guestRIP] == 0)
    let info = InterruptionInfo(.externalInterrupt, vector: 0x30)
    #expect(guest.fields[.exitInterruptionInfo] == (acknowledges ? UInt64(info.rawValue) : 0))
  }

  @Test func nmiForL1() throws {
    let guest = try NestedGuest(l2: [0xEB, 0xFE])
    guest.set(pin: PinControls.nmiExiting | PinControls.virtualNMIs)
    // It blocks NMIs while L1 runs first.
    var events = try guest.client.get(guest.client.cpu, CKVM_GET_VCPU_EVENTS, kvm_vcpu_events())
    events.nmi.masked = 1
    events.nmi.pending = 1
    events.flags = UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING)
    try guest.client.set(guest.client.cpu, CKVM_SET_VCPU_EVENTS, events)
    #expect(try guest.exit() == .exceptionOrNMI)
    #expect(
      guest.fields[.exitInterruptionInfo] == UInt64(InterruptionInfo(.nmi, vector: 2).rawValue))
    let after = try guest.client.get(guest.client.cpu, CKVM_GET_VCPU_EVENTS, kvm_vcpu_events())
    #expect(after.nmi.masked == 1)
  }

  /// L2's handler runs first.
  @Test func injectedEvent() throws {
    let guest = try NestedGuest(l2: [0xF4])
    // Vector 0x21 of real mode: 1800:0100: cpuid
    guest.store(UInt32(0x1800_0100), at: 0x21 * 4)
    guest.client.load(NestedGuest.cpuid, at: 0x18100)
    guest.fields[.guestRFLAGS] |= RFLAGS.if.rawValue
    guest.fields[.entryInterruptionInfo] = UInt64(
      InterruptionInfo(.externalInterrupt, vector: 0x21).rawValue)
    #expect(try guest.exit() == .cpuid)
    #expect(guest.fields[.guestRIP] == 0x100)
    #expect(guest.fields[.entryInterruptionInfo] & UInt64(InterruptionInfo.validBit) == 0)
  }

  @Test func windowOfL1() throws {
    // sti; nop; nop
    let guest = try NestedGuest(l2: [0xFB, 0x90, 0x90, 0xF4])
    guest.set(primary: PrimaryControls.interruptWindowExiting)
    #expect(try guest.exit() == .interruptWindow)
    #expect(guest.fields[.guestRIP] == 2)
  }

  @Test func monitorTrap() throws {
    let guest = try NestedGuest(l2: [0x90, 0x90, 0xF4])
    guest.set(primary: PrimaryControls.monitorTrapFlag)
    #expect(try guest.exit() == .monitorTrapFlag)
    #expect(guest.fields[.guestRIP] == 1)
  }

  @Test func preemptionTimer() throws {
    let guest = try NestedGuest(l2: [0xEB, 0xFE])
    guest.set(pin: PinControls.preemptionTimer)
    guest.fields[.preemptionTimerValue] = 10000
    guest.fields[.exitControls] |= UInt64(ExitControls.savePreemptionTimer)
    #expect(try guest.exit() == .preemptionTimer)
    #expect(guest.fields[.preemptionTimerValue] == 0)
  }

  /// Whatever vmcs12 says, KVM_RUN returns with an exit: nothing in it is the hypervisor's to trip
  /// over. Each round sets some fields to values of no meaning.
  @Test func fieldsOfAnyValue() throws {
    var state: UInt64 = 0x9E37_79B9_7F4A_7C15
    func next() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return state >> 33 ^ state << 31
    }
    let fields = VMCSField.table.map(\.field)
    let edges: [UInt64] = [0, 1, .max, 0x7FFF_FFFF, 0x1F_F000, 0x20_0000, 0x7FFF_F000, 1 << 47]
    let end = ContinuousClock.now + .seconds(20)
    for _ in 0..<200 where ContinuousClock.now < end {
      // cpuid; mov [0x3000], al; hlt
      let guest = try NestedGuest(l2: [0x0F, 0xA2, 0xA2, 0, 0x30, 0xF4])
      guest.set(
        pin: PinControls.preemptionTimer,
        primary: PrimaryControls.useMSRBitmaps | PrimaryControls.useTPRShadow)
      for _ in 0...next() % 4 {
        let kind = next() % 3
        let value = kind == 0 ? edges[Int(next() % 8)] : kind == 1 ? 1 << (next() % 64) : next()
        let field = fields[Int(next() % UInt64(fields.count))]
        guest.fields[field] = next() & 1 == 0 ? value : guest.fields[field] ^ value
      }
      do throws(Errno) {
        for _ in 0..<3 { _ = try guest.client.run() }
      } catch {
        #expect(error == .interrupted)
      }
    }
  }

  // MARK: APIC

  /// mov al, [0x8080]; mov bl, al; mov byte [0x8080], 0x30; mov al, [0x8020]: the APIC-access page
  /// is 8000H.
  @Test func accessesToTheAPIC() throws {
    let guest = try NestedGuest(
      l2: [
        0xA0, 0x80, 0x80, 0x88, 0xC3, 0xC6, 0x06, 0x80, 0x80, 0x30, 0xA0, 0x20, 0x80, 0x0F, 0xA2,
      ])
    guest.set(
      primary: PrimaryControls.useTPRShadow, secondary: SecondaryControls.virtualizeAPICAccesses)
    guest.fields[.apicAccessAddress] = 0x8000
    guest.store(UInt32(0x50), at: 0x17080)
    #expect(try guest.exit() == .apicAccess)
    let access = APICAccessQualification(rawValue: guest.fields[.exitQualification])
    #expect(access == APICAccessQualification(.read, offset: 0x20))
    #expect(guest.fields[.guestRIP] == 10)
    #expect(try guest.client.registers.rbx & 0xFF == 0x50)
    #expect(guest.read(0x17080, as: UInt32.self) == 0x30)
  }

  /// mov ecx, 0x808; rdmsr; mov bl, al; cpuid
  @Test(arguments: [(UInt8(0), ExitReason.cpuid), (1, .rdmsr)])
  func priorityByItsRegister(_ bit: UInt8, _ wanted: ExitReason) throws {
    let guest = try NestedGuest(
      l2: [0x66, 0xB9, 0x08, 8, 0, 0, 0x0F, 0x32, 0x88, 0xC3, 0x0F, 0xA2])
    guest.set(
      primary: PrimaryControls.useTPRShadow | PrimaryControls.useMSRBitmaps,
      secondary: SecondaryControls.virtualizeX2APIC)
    guest.store(bit, at: 0x9101)
    guest.store(UInt32(0x50), at: 0x17080)
    #expect(try guest.exit() == wanted)
    if bit == 0 { #expect(try guest.client.registers.rbx & 0xFF == 0x50) }
  }

  // MARK: What L1 has

  @Test func capabilities() throws {
    let client = try Client()
    let secondary = try #require(try client.msr(MSR.vmxSecondaryControls.rawValue))
    let ept = UInt64(SecondaryControls.enableEPT) << 32
    #expect(secondary & ept != 0)
    #expect(try client.setMSR(MSR.vmxSecondaryControls.rawValue, secondary & ~ept))
    #expect(try client.msr(MSR.vmxSecondaryControls.rawValue) == secondary & ~ept)
    let pml = UInt64(SecondaryControls.enablePML) << 32
    #expect(try !client.setMSR(MSR.vmxSecondaryControls.rawValue, secondary | pml))
    #expect(try !client.setMSR(MSR.vmxPinControls.rawValue, 0))
    // QEMU gives no CR3-target values (bits 24:16).
    let misc = try #require(try client.msr(MSR.vmxMisc.rawValue))
    #expect(misc >> 16 & 0x1FF != 0)
    #expect(try client.setMSR(MSR.vmxMisc.rawValue, misc & ~(0x1FF << 16)))
    #expect(try !client.setMSR(MSR.vmxMisc.rawValue, misc + 1 << 16))
    #expect(try !client.setMSR(MSR.vmxMisc.rawValue, misc ^ 1))
    #expect(try !client.setMSR(MSR.vmxBasic.rawValue, 0))
    for number in MSR.vmxBasic.rawValue...MSR.vmxVMFunc.rawValue {
      #expect(try client.msr(number) != nil)
    }
  }

  /// A guest without VT-x by its CPUID has neither the bit of CR4 nor the registers.
  @Test func guestWithoutIt() throws {
    let client = try Client()
    try client.changeCPUID { if $0.function == 1 { $0.ecx &= ~(1 << 5) } }
    #expect(
      client.error { () throws(Errno) in
        try client.changeSpecial { $0.cr4 |= CR4.vmxe.rawValue }
      } == .invalidArgument)
    // mov ecx, 0x480; rdmsr; out 0x90, al. #GP: out 0x9D, al
    client.load([0x66, 0xB9, 0x80, 4, 0, 0, 0x0F, 0x32, 0xE6, 0x90])
    client.load([0xE6, 0x9D, 0xF4], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 13 * 4, as: UInt32.self)
    #expect(try client.nextOut()?.port == 0x9D)
  }
}
