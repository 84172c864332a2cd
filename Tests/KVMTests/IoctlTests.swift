// SPDX-License-Identifier: Apache-2.0
//
// The ioctls by number: errnos on misuse, and state that comes back as it was set, on both
// engines.

import CHost
import Glibc
import KVM
import KVMClient
import SystemPackage
import Testing

@Suite(.onBothEngines) struct IoctlTests {
  private let hypervisor: any KVMTransport
  private let system: Int32
  private let machine: Int32

  init() throws {
    hypervisor = try Engine.current.transport()
    system = try hypervisor.open()
    machine = try hypervisor.ioctl(system, CKVM_CREATE_VM, 0)
  }

  private func error(_ handle: Int32, _ request: UInt32, _ argument: UInt = 0) -> Errno? {
    do throws(Errno) {
      _ = try hypervisor.ioctl(handle, request, argument)
      return nil
    } catch {
      return error
    }
  }

  private func error<T>(_ handle: Int32, _ request: UInt32, with value: T) -> Errno? {
    var value = value
    return withUnsafeMutablePointer(to: &value) {
      error(handle, request, UInt(bitPattern: $0))
    }
  }

  private func region(
    _ slot: UInt32, _ base: UInt64, _ size: UInt64, host: UInt64 = 0x7000_0000, flags: UInt32 = 0
  ) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region(
      slot: slot, flags: flags, guest_phys_addr: base, memory_size: size, userspace_addr: host)
  }

  @Test func system_() throws {
    #expect(try hypervisor.ioctl(system, CKVM_GET_API_VERSION, 0) == 12)
    #expect(error(system, CKVM_GET_API_VERSION, 1) == .invalidArgument)
    #expect(error(system, CKVM_CREATE_VM, 99) == .invalidArgument)
    #expect(try hypervisor.ioctl(system, CKVM_GET_VCPU_MMAP_SIZE, 0) == 12288)
    // As Linux: ENOTTY is the machine's answer alone.
    #expect(error(system, 0xAEFF) == .invalidArgument)
    #expect(error(machine, 0xAEFF) == .inappropriateIOCTLForDevice)
    #expect(error(system, CKVM_RUN) == .invalidArgument)
    #expect(error(9999, CKVM_GET_API_VERSION) == .badFileDescriptor)
    #expect(try hypervisor.ioctl(system, CKVM_CHECK_EXTENSION, UInt(KVM_CAP_IRQCHIP)) == 1)
    #expect(try hypervisor.ioctl(system, CKVM_CHECK_EXTENSION, UInt(KVM_CAP_HYPERV)) == 0)
    #expect(try hypervisor.ioctl(system, CKVM_CHECK_EXTENSION, 100_000) == 0)
  }

  @Test func memorySlots() throws {
    let set = CKVM_SET_USER_MEMORY_REGION
    #expect(error(machine, set, with: region(0, 0, 0x1001)) == .invalidArgument)
    #expect(error(machine, set, with: region(0, 0x10, 0x1000)) == .invalidArgument)
    #expect(error(machine, set, with: region(0, 0, 0x1000, host: 0x123)) == .invalidArgument)
    #expect(error(machine, set, with: region(0, 0, 0)) == .invalidArgument)
    #expect(error(machine, set, with: region(40000, 0, 0x1000)) == .invalidArgument)
    #expect(error(machine, set, with: region(0, 0, 0x1000, flags: 64)) == .invalidArgument)
    #expect(error(machine, set, with: region(0, 0, 0x2000)) == nil)
    #expect(error(machine, set, with: region(1, 0x1000, 0x1000)) == .fileExists)
    #expect(error(machine, set, with: region(0, 0, 0x3000)) == .invalidArgument)
    #expect(error(machine, set, with: region(0, 0x4000, 0x2000)) == nil)
    #expect(error(machine, set, with: region(1, 0, 0x1000)) == nil)
    #expect(error(machine, set, with: region(0, 0, 0)) == nil)
    #expect(error(machine, set, 0) == .badAddress)
  }

  @Test func chipsAndCPUs() throws {
    #expect(error(machine, CKVM_IRQ_LINE, with: kvm_irq_level()) == .noSuchAddressOrDevice)
    #expect(error(machine, CKVM_CREATE_PIT2, with: kvm_pit_config()) == .noSuchFileOrDirectory)
    #expect(error(machine, CKVM_CREATE_IRQCHIP) == nil)
    #expect(error(machine, CKVM_CREATE_IRQCHIP) == .fileExists)
    #expect(error(machine, CKVM_CREATE_PIT2, with: kvm_pit_config()) == nil)
    #expect(error(machine, CKVM_CREATE_PIT2, with: kvm_pit_config()) == .fileExists)
    let cpu = try hypervisor.ioctl(machine, CKVM_CREATE_VCPU, 0)
    #expect(error(machine, CKVM_CREATE_VCPU, 0) == .fileExists)
    #expect(error(machine, CKVM_CREATE_VCPU, 100_000) == .invalidArgument)
    #expect(
      error(cpu, CKVM_INTERRUPT, with: kvm_interrupt(irq: 3)) == .noSuchAddressOrDevice)
    #expect(error(cpu, CKVM_INTERRUPT, with: kvm_interrupt(irq: 300)) == .invalidArgument)
    #expect(error(cpu, CKVM_KVMCLOCK_CTRL) == .invalidArgument)
    #expect(error(cpu, CKVM_CREATE_VM) == .invalidArgument)
    hypervisor.close(cpu)
    #expect(error(cpu, CKVM_GET_REGS) == .badFileDescriptor)
  }

  @Test func listsSayHowLongTheyAre() throws {
    var list = [UInt32](repeating: 0, count: 1)
    let result = list.withUnsafeMutableBytes {
      error(system, CKVM_GET_MSR_INDEX_LIST, UInt(bitPattern: $0.baseAddress))
    }
    #expect(result == .argListTooLong)
    #expect(list[0] > 20)
    var full = [UInt32](repeating: 0, count: 1 + Int(list[0]))
    full[0] = list[0]
    let again = full.withUnsafeMutableBytes {
      error(system, CKVM_GET_MSR_INDEX_LIST, UInt(bitPattern: $0.baseAddress))
    }
    #expect(again == nil)
    #expect(full.contains(0xC000_0082))
    #expect(full.contains(0x4B56_4D01))
  }

  @Test func registersComeBack() throws {
    let cpu = try hypervisor.ioctl(machine, CKVM_CREATE_VCPU, 0)
    var regs = kvm_regs()
    regs.rax = 1
    regs.r15 = 0xFEDC_BA98_7654_3210
    regs.rsp = 0x1234
    regs.rip = 0x5678
    regs.rflags = 0x246
    #expect(error(cpu, CKVM_SET_REGS, with: regs) == nil)
    var back = kvm_regs()
    withUnsafeMutablePointer(to: &back) {
      #expect(error(cpu, CKVM_GET_REGS, UInt(bitPattern: $0)) == nil)
    }
    #expect(back.rax == 1 && back.r15 == regs.r15 && back.rsp == 0x1234)
    #expect(back.rip == 0x5678 && back.rflags == 0x246)
  }

  @Test func resetState() throws {
    let cpu = try hypervisor.ioctl(machine, CKVM_CREATE_VCPU, 0)
    var sregs = kvm_sregs()
    withUnsafeMutablePointer(to: &sregs) {
      #expect(error(cpu, CKVM_GET_SREGS, UInt(bitPattern: $0)) == nil)
    }
    #expect(sregs.cs.selector == 0xF000 && sregs.cs.base == 0xFFFF_0000)
    #expect(sregs.cr0 == 0x6000_0010 && sregs.cr4 == 0 && sregs.efer == 0)
    #expect(sregs.apic_base == 0xFEE0_0800 || sregs.apic_base == 0xFEE0_0900)
    // SMXE: no KVM offers SMX.
    sregs.cr4 = 1 << 14
    #expect(error(cpu, CKVM_SET_SREGS, with: sregs) == .invalidArgument)
    sregs.cr4 = 0
    sregs.efer = 1 << 10
    #expect(error(cpu, CKVM_SET_SREGS, with: sregs) == .invalidArgument)
  }
}
