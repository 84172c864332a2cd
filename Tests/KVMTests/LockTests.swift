// SPDX-License-Identifier: Apache-2.0
//
// A lock that more vCPUs want than there are physical CPUs: whoever spins gives its CPU to the one
// that has the lock.

import CHost
import Glibc
import KVM
import KVMClient
import Synchronization
import Testing
import X86

@Suite(.serialized) struct LockTests {
  /// Real mode: 200000 times takes the lock at 5000H, adds 1 to 5004H and frees the lock; a loop
  /// with PAUSE waits for it, and counts at 5008H.
  static let code: [UInt8] = [
    0x66, 0xB9, 0x40, 0x0D, 0x03, 0x00, 0xB0, 0x01, 0x86, 0x06, 0x00, 0x50, 0x84, 0xC0, 0x74,
    0x10, 0xF3, 0x90, 0x66, 0xFF, 0x06, 0x08, 0x50, 0x80, 0x3E, 0x00, 0x50, 0x00, 0x75, 0xF2,
    0xEB, 0xE6, 0x66, 0xFF, 0x06, 0x04, 0x50, 0xC6, 0x06, 0x00, 0x50, 0x00, 0x66, 0x49, 0x75,
    0xD8, 0xF4,
  ]
  static let rounds: UInt32 = 200_000

  /// The time of the vCPUs' threads, by which it does not matter what else the host does.
  private static func threadTime() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }

  /// - Returns: seconds for a round of one vCPU.
  private func run(_ count: Int) throws -> Double {
    let guest = try Guest(.software, cpus: count)
    guest.load(Self.code)
    for cpu in guest.cpus { try guest.setRealMode(cpu) }
    let time = Mutex(0.0)
    let cpus = guest.cpus
    let failed = Mutex(false)
    let threads = cpus.indices.map { n in
      Thread {
        let start = Self.threadTime()
        if case .halt? = try? cpus[n].run() {} else { failed.withLock { $0 = true } }
        let used = Self.threadTime() - start
        time.withLock { $0 += used }
      }
    }
    for thread in threads { thread.join() }
    #expect(!failed.withLock { $0 })
    #expect(guest.read(0x5004, as: UInt32.self) == Self.rounds * UInt32(count))
    return time.withLock { $0 } / Double(count)
  }

  /// Four vCPUs on one physical CPU do the work of one, four times, in hardly more time.
  @Test(arguments: [SiliconVendor.intel, .amd])
  func fourOnOneProcessor(_ vendor: SiliconVendor) throws {
    try Engine.$vendor.withValue(vendor) {
      var ratios: [Double] = []
      for _ in 0..<5 {
        let one = try run(1)
        ratios.append(try run(4) / one)
        if ratios.min()! < 1.5 { break }
      }
      #expect(ratios.min()! < 1.5, "\(ratios)")
    }
  }
}
