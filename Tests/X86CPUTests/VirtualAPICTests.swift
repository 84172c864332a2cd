// SPDX-License-Identifier: Apache-2.0
//
// Guests with a virtual APIC: the TPR, accesses by address and by MSR, virtual and posted
// interrupts, and the exits of each (SDM volume 3, "APIC Virtualization and Virtual Interrupts").

import Support
import Testing
import X86
import X86CPU

@Suite struct VirtualAPICTests {
  let m: VMXMachine
  let page: HostPage
  var p: PhysicalCPU { m.processor }

  static let handler = 0x1100
  /// Guest-physical address of the APIC-access page: a page of the machine's memory.
  static let apic = 0x20_0000

  /// A 64-bit guest whose handler of vector N writes N to 0x6000 and halts.
  init() throws {
    m = try VMXMachine()
    page = m.makePage()
    page.base.storeBytes(of: 0, as: UInt32.self)
    m.test.store(UInt64(0x00AF_9B00_0000_FFFF), at: 0x2008)
    m.test.store(UInt64(0x00CF_9300_0000_FFFF), at: 0x2010)
    for vector in 0..<256 {
      m.test.store(UInt64(0x8E00_0008_0000 | Self.handler), at: 0x3000 + vector * 16)
    }
    m.test.load([0xF4], at: Self.handler)
    p.vmwrite(.guestIDTRBase, 0x3000)
    p.vmwrite(.guestIDTRLimit, 0xFFF)
    p.vmwrite(.virtualAPICAddress, page.address)
    set(.primaryControls, PrimaryControls.useTPRShadow)
  }

  private func set(_ field: VMCSField, _ bits: UInt32) {
    p.vmwrite(field, p.vmread(field) | UInt64(bits))
  }

  private func register(_ offset: Int) -> UInt32 {
    page.base.load(fromByteOffset: offset, as: UInt32.self)
  }

  private func setRegister(_ offset: Int, _ value: UInt32) {
    page.base.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
  }

  private func useAccessPage(_ more: UInt32 = 0) {
    p.vmwrite(.apicAccessAddress, UInt64(UInt(bitPattern: m.test.memory)) + UInt64(Self.apic))
    set(.secondaryControls, SecondaryControls.virtualizeAPICAccesses | more)
  }

  private func useDelivery() {
    set(.secondaryControls, SecondaryControls.virtualInterruptDelivery)
  }

  /// mov [APIC + offset], eax; hlt at 0x1007
  private func loadWrite(_ offset: Int, _ value: UInt64) {
    let address = UInt32(Self.apic + offset)
    m.test.load([0x89, 0x04, 0x25] + Self.bytes(address) + [0xF4], at: 0x1000)
    m.cpu.gpr[0] = value
  }

  private static func bytes(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> (UInt32($0) * 8)) }
  }

  // MARK: CR8

  @Test func cr8IsTheVirtualTPR() throws {
    m.test.load([0x44, 0x0F, 0x22, 0xC0, 0x44, 0x0F, 0x20, 0xC3, 0xF4], at: 0x1000)
    m.cpu.gpr[0] = 9
    #expect(try p.vmlaunch() == .hlt)
    #expect(register(0x80) == 0x90)
    #expect(m.cpu.gpr[3] == 9)
  }

  @Test func aTPRBelowTheThresholdExitsBehindTheInstruction() throws {
    m.test.load([0x44, 0x0F, 0x22, 0xC0, 0xF4], at: 0x1000)
    setRegister(0x80, 0x80)
    p.vmwrite(.tprThreshold, 5)
    m.cpu.gpr[0] = 5
    #expect(try p.vmlaunch() == .hlt)
    p.vmwrite(.guestRIP, 0x1000)
    m.cpu.gpr[0] = 4
    #expect(try p.vmresume() == .tprBelowThreshold)
    #expect(p.vmread(.guestRIP) == 0x1004)
    #expect(register(0x80) == 0x40)
  }

  @Test func theThresholdIsLookedAtOnEntryWithAnAccessPage() throws {
    m.test.load([0xF4], at: 0x1000)
    useAccessPage()
    p.vmwrite(.tprThreshold, 5)
    #expect(try p.vmlaunch() == .tprBelowThreshold)
    #expect(p.vmread(.guestRIP) == 0x1000)
    setRegister(0x80, 0x50)
    #expect(try p.vmresume() == .hlt)
  }

  // MARK: Accesses by address

  @Test func theTPRIsReadAndWritten() throws {
    useAccessPage()
    // mov [apic + 80], eax; mov ebx, [apic + 80]; hlt
    let place = Self.bytes(UInt32(Self.apic + 0x80))
    m.test.load(
      [0x89, 0x04, 0x25] + place + [0x8B, 0x1C, 0x25] + place + [0xF4], at: 0x1000)
    m.cpu.gpr[0] = 0x1234_5672
    #expect(try p.vmlaunch() == .hlt)
    #expect(register(0x80) == 0x72)
    #expect(m.cpu.gpr[3] == 0x72)
    // The page of memory behind it is untouched.
    #expect(m.test.read(Self.apic + 0x80, as: UInt32.self) == 0)
  }

  typealias AccessRow = (bytes: [UInt8], offset: Int, qualification: UInt64)
  static let accesses: [AccessRow] = [
    ([0x8B, 0x04, 0x25], 0x30, 0x0030),  // a register that is not virtualized
    ([0x89, 0x04, 0x25], 0xB0, 0x10B0),
    ([0x48, 0x8B, 0x04, 0x25], 0x80, 0x0080),  // too wide
    ([0x8A, 0x04, 0x25], 0x84, 0x0084),  // beside the register's first four bytes
    ([0x8B, 0x04, 0x25], 0x82, 0x0082),
  ]

  @Test(arguments: 0..<accesses.count) func accessExits(_ n: Int) throws {
    let row = Self.accesses[n]
    useAccessPage()
    m.test.load(row.bytes + Self.bytes(UInt32(Self.apic + row.offset)) + [0xF4], at: 0x1000)
    #expect(try p.vmlaunch() == .apicAccess)
    #expect(p.vmread(.exitQualification) == row.qualification)
    #expect(p.vmread(.guestRIP) == 0x1000)
  }

  @Test func aFetchAndAnEventsStackExit() throws {
    useAccessPage()
    p.vmwrite(.guestRIP, UInt64(Self.apic + 0x80))
    #expect(try p.vmlaunch() == .apicAccess)
    #expect(p.vmread(.exitQualification) == 0x2080)
    p.vmwrite(.guestRIP, 0x1000)
    p.vmwrite(.guestRSP, UInt64(Self.apic + 0x90))
    p.vmwrite(
      .entryInterruptionInfo,
      UInt64(InterruptionInfo(.hardwareException, vector: 6).rawValue))
    #expect(try p.vmresume() == .apicAccess)
    #expect(p.vmread(.exitQualification) >> 12 == 3)
    #expect(p.vmread(.idtVectoringInfo) == 0x8000_0306)
  }

  @Test func aPagingStructureInTheAccessPageExits() throws {
    useAccessPage()
    m.test.load([0xF4], at: 0x1000)
    p.vmwrite(.guestCR3, UInt64(Self.apic))
    #expect(try p.vmlaunch() == .apicAccess)
    #expect(p.vmread(.exitQualification) >> 12 == 15)
  }

  @Test func otherRegistersNeedRegisterVirtualization() throws {
    useAccessPage(SecondaryControls.apicRegisterVirtualization)
    m.test.load([0x8B, 0x04, 0x25] + Self.bytes(UInt32(Self.apic + 0x30)) + [0xF4], at: 0x1000)
    setRegister(0x30, 0x5_0014)
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.cpu.gpr[0] == 0x5_0014)
    // A write is done and exits behind the instruction.
    loadWrite(0xF0, 0x1FF)
    p.vmwrite(.guestRIP, 0x1000)
    #expect(try p.vmresume() == .apicWrite)
    #expect(p.vmread(.exitQualification) == 0xF0)
    #expect(p.vmread(.guestRIP) == 0x1007)
    #expect(register(0xF0) == 0x1FF)
    loadWrite(0x310, 0xFFFF_FFFF)
    p.vmwrite(.guestRIP, 0x1000)
    #expect(try p.vmresume() == .hlt)
    #expect(register(0x310) == 0xFF00_0000)
    // The current count is the timer's.
    m.test.load([0x8B, 0x04, 0x25] + Self.bytes(UInt32(Self.apic + 0x390)), at: 0x1000)
    p.vmwrite(.guestRIP, 0x1000)
    #expect(try p.vmresume() == .apicAccess)
    #expect(p.vmread(.exitQualification) == 0x390)
  }

  /// The access is made in a translated loop, too.
  @Test func translatedCodeReachesTheVirtualPage() throws {
    let machine = try VMXMachine(threshold: 1)
    let q = machine.processor
    let page = machine.makePage()
    q.vmwrite(.virtualAPICAddress, page.address)
    q.vmwrite(
      .primaryControls, q.vmread(.primaryControls) | UInt64(PrimaryControls.useTPRShadow))
    q.vmwrite(
      .apicAccessAddress, UInt64(UInt(bitPattern: machine.test.memory)) + UInt64(Self.apic))
    q.vmwrite(
      .secondaryControls,
      q.vmread(.secondaryControls) | UInt64(SecondaryControls.virtualizeAPICAccesses))
    // L: mov [apic + 80], ecx; add ebx, [apic + 80]; dec ecx; jnz L; hlt
    let place = Self.bytes(UInt32(Self.apic + 0x80))
    machine.test.load(
      [0x89, 0x0C, 0x25] + place + [0x03, 0x1C, 0x25] + place + [0xFF, 0xC9, 0x75, 0xEE, 0xF4],
      at: 0x1000)
    machine.cpu.gpr[1] = 200
    machine.cpu.gpr[3] = 0
    #expect(try q.vmlaunch() == .hlt)
    #expect(machine.cpu.gpr[3] == 200 * 201 / 2)
    #expect(page.base.load(fromByteOffset: 0x80, as: UInt32.self) == 1)
    #expect(machine.test.read(Self.apic + 0x80, as: UInt32.self) == 0)
  }

  // MARK: MSRs

  @Test func x2APICRegistersAreMSRs() throws {
    set(
      .secondaryControls,
      SecondaryControls.virtualizeX2APIC | SecondaryControls.apicRegisterVirtualization)
    set(.primaryControls, PrimaryControls.useMSRBitmaps)
    let bitmap = m.makePage()
    bitmap.base.storeBytes(of: 0, as: UInt32.self)
    p.vmwrite(.msrBitmap, bitmap.address)
    setRegister(0x20, 7)
    // rdmsr; mov ebx, eax; mov ecx, 808h; mov eax, 30h; xor edx, edx; wrmsr; hlt
    m.test.load(
      [
        0x0F, 0x32, 0x89, 0xC3, 0xB9, 0x08, 0x08, 0, 0, 0xB8, 0x30, 0, 0, 0, 0x31, 0xD2, 0x0F,
        0x30, 0xF4,
      ], at: 0x1000)
    m.cpu.gpr[1] = 0x802
    #expect(try p.vmlaunch() == .hlt)
    #expect(m.cpu.gpr[3] == 7)
    #expect(register(0x80) == 0x30)
    // Reserved bits of the TPR are #GP.
    m.test.load([0x0F, 0x30, 0xF4], at: 0x1000)
    p.vmwrite(.guestRIP, 0x1000)
    p.vmwrite(.exceptionBitmap, 1 << 13)
    m.cpu.gpr[0] = 0x100
    m.cpu.gpr[1] = 0x808
    #expect(try p.vmresume() == .exceptionOrNMI)
  }

  // MARK: Virtual interrupts

  private func request(_ vector: Int) {
    let place = 0x200 + vector / 32 * 16
    setRegister(place, register(place) | 1 << UInt32(vector % 32))
    p.vmwrite(.guestInterruptStatus, UInt64(vector))
  }

  @Test func anInterruptIsDeliveredWithoutAnExit() throws {
    useDelivery()
    request(0x51)
    m.test.load([0xFB, 0x90, 0x90, 0xF4], at: 0x1000)
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
    // Behind STI's shadow.
    #expect(m.test.read(0x8000 - 40, as: UInt64.self) == 0x1002)
    #expect(p.vmread(.guestInterruptStatus) == 0x5100)
    #expect(register(0x120) == 1 << 0x11)
    #expect(register(0x220) == 0)
    #expect(register(0xA0) == 0x50)
  }

  @Test func theTPRHoldsAnInterruptBack() throws {
    useDelivery()
    request(0x51)
    setRegister(0x80, 0x50)
    p.vmwrite(.guestRFLAGS, 0x202)
    // nop; mov cr8, rax; nop; hlt
    m.test.load([0x90, 0x44, 0x0F, 0x22, 0xC0, 0x90, 0xF4], at: 0x1000)
    m.cpu.gpr[0] = 4
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
    #expect(m.test.read(0x8000 - 40, as: UInt64.self) == 0x1005)
  }

  @Test func aHaltedGuestWakes() throws {
    useDelivery()
    request(0x51)
    p.vmwrite(.guestRFLAGS, 0x202)
    p.vmwrite(.guestActivityState, UInt64(ActivityState.hlt))
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
  }

  @Test func interruptWindowExitingHoldsDeliveryBack() throws {
    useDelivery()
    request(0x51)
    p.vmwrite(.guestRFLAGS, 0x202)
    set(.primaryControls, PrimaryControls.interruptWindowExiting)
    #expect(try p.vmlaunch() == .interruptWindow)
    #expect(p.vmread(.guestInterruptStatus) == 0x51)
  }

  @Test func anEOIExitsWhereItIsWaitedFor() throws {
    useAccessPage()
    useDelivery()
    setRegister(0x120, 1 << 0x11 | 1 << 2)
    p.vmwrite(.guestInterruptStatus, 0x5100)
    p.vmwrite(.eoiExitBitmap1, 1 << 0x11)
    loadWrite(0xB0, 0)
    #expect(try p.vmlaunch() == .virtualizedEOI)
    #expect(p.vmread(.exitQualification) == 0x51)
    #expect(p.vmread(.guestRIP) == 0x1007)
    #expect(p.vmread(.guestInterruptStatus) == 0x4200)
    #expect(register(0xA0) == 0x40)
    p.vmwrite(.guestRIP, 0x1000)
    #expect(try p.vmresume() == .hlt)
    #expect(p.vmread(.guestInterruptStatus) == 0)
  }

  @Test func aSelfIPIIsAnInterrupt() throws {
    useAccessPage()
    useDelivery()
    p.vmwrite(.guestRFLAGS, 0x202)
    loadWrite(0x300, 0x4_0061)
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
    #expect(p.vmread(.guestInterruptStatus) == 0x6100)
    // Any other command is the hypervisor's.
    loadWrite(0x300, 0x61)
    p.vmwrite(.guestRIP, 0x1000)
    #expect(try p.vmresume() == .apicWrite)
    #expect(p.vmread(.exitQualification) == 0x300)
  }

  @Test func postedInterruptsAreTakenOver() throws {
    useDelivery()
    let descriptor = m.makePage()
    descriptor.base.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
    descriptor.base.storeBytes(of: 1 << 0x11, toByteOffset: 8, as: UInt64.self)
    descriptor.base.storeBytes(of: 1, toByteOffset: 32, as: UInt64.self)
    p.vmwrite(.postedInterruptDescriptor, descriptor.address)
    p.vmwrite(.postedInterruptVector, 0xF2)
    set(.pinBasedControls, PinControls.postedInterrupts)
    set(.exitControls, ExitControls.acknowledgeInterrupt)
    p.vmwrite(.guestRFLAGS, 0x202)
    p.interrupt(0xF2)
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestRIP) == UInt64(Self.handler))
    #expect(p.vmread(.guestInterruptStatus) == 0x5100)
    #expect(descriptor.base.load(fromByteOffset: 8, as: UInt64.self) == 0)
    #expect(descriptor.base.load(fromByteOffset: 32, as: UInt64.self) == 0)
    // Another vector exits.
    p.interrupt(0x33)
    #expect(try p.vmresume() == .externalInterrupt)
    #expect(p.vmread(.exitInterruptionInfo) == 0x8000_0033)
  }
}

/// Interrupts, NMIs, INIT and start-up IPIs that a physical CPU gets.
@Suite struct CPUSignalTests {
  let m: VMXMachine
  var p: PhysicalCPU { m.processor }

  init() throws {
    m = try VMXMachine()
    m.test.store(UInt64(0x00AF_9B00_0000_FFFF), at: 0x2008)
    for vector in 0..<256 {
      m.test.store(UInt64(0x8E00_0008_0000 | 0x1100), at: 0x3000 + vector * 16)
    }
    m.test.load([0xF4], at: 0x1100)
    m.test.load([0xEB, 0xFE], at: 0x1000)
    p.vmwrite(.guestIDTRBase, 0x3000)
    p.vmwrite(.guestIDTRLimit, 0xFFF)
  }

  @Test func anInterruptWaitsUntilItIsAcknowledged() throws {
    p.interrupt(0x41)
    p.interrupt(0x52)
    #expect(try p.vmlaunch() == .externalInterrupt)
    #expect(p.vmread(.exitInterruptionInfo) == 0)
    #expect(try p.vmresume() == .externalInterrupt)
    #expect(p.acknowledgeInterrupt() == 0x52)
    p.vmwrite(
      .exitControls, p.vmread(.exitControls) | UInt64(ExitControls.acknowledgeInterrupt))
    #expect(try p.vmresume() == .externalInterrupt)
    #expect(p.vmread(.exitInterruptionInfo) == 0x8000_0041)
    #expect(p.acknowledgeInterrupt() == nil)
    p.kick()
    #expect(try p.vmresume() == .externalInterrupt)
    #expect(p.vmread(.exitInterruptionInfo) == UInt64(PhysicalCPU.kickVector) | 0x8000_0000)
  }

  @Test func withoutExitingItIsTheGuests() throws {
    p.vmwrite(
      .pinBasedControls,
      p.vmread(.pinBasedControls) & ~UInt64(PinControls.externalInterruptExiting))
    m.test.load([0x90, 0x90, 0xFB, 0x90, 0xEB, 0xFE], at: 0x1000)
    p.interrupt(0x41)
    #expect(try p.vmlaunch() == .hlt)
    #expect(p.vmread(.guestRIP) == 0x1100)
    #expect(m.test.read(0x8000 - 40, as: UInt64.self) == 0x1004)
  }

  @Test func anNMIExitsOrIsTheGuests() throws {
    p.raiseNMI()
    #expect(try p.vmlaunch() == .exceptionOrNMI)
    #expect(p.vmread(.exitInterruptionInfo) == 0x8000_0202)
    p.vmwrite(
      .pinBasedControls,
      p.vmread(.pinBasedControls) & ~UInt64(PinControls.nmiExiting | PinControls.virtualNMIs))
    p.raiseNMI()
    #expect(try p.vmresume() == .hlt)
    #expect(p.vmread(.guestRIP) == 0x1100)
    #expect(p.vmread(.guestInterruptibility) == UInt64(Interruptibility.blockingByNMI))
  }

  @Test func initAndStartUp() throws {
    p.startUp(0x9A)  // lost: the guest does not wait for it
    p.raiseINIT()
    #expect(try p.vmlaunch() == .initSignal)
    #expect(p.vmread(.guestRIP) == 0x1000)
    p.vmwrite(.guestActivityState, UInt64(ActivityState.waitForSIPI))
    p.raiseINIT()
    p.startUp(0x12)
    #expect(try p.vmresume() == .startupIPI)
    #expect(p.vmread(.exitQualification) == 0x12)
    // INIT was blocked meanwhile.
    p.vmwrite(.guestActivityState, UInt64(ActivityState.active))
    #expect(try p.vmresume() == .initSignal)
  }
}
