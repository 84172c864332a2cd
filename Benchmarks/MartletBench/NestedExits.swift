// SPDX-License-Identifier: Apache-2.0
//
// A hypervisor in a guest, with AMD's processor: how long an exit of its own guest takes, to it and
// back. L2 executes CPUID in a loop, L1 steps over it.

import X86

enum NestedExits {
  /// Of vmcb12, in L1's memory.
  static let block = 0x4000
  /// Of L2's code, in real mode.
  static let code = 0x10000

  /// mov eax, vmcb; vmrun; add dword [vmcb.RIP], 2
  static let plain: [UInt8] = [0xB8, 0, 0x40, 0, 0, 0x0F, 0x01, 0xD8] + stepOver
  /// The same as Linux's KVM does it: clgi; vmload; vmrun; vmsave; vmload; stgi.
  static let likeLinux: [UInt8] =
    [0x0F, 0x01, 0xDD, 0xB8, 0, 0x40, 0, 0, 0x0F, 0x01, 0xDA, 0x0F, 0x01, 0xD8, 0x0F, 0x01, 0xDB]
    + [0x0F, 0x01, 0xDA, 0x0F, 0x01, 0xDC] + stepOver
  private static let stepOver: [UInt8] = [
    0x83, 0x05, UInt8(truncatingIfNeeded: VMCBField.rip.offset), 0x45, 0, 0, 2,
  ]

  /// Writes vmcb12 and L2 (cpuid; jmp back) to L1's memory.
  static func prepare(_ memory: UnsafeMutableRawPointer) {
    memory.advanced(by: code).copyMemory(from: [0x0F, 0xA2, 0xEB, 0xFC] as [UInt8], byteCount: 4)
    let intercepts: SVMIntercepts = [.vmrun, .cpuid]
    var fields: [(VMCBField, UInt64)] = [
      (.intercepts3, intercepts.rawValue & 0xFFFF_FFFF), (.intercepts4, intercepts.rawValue >> 32),
      (.asid, 1), (.ioPermissionMap, 0x6000), (.msrPermissionMap, 0x9000),
      (.base(of: .cs), UInt64(code)), (.selector(of: .cs), UInt64(code >> 4)),
      (.efer, EFER.svme.rawValue), (.cr0, CR0.et.rawValue), (.rflags, RFLAGS.fixed.rawValue),
      (.dr6, DR6.initial.rawValue), (.dr7, DR7.initial.rawValue),
    ]
    for register: SegmentRegister in [.es, .cs, .ss, .ds] {
      fields.append((.attributes(of: register), register == .cs ? 0x9B : 0x93))
      fields.append((.limit(of: register), 0xFFFF))
    }
    for (field, value) in fields {
      let place = memory + block + Int(field.offset)
      withUnsafeBytes(of: value.littleEndian) {
        place.copyMemory(from: $0.baseAddress!, byteCount: Int(field.size))
      }
    }
  }
}
