// SPDX-License-Identifier: Apache-2.0
//
// A VMCB in the memory of a guest that is a hypervisor, as tests of nested SVM fill it.

import X86

struct GuestVMCB {
  static let address = 0x4000
  /// The guest's memory.
  let memory: UnsafeMutableRawPointer

  subscript(field: VMCBField) -> UInt64 {
    get {
      let place = memory + Self.address + Int(field.offset)
      return switch field.size {
      case 1: UInt64(place.load(as: UInt8.self))
      case 2: UInt64(place.load(as: UInt16.self))
      case 4: UInt64(place.load(as: UInt32.self))
      default: place.load(as: UInt64.self)
      }
    }
    nonmutating set {
      let place = memory + Self.address + Int(field.offset)
      switch field.size {
      case 1: place.storeBytes(of: UInt8(truncatingIfNeeded: newValue), as: UInt8.self)
      case 2: place.storeBytes(of: UInt16(truncatingIfNeeded: newValue), as: UInt16.self)
      case 4: place.storeBytes(of: UInt32(truncatingIfNeeded: newValue), as: UInt32.self)
      default: place.storeBytes(of: newValue, as: UInt64.self)
      }
    }
  }

  func intercept(_ bits: SVMIntercepts) {
    self[.intercepts3] = bits.rawValue & 0xFFFF_FFFF
    self[.intercepts4] = bits.rawValue >> 32
  }

  /// L2 in real mode at `base`, whose CPUID and VMMCALL exit to L1. The I/O map is at 0x6000, the
  /// MSR map at 0x9000.
  func prepare(base: UInt64) {
    intercept([.vmrun, .cpuid, .vmmcall])
    for register: SegmentRegister in [.es, .cs, .ss, .ds] {
      self[.attributes(of: register)] = register == .cs ? 0x9B : 0x93
      self[.limit(of: register)] = 0xFFFF
    }
    let values: [(VMCBField, UInt64)] = [
      (.asid, 1), (.ioPermissionMap, 0x6000), (.msrPermissionMap, 0x9000),
      (.base(of: .cs), base), (.selector(of: .cs), base >> 4), (.efer, EFER.svme.rawValue),
      (.cr0, CR0.et.rawValue), (.rflags, RFLAGS.fixed.rawValue), (.rsp, 0x8000),
      (.dr6, DR6.initial.rawValue), (.dr7, DR7.initial.rawValue), (.idtrLimit, 0x3FF),
      (.guestPAT, 0x0007_0406_0007_0406),
    ]
    for (field, value) in values { self[field] = value }
  }
}
