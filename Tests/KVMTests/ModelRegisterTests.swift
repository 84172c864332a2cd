// SPDX-License-Identifier: Apache-2.0
//
// MSR filters and exits, machine checks, events, hypercalls, CPUID: what guest and client see,
// confirmed by the kernel's KVM where there is one.

import CHost
import KVM
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct ModelRegisterTests {
  /// A filter that denies `number` for the accesses in `flags`.
  private func deny(_ client: Client, _ number: UInt32, _ flags: Int32) -> Errno? {
    var bitmap = [UInt8](repeating: 0, count: 8)
    return bitmap.withUnsafeMutableBufferPointer { bits in
      var filter = kvm_msr_filter()
      filter.ranges.0.flags = UInt32(flags)
      filter.ranges.0.base = number
      filter.ranges.0.nmsrs = 1
      filter.ranges.0.bitmap = bits.baseAddress
      return client.error(client.vm, CKVM_X86_SET_MSR_FILTER, with: filter)
    }
  }

  /// mov ecx, `number`; rdmsr; out 0x90, al; wrmsr; out 0x91, al
  private func load(_ client: Client, _ number: UInt32) {
    let bytes = withUnsafeBytes(of: number) { Array($0) }
    client.load([0x66, 0xB9] + bytes + [0x0F, 0x32, 0xE6, 0x90, 0x0F, 0x30, 0xE6, 0x91])
    // #GP: out 0x9D, al; hlt
    client.load([0xE6, 0x9D, 0xF4], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 13 * 4, as: UInt32.self)
  }

  private static let both = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE

  @Test func filteredRegisterFaults() throws {
    let client = try Client()
    load(client, 0xC000_0082)  // LSTAR, which needs no exit otherwise
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.nextOut()?.port == 0x91)
    #expect(deny(client, 0xC000_0082, Self.both) == nil)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x9D)
    #expect(deny(client, 0xC000_0082, KVM_MSR_FILTER_WRITE) == nil)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.nextOut()?.port == 0x9D)
    // The client itself is not filtered, and an empty filter lets all through.
    #expect(try client.setMSR(0xC000_0082, 7))
    try client.set(client.vm, CKVM_X86_SET_MSR_FILTER, kvm_msr_filter())
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.value == 7)
    #expect(try client.nextOut()?.port == 0x91)
  }

  @Test func filterErrors() throws {
    let client = try Client()
    #expect(deny(client, 1, 0) == .invalidArgument)
    #expect(deny(client, 1, 8) == .invalidArgument)
    var filter = kvm_msr_filter()
    filter.flags = 2
    #expect(client.error(client.vm, CKVM_X86_SET_MSR_FILTER, with: filter) == .invalidArgument)
    filter.flags = UInt32(KVM_MSR_FILTER_DEFAULT_DENY)
    #expect(client.error(client.vm, CKVM_X86_SET_MSR_FILTER, with: filter) == .invalidArgument)
    filter.flags = 0
    filter.ranges.0.flags = 1
    filter.ranges.0.nmsrs = 1
    #expect(client.error(client.vm, CKVM_X86_SET_MSR_FILTER, with: filter) == .badAddress)
    filter.ranges.0.nmsrs = 1 << 20
    #expect(client.error(client.vm, CKVM_X86_SET_MSR_FILTER, with: filter) == .invalidArgument)
    #expect(
      client.error { () throws(Errno) in try client.enable(KVM_CAP_X86_USER_SPACE_MSR, 8) }
        == .invalidArgument)
  }

  @Test func clientAnswersForRegisters() throws {
    let client = try Client()
    load(client, 0xC000_0082)
    try client.enable(
      KVM_CAP_X86_USER_SPACE_MSR,
      UInt64(KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN))
    #expect(deny(client, 0xC000_0082, Self.both) == nil)
    #expect(try client.run() == KVM_EXIT_X86_RDMSR)
    #expect(client.shared.pointee.msr.index == 0xC000_0082)
    #expect(client.shared.pointee.msr.reason == UInt32(KVM_MSR_EXIT_REASON_FILTER))
    client.shared.pointee.msr.data = 0x1_0000_0042
    #expect(try client.nextOut()?.value == 0x42)
    #expect(try client.registers.rdx == 1)
    #expect(try client.run() == KVM_EXIT_X86_WRMSR)
    #expect(client.shared.pointee.msr.data == 0x1_0000_0042)
    client.shared.pointee.msr.error = 1
    #expect(try client.nextOut()?.port == 0x9D)
    // One that does not exist.
    load(client, 0x1234_5678)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.run() == KVM_EXIT_X86_RDMSR)
    #expect(client.shared.pointee.msr.reason == UInt32(KVM_MSR_EXIT_REASON_UNKNOWN))
    client.shared.pointee.msr.data = 9
    #expect(try client.nextOut()?.value == 9)
  }

  @Test func platformInfoCanBeTakenAway() throws {
    let client = try Client()
    #expect(try client.setMSR(0xCE, 0x8000_0033))
    load(client, 0xCE)
    #expect(try client.nextOut()?.value == 0x33)
    try client.enable(KVM_CAP_MSR_PLATFORM_INFO, 0)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x9D)
    #expect(try client.msr(0xCE) == 0x8000_0033)
  }

  /// Registers of AMD's processors that kernels touch.
  @Test func otherVendorsRegisters() throws {
    let client = try Client()
    load(client, 0xC001_0010)
    #expect(try client.nextOut()?.value == 0)
    #expect(try client.nextOut()?.port == 0x9D)
    #expect(try client.setMSR(0xC001_1022, 0x1000))
    #expect(try client.msr(0xC001_1022) == 0)
    #expect(try client.setMSR(0xC001_0015, 1 << 24 | 1 << 6))
    #expect(try client.msr(0xC001_0015) == 1 << 24)
    #expect(try !client.setMSR(0xC001_0015, 1 << 30))
  }

  // MARK: Machine checks

  @Test func machineCheck() throws {
    let client = try Client()
    client.load([0xEB, 0xFE])
    client.load([0xE6, 0x99, 0xF4], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 18 * 4, as: UInt32.self)
    let setUp = CKVM_X86_SETUP_MCE
    #expect(client.error(client.cpu, setUp, with: UInt64(0)) == .invalidArgument)
    #expect(client.error(client.cpu, setUp, with: UInt64(33)) == .invalidArgument)
    #expect(client.error(client.cpu, setUp, with: UInt64(4 | 1 << 30)) == .invalidArgument)
    #expect(client.error(client.cpu, setUp, with: UInt64(10 | 1 << 8 | 1 << 24)) == nil)
    #expect(try client.msr(0x179) == 10 | 1 << 8 | 1 << 24)
    #expect(try client.msr(0x17B) == .max)
    #expect(try client.msr(0x424) == .max)
    #expect(try client.msr(0x428) == nil)
    var event = kvm_x86_mce()
    event.bank = 9
    event.addr = 0x1234
    #expect(client.error(client.cpu, CKVM_X86_SET_MCE, with: event) == .invalidArgument)
    event.status = 1 << 63 | 1 << 61
    event.mcg_status = 5
    event.bank = 10
    #expect(client.error(client.cpu, CKVM_X86_SET_MCE, with: event) == .invalidArgument)
    event.bank = 9
    try client.changeSpecial { $0.cr4 = 0x40 }
    #expect(client.error(client.cpu, CKVM_X86_SET_MCE, with: event) == nil)
    #expect(try client.msr(0x425) == event.status)
    #expect(try client.msr(0x426) == 0x1234)
    #expect(try client.msr(0x17A) == 5)
    #expect(try client.nextOut()?.port == 0x99)
    // One more while the first is in progress cannot be taken.
    #expect(client.error(client.cpu, CKVM_X86_SET_MCE, with: event) == nil)
    #expect(try client.run() == KVM_EXIT_SHUTDOWN)
  }

  /// An error that needs no action is told by an interrupt, like a corrected one.
  @Test func correctedErrorInterrupt() throws {
    let client = try Client(chips: .all)
    client.load([0xEB, 0xFE])
    #expect(try !client.setMSR(0x281, 1 << 30))
    try client.set(client.cpu, CKVM_X86_SETUP_MCE, UInt64(10 | 1 << 8 | 1 << 10))
    #expect(try client.localAPIC(0x30) >> 16 & 0xFF == 6)
    #expect(try client.setMSR(0x281, 1 << 30))
    #expect(try !client.setMSR(0x281, 1 << 40))
    try client.setLocalAPIC(0xF0, 0x1FF)
    try client.setLocalAPIC(0x2F0, 0x51)
    var event = kvm_x86_mce()
    event.status = 1 << 63 | 1 << 61
    event.bank = 2
    try client.set(client.cpu, CKVM_X86_SET_MCE, event)
    #expect(try !client.isRequested(0x51))
    #expect(try client.msr(0x409) == event.status)
    event.bank = 1
    try client.set(client.cpu, CKVM_X86_SET_MCE, event)
    #expect(try client.isRequested(0x51))
  }

  // MARK: Events

  private func events(_ client: Client) throws(Errno) -> kvm_vcpu_events {
    try client.get(client.cpu, CKVM_GET_VCPU_EVENTS, kvm_vcpu_events())
  }

  @Test func pendingExceptionWithPayload() throws {
    let client = try Client()
    client.load([0xEB, 0xFE])
    client.load([0xE6, 0x9E, 0xF4], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 14 * 4, as: UInt32.self)
    var value = kvm_vcpu_events()
    value.flags = UInt32(KVM_VCPUEVENT_VALID_PAYLOAD)
    #expect(client.error(client.cpu, CKVM_SET_VCPU_EVENTS, with: value) == .invalidArgument)
    try client.enable(KVM_CAP_EXCEPTION_PAYLOAD, 1)
    value.exception.pending = 1
    value.exception.nr = 40
    #expect(client.error(client.cpu, CKVM_SET_VCPU_EVENTS, with: value) == .invalidArgument)
    value.exception.nr = 14
    value.exception.has_error_code = 1
    value.exception.error_code = 6
    value.exception_has_payload = 1
    value.exception_payload = 0xABCD
    #expect(client.error(client.cpu, CKVM_SET_VCPU_EVENTS, with: value) == nil)
    let back = try events(client)
    #expect(back.exception.pending == 1 && back.exception.injected == 0)
    #expect(back.exception.nr == 14 && back.exception.error_code == 6)
    #expect(back.exception_has_payload == 1 && back.exception_payload == 0xABCD)
    #expect(back.flags & UInt32(KVM_VCPUEVENT_VALID_PAYLOAD) != 0)
    #expect(try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()).cr2 == 0)
    #expect(try client.nextOut()?.port == 0x9E)
    #expect(try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()).cr2 == 0xABCD)
    #expect(try events(client).exception.pending == 0)
  }

  @Test func tripleFaultEvent() throws {
    let client = try Client()
    client.load([0xEB, 0xFE])
    var value = kvm_vcpu_events()
    value.flags = UInt32(KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
    value.triple_fault.pending = 1
    #expect(client.error(client.cpu, CKVM_SET_VCPU_EVENTS, with: value) == .invalidArgument)
    try client.enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)
    #expect(client.error(client.cpu, CKVM_SET_VCPU_EVENTS, with: value) == nil)
    #expect(try events(client).triple_fault.pending == 1)
    #expect(try client.run() == KVM_EXIT_SHUTDOWN)
    #expect(try events(client).triple_fault.pending == 0)
  }

  // MARK: Hypercalls, signals, CPUID, limits

  @Test func hypercallForTheClient() throws {
    let client = try Client()
    // mov eax, 12; mov ebx, 0x4000; mov ecx, 2; mov edx, 1; vmcall; out 0x90, al
    client.load([
      0x66, 0xB8, 12, 0, 0, 0, 0x66, 0xBB, 0, 0x40, 0, 0, 0x66, 0xB9, 2, 0, 0, 0, 0x66, 0xBA, 1, 0,
      0, 0, 0x0F, 0x01, 0xC1, 0xE6, 0x90,
    ])
    #expect(try client.nextOut()?.value == UInt8(truncatingIfNeeded: -1000))
    let enable = { (bits: UInt64) in
      client.error { () throws(Errno) in try client.enable(KVM_CAP_EXIT_HYPERCALL, bits) }
    }
    #expect(enable(1) == .invalidArgument)
    #expect(enable(1 << 12) == nil)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.run() == KVM_EXIT_HYPERCALL)
    #expect(client.shared.pointee.hypercall.nr == 12)
    #expect(client.shared.pointee.hypercall.args.0 == 0x4000)
    #expect(client.shared.pointee.hypercall.args.1 == 2)
    client.shared.pointee.hypercall.ret = 0x21
    #expect(try client.nextOut()?.value == 0x21)
  }

  @Test func signalMask() throws {
    let client = try Client()
    struct Mask {
      var length: UInt32
      var low: UInt32
      var high: UInt32
    }
    let set = CKVM_SET_SIGNAL_MASK
    #expect(client.hypervisor.signalMask(client.cpu) == nil)
    let wrong = Mask(length: 4, low: 1, high: 0)
    #expect(client.error(client.cpu, set, with: wrong) == .invalidArgument)
    try client.set(client.cpu, set, Mask(length: 8, low: 0xFFFF_FFFE, high: 0x7FFF_FFFF))
    #expect(client.hypervisor.signalMask(client.cpu) == 0x7FFF_FFFF_FFFF_FFFE)
    try client.call(client.cpu, set, 0)
    #expect(client.hypervisor.signalMask(client.cpu) == nil)
  }

  @Test func largestProcessorNumber() throws {
    // Before there are vCPUs, as later kernels want it.
    let client = try Client { client in
      func limit(_ value: UInt64) -> Errno? {
        client.error { () throws(Errno) in try client.enable(KVM_CAP_MAX_VCPU_ID, value) }
      }
      #expect(limit(100_000) == .invalidArgument)
      #expect(limit(4) == nil)
      #expect(limit(4) == nil)
      #expect(limit(5) == .invalidArgument)
    }
    #expect(
      client.error { () throws(Errno) in _ = try client.call(client.vm, CKVM_CREATE_VCPU, 4) }
        == .invalidArgument)
    #expect(try client.call(client.vm, CKVM_CREATE_VCPU, 3) > 0)
  }

  @Test func unknownCapabilities() throws {
    let client = try Client()
    func error(_ number: Int32, _ handle: Int32) -> Errno? {
      client.error { () throws(Errno) in try client.enable(number, 0, on: handle) }
    }
    #expect(error(KVM_CAP_HYPERV_SYNIC, client.vm) == .invalidArgument)
    #expect(error(KVM_CAP_HYPERV_SYNIC, client.cpu) == .invalidArgument)
    var request = kvm_enable_cap()
    request.cap = UInt32(KVM_CAP_EXCEPTION_PAYLOAD)
    request.flags = 1
    #expect(client.error(client.vm, CKVM_ENABLE_CAP, with: request) == .invalidArgument)
  }

  /// KVM's own MSRs go with their CPUID bits once the client says so.
  @Test func enforcedParavirtualFeatures() throws {
    let client = try Client()
    try client.set(client.cpu, CKVM_SET_CPUID2, (UInt32(0), UInt32(0)))
    load(client, 0x4B56_4D01)
    #expect(try client.nextOut()?.port == 0x90)
    try client.enable(KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1, on: client.cpu)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x9D)
  }

  /// Once it has run, a vCPU keeps its CPUID.
  @Test func cpuidStays() throws {
    let client = try Client()
    client.load([0xE6, 0x90])
    #expect(try client.nextOut()?.port == 0x90)
    #expect(
      client.error(client.cpu, CKVM_SET_CPUID2, with: (UInt32(0), UInt32(0)))
        == .invalidArgument)
  }

  @Test func stealTime() throws {
    let client = try Client()
    client.memory.storeBytes(of: 0x55, toByteOffset: 0x6010, as: UInt8.self)
    #expect(try !client.setMSR(0x4B56_4D03, 0x6000 | 3))
    #expect(try client.setMSR(0x4B56_4D03, 0x6000 | 1))
    #expect(try client.msr(0x4B56_4D03) == 0x6001)
    client.load([0xE6, 0x90])
    #expect(try client.nextOut()?.port == 0x90)
    let version = client.memory.load(fromByteOffset: 0x6008, as: UInt32.self)
    #expect(version > 0 && version & 1 == 0)
    #expect(client.memory.load(fromByteOffset: 0x6010, as: UInt8.self) == 0)
  }

  /// Items of repeated string input come together, those of output one by one.
  @Test func batchesOfStringIO() throws {
    let client = try Client()
    // mov cx, 0x900; mov di, 0x2000; mov dx, 0x99; rep insw; mov cx, 3; mov si, 0x2000;
    // rep outsw; hlt
    client.load([
      0xB9, 0, 9, 0xBF, 0, 0x20, 0xBA, 0x99, 0, 0xF3, 0x6D, 0xB9, 3, 0, 0xBE, 0, 0x20, 0xF3, 0x6F,
      0xF4,
    ])
    var next: UInt16 = 1
    for count in [0x800, 0x100] as [UInt32] {
      #expect(try client.run() == KVM_EXIT_IO)
      #expect(client.shared.pointee.io.direction == KVM_EXIT_IO_IN)
      #expect(client.shared.pointee.io.count == count && client.shared.pointee.io.size == 2)
      for index in 0..<Int(count) {
        client.pages.storeBytes(of: next, toByteOffset: 4096 + index * 2, as: UInt16.self)
        next += 1
      }
    }
    for item in 1...3 as ClosedRange<UInt16> {
      #expect(try client.run() == KVM_EXIT_IO)
      #expect(client.shared.pointee.io.direction == KVM_EXIT_IO_OUT)
      #expect(client.shared.pointee.io.count == 1)
      #expect(client.pages.load(fromByteOffset: 4096, as: UInt16.self) == item)
    }
    #expect(client.memory.load(fromByteOffset: 0x2000 + 0x8FF * 2, as: UInt16.self) == 0x900)
    #expect(try client.run() == KVM_EXIT_HLT)
    #expect(try client.registers.rcx & 0xFFFF == 0)
    #expect(try client.registers.rdi & 0xFFFF == 0x3200)
  }
}
