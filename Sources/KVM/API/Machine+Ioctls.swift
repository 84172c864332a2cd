// SPDX-License-Identifier: Apache-2.0
//
// The table of a machine's ioctls, joined from the families in the files beside this one.

import CHost
import InterruptChips
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// The ioctls of a machine: vCPUs, capabilities, addresses. Larger families have files of their
/// own.
extension Machine {
  typealias Method = IoctlTable<Machine>.Method

  static let ioctls = IoctlTable<Machine>(
    [
      general, memoryIoctls, interruptIoctls, timerIoctls, eventIoctls, capabilityIoctls,
      dirtyRingIoctls,
    ], missing: .inappropriateIOCTLForDevice)

  private static let general: [(UInt32, Method)] = [
    (
      CKVM_CREATE_VCPU,
      { (machine, argument) throws(Errno) in
        try machine.createVirtualCPU(argument.value)
      }
    ),
    (
      CKVM_CHECK_EXTENSION,
      { (machine, argument) throws(Errno) in
        Capabilities.value(
          argument.value, physicalCPUs: machine.hypervisor.physicalCPUCount,
          silicon: machine.hypervisor.silicon)
      }
    ),
    (CKVM_GET_STATS_FD, { (machine, _) throws(Errno) in try machine.openStatistics() }),
    // We have no devices of these kinds.
    (
      CKVM_CREATE_DEVICE,
      { (_, argument) throws(Errno) in
        _ = try argument.read(kvm_create_device.self)
        throw Errno(rawValue: ENODEV)
      }
    ),
    (CKVM_GET_NR_MMU_PAGES, { (_, _) throws(Errno) in 0 }),
    (
      CKVM_SET_TSS_ADDR,
      { (machine, argument) throws(Errno) in
        // Three pages that end at 4 GiB at most; unrestricted guests need none of them.
        guard argument.value <= 1 << 32 - 3 * 4096 else { throw .invalidArgument }
        machine.configure { $0.tssAddress = UInt64(argument.value) }
        return 0
      }
    ),
    (
      CKVM_SET_IDENTITY_MAP_ADDR,
      { (machine, argument) throws(Errno) in
        let address: UInt64 = try argument.read()
        guard machine.virtualCPUs.isEmpty else { throw .invalidArgument }
        machine.configure { $0.identityMapAddress = address == 0 ? 0xFFFB_C000 : address }
        return 0
      }
    ),
    (
      CKVM_SET_BOOT_CPU_ID,
      { (machine, argument) throws(Errno) in
        try machine.configure { (configuration) throws(Errno) in
          guard machine.virtualCPUs.isEmpty else { throw .resourceBusy }
          guard argument.value <= UInt(configuration.maxCPUID ?? maxCPUIDs) else {
            throw .invalidArgument
          }
          configuration.bootCPU = UInt32(argument.value)
        }
        return 0
      }
    ),
    (
      CKVM_SET_NR_MMU_PAGES,
      { (_, argument) throws(Errno) in
        // Accepted and ignored: there is no limit.
        guard argument.value >= 64 else { throw .invalidArgument }
        return 0
      }
    ),
  ]

  func configure(_ change: (inout Configuration) throws(Errno) -> Void) throws(Errno) {
    try configuration.withLock { (configuration) throws(Errno) in try change(&configuration) }
  }

  func configure(_ change: (inout Configuration) -> Void) {
    configuration.withLock { change(&$0) }
  }

  private func createVirtualCPU(_ number: UInt) throws(Errno) -> Int32 {
    let vcpu = try configuration.withLock { (configuration) throws(Errno) -> VirtualCPU in
      guard number < UInt(configuration.maxCPUID ?? Self.maxCPUIDs) else {
        throw .invalidArgument
      }
      let id = UInt32(number)
      let existing = virtualCPUs
      guard existing.count < Int(Self.maxVirtualCPUs) else { throw .invalidArgument }
      guard !existing.contains(where: { $0.id == id }) else { throw .fileExists }
      let vcpu = try VirtualCPU(
        machine: self, id: id, index: existing.count, isBootCPU: id == configuration.bootCPU,
        dirtyRingEntries: configuration.dirtyRingEntries)
      let identity = vcpu.apic?.state.withLock { $0.identity }
      cpus.list.withLock {
        $0.all.append(vcpu)
        $0.identities.append(
          identity ?? LocalAPICIdentity(mode: .disabled, id: id, logicalID: 0))
      }
      return vcpu
    }
    return hypervisor.add(.virtualCPU(vcpu, self))
  }
}
