// SPDX-License-Identifier: Apache-2.0
//
// XSAVE and its kin: state comes back from each format as it was, and a bad area faults before
// anything is loaded.

import Support
import Testing
import X86
import X86CPU

@Suite struct XSaveTests {
  private func filled() -> VectorMachine {
    let m = VectorMachine()
    for n in 0..<256 { m.c.vector.pointee.zmm[n] = UInt64(n) &* 0x9E37_79B9_7F4A_7C15 | 1 }
    for n in 0..<8 { m.c.vector.pointee.opmask[n] = UInt64(n) &* 0xC2B2_AE3D_27D4_EB4F }
    for n in 4..<20 { m.c.vector.pointee.fx[n] = n & 1 == 0 ? UInt64(n) | 1 << 63 : 0x3FFF }
    m.c.vector.pointee.fx[0] = 0x0000_00FF_0000_037F
    m.c.mxcsr = 0x1FA0
    m.c.gpr[0] = 0xFFFF_FFFF
    m.c.gpr[2] = 0xFFFF_FFFF
    m.c.gpr[3] = 0x20_0000
    return m
  }

  private func clear(_ m: VectorMachine) { m.c.resetVectorState() }

  private func expectFilled(_ m: VectorMachine) {
    let original = filled()
    for n in 0..<256 {
      #expect(m.c.vector.pointee.zmm[n] == original.c.vector.pointee.zmm[n])
    }
    for n in 0..<8 {
      #expect(m.c.vector.pointee.opmask[n] == original.c.vector.pointee.opmask[n])
    }
    for n in 0..<20 { #expect(m.c.vector.pointee.fx[n] == original.c.vector.pointee.fx[n]) }
  }

  @Test(arguments: [0x20_0000, 0x20_0C00] as [UInt64])
  func standardRoundTrip(address: UInt64) {
    let m = filled()
    m.c.gpr[3] = address
    m.run([0x48, 0x0F, 0xAE, 0x23])  // xsave64 [rbx]
    #expect(m.machine.read(Int(address) + 512, as: UInt64.self) == 0xE7)
    clear(m)
    m.run([0x48, 0x0F, 0xAE, 0x2B])  // xrstor64 [rbx]
    expectFilled(m)
  }

  @Test(arguments: [0x20_0000, 0x20_0C00] as [UInt64])
  func compactedRoundTrip(address: UInt64) {
    let m = filled()
    m.c.gpr[3] = address
    m.run([0x48, 0x0F, 0xC7, 0x23])  // xsavec64 [rbx]
    #expect(m.machine.read(Int(address) + 520, as: UInt64.self) == 0x8000_0000_0000_00E7 as UInt64)
    clear(m)
    m.run([0x48, 0x0F, 0xAE, 0x2B])
    expectFilled(m)
  }

  @Test func fxsaveRoundTrip() {
    let m = filled()
    m.run([0x48, 0x0F, 0xAE, 0x03])  // fxsave64 [rbx]
    clear(m)
    m.run([0x48, 0x0F, 0xAE, 0x0B])  // fxrstor64 [rbx]
    let original = filled()
    #expect(m[zmm: 15, 1] == original[zmm: 15, 1])
    #expect(m[zmm: 15, 2] == 0)
    #expect(m.c.mxcsr == 0x1FA0)
    #expect(m.c.vector.pointee.fx[0] == original.c.vector.pointee.fx[0])
  }

  @Test func initialComponentsAreNotWritten() {
    let m = filled()
    clear(m)
    m[zmm: 3, 0] = 5
    m.machine.store(UInt64.max, at: 0x20_0000 + 576)
    m.machine.store(UInt64(0), at: 0x20_0000 + 512)
    m.run([0x48, 0x0F, 0xAE, 0x33])  // xsaveopt64 [rbx]
    #expect(m.machine.read(0x20_0000 + 512, as: UInt64.self) == 2)
    #expect(m.machine.read(0x20_0000 + 576, as: UInt64.self) == UInt64.max)
    m[zmm: 3, 0] = 6
    m[zmm: 4, 2] = 6
    m.run([0x48, 0x0F, 0xAE, 0x2B])
    #expect(m[zmm: 3, 0] == 5)
    #expect(m[zmm: 4, 2] == 0, "a component without its bit is initialised")
  }

  @Test(
    arguments: [(0x20_0010, 0, 0), (0x20_0000, 8, 0), (0x20_0000, 0, 1)]
      as [(UInt64, UInt64, UInt64)])
  func badAreaFaults(address: UInt64, stateBV: UInt64, compBV: UInt64) {
    let m = filled()
    m.catchExceptions()
    m.c.gpr[3] = address
    m.machine.store(stateBV, at: 0x20_0000 + 512)
    m.machine.store(compBV, at: 0x20_0000 + 520)
    m.run([0x48, 0x0F, 0xAE, 0x2B])
    #expect(m.raised(.generalProtection))
  }
}
