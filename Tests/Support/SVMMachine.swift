// SPDX-License-Identifier: Apache-2.0
//
// A TestMachine of AMD's whose guest is run by VMRUN: SVM enabled, and a VMCB that VMRUN takes.
//
//     let m = try SVMMachine()                 // a 64-bit guest at 0x1000, CPL 0
//     m.test.load([0x0F, 0xA2], at: 0x1000)
//     #expect(try m.run() == .cpuid)
//     #expect(m.vmcb[.nextRIP] == 0x1002)

import X86
import X86CPU

package final class SVMMachine {
  package let test: TestMachine
  private let pages: UnsafeMutableRawPointer
  package var processor: PhysicalCPU { test.processor }
  package var cpu: CPU { test.cpu }

  /// The VMCB, then its port map and its MSR map.
  private static let pageCount = 6

  package init(threshold: UInt32? = nil) throws {
    test = TestMachine(silicon: .amd, threshold: threshold)
    pages = .allocate(byteCount: Self.pageCount * 4096, alignment: 4096)
    pages.initializeMemory(as: UInt8.self, repeating: 0, count: Self.pageCount * 4096)
    // Its page tables, in guest memory.
    test.setLongMode()
    try processor.enableSVM()
    writeControls()
    writeLongModeGuest()
  }

  deinit {
    try? processor.disableSVM()
    pages.deallocate()
  }

  package var address: UInt64 { UInt64(UInt(bitPattern: pages)) }
  package var vmcb: VMCB { VMCB(base: pages) }
  package var portMap: UnsafeMutableRawPointer { pages + 4096 }
  package var msrMap: UnsafeMutableRawPointer { pages + 4 * 4096 }

  /// VMRUN, with nothing taken as clean.
  package func run() throws -> SVMExitCode {
    vmcb[.cleanBits] = 0
    return try processor.vmrun(address)
  }

  package func intercept(_ bits: SVMIntercepts, _ on: Bool = true) {
    var all = SVMIntercepts(rawValue: vmcb[.intercepts3] | vmcb[.intercepts4] << 32)
    if on { all.formUnion(bits) } else { all.subtract(bits) }
    vmcb[.intercepts3] = all.rawValue & 0xFFFF_FFFF
    vmcb[.intercepts4] = all.rawValue >> 32
  }

  private func writeControls() {
    intercept([.vmrun, .hlt, .cpuid, .interrupt, .shutdown, .vmmcall])
    vmcb[.ioPermissionMap] = UInt64(UInt(bitPattern: portMap))
    vmcb[.msrPermissionMap] = UInt64(UInt(bitPattern: msrMap))
    vmcb[.asid] = 1
    vmcb[.nestedControl] = NestedControl.paging
    vmcb[.nestedCR3] = test.nestedRoot
    vmcb[.guestPAT] = 0x0007_0406_0007_0406
  }

  private func writeLongModeGuest() {
    vmcb[.efer] = EFER([.sce, .lme, .lma, .nxe, .svme]).rawValue
    vmcb[.cr0] = CR0([.pe, .et, .ne, .wp, .pg]).rawValue
    vmcb[.cr3] = 0x10000
    vmcb[.cr4] = CR4([.pae, .osfxsr]).rawValue
    vmcb[.dr6] = DR6.initial.rawValue
    vmcb[.dr7] = DR7.initial.rawValue
    for register in SegmentRegister.allCases {
      let (selector, attributes): (UInt64, UInt64) =
        switch register {
        case .cs: (0x8, 0xA9B)
        case .ldtr: (0, 0)
        case .tr: (0x18, 0x8B)
        default: (0x10, 0xC93)
        }
      vmcb[.selector(of: register)] = selector
      vmcb[.attributes(of: register)] = attributes
      vmcb[.limit(of: register)] = register == .tr ? 0x67 : 0xFFFF_FFFF
    }
    vmcb[.gdtrBase] = 0x3000
    vmcb[.gdtrLimit] = 0xFFF
    vmcb[.idtrBase] = 0x2000
    vmcb[.idtrLimit] = 0xFFF
    vmcb[.rip] = 0x1000
    vmcb[.rsp] = 0x8000
    vmcb[.rflags] = 2
    test.store(0x00AF_9B00_0000_FFFF as UInt64, at: 0x3008)
    test.store(0x00CF_9300_0000_FFFF as UInt64, at: 0x3010)
  }

  /// An interrupt gate, below 64 KiB.
  package func setGate(_ vector: Int, to handler: UInt64) {
    test.store(handler & 0xFFFF | 0x8 << 16 | 0x8E00 << 32, at: 0x2000 + vector * 16)
    test.store(0 as UInt64, at: 0x2008 + vector * 16)
  }

  /// What is on the guest's stack, from its top.
  package func stack(_ place: Int) -> UInt64 { test.read(Int(vmcb[.rsp]) + place * 8) }
}
