// SPDX-License-Identifier: Apache-2.0
//
// The ioctls of /dev/kvm itself, as tables of request number and method. Unknown requests fail with
// EINVAL.

import CHost
import SystemPackage
import X86CPU

/// The ioctls of the system.
extension Hypervisor {
  static let ioctls = IoctlTable<Hypervisor>([general, processor], missing: .invalidArgument)

  private static let general: [(UInt32, IoctlTable<Hypervisor>.Method)] = [
    (
      CKVM_GET_API_VERSION,
      { (_, argument) throws(Errno) in
        guard argument.value == 0 else { throw .invalidArgument }
        return KVM_API_VERSION
      }
    ),
    (
      CKVM_CREATE_VM,
      { (system, argument) throws(Errno) in
        guard argument.value == 0 else { throw .invalidArgument }
        return system.add(.machine(try Machine(hypervisor: system)))
      }
    ),
    (
      CKVM_CHECK_EXTENSION,
      { (system, argument) throws(Errno) in
        Capabilities.value(
          argument.value, physicalCPUs: system.physicalCPUCount, silicon: system.silicon)
      }
    ),
    (
      CKVM_GET_VCPU_MMAP_SIZE,
      { (_, argument) throws(Errno) in
        guard argument.value == 0 else { throw .invalidArgument }
        return Int32(SharedPages.size)
      }
    ),
  ]

  private static let processor: [(UInt32, IoctlTable<Hypervisor>.Method)] = [
    (
      CKVM_GET_SUPPORTED_CPUID,
      { (system, argument) throws(Errno) in
        try CPUIDTable.write(SupportedCPUID.entries(system.silicon), to: argument)
        return 0
      }
    ),
    (
      CKVM_GET_EMULATED_CPUID,
      { (_, argument) throws(Errno) in
        try CPUIDTable.write([], to: argument)
        return 0
      }
    ),
    (
      CKVM_GET_MSR_INDEX_LIST,
      { (system, argument) throws(Errno) in
        try MSRListTable.write(MSRLists.saved(system.silicon), to: argument)
        return 0
      }
    ),
    (
      CKVM_GET_MSR_FEATURE_INDEX_LIST,
      { (system, argument) throws(Errno) in
        try MSRListTable.write(MSRLists.features(system.silicon), to: argument)
        return 0
      }
    ),
    (
      CKVM_GET_MSRS,
      { (system, argument) throws(Errno) in
        try MSRTable.forEach(argument) { MSRLists.feature($0.index, system.silicon) }
      }
    ),
    (
      CKVM_X86_GET_MCE_CAP_SUPPORTED,
      { (_, argument) throws(Errno) in
        try argument.write(MachineCheck.capabilities)
        return 0
      }
    ),
    (
      CKVM_GET_DEVICE_ATTR,
      { (_, argument) throws(Errno) in
        let attribute: kvm_device_attr = try argument.read()
        guard attribute.group == 0, attribute.attr == UInt64(KVM_X86_XCOMP_GUEST_SUPP) else {
          throw .noSuchAddressOrDevice
        }
        try Argument(value: UInt(attribute.addr)).write(ExtendedStateLayout.supported)
        return 0
      }
    ),
    (
      CKVM_HAS_DEVICE_ATTR,
      { (_, argument) throws(Errno) in
        let attribute: kvm_device_attr = try argument.read()
        guard attribute.group == 0, attribute.attr == UInt64(KVM_X86_XCOMP_GUEST_SUPP) else {
          throw .noSuchAddressOrDevice
        }
        return 0
      }
    ),
  ]
}
