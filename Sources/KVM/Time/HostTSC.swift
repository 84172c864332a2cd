// SPDX-License-Identifier: Apache-2.0
//
// The host's time-stamp counter and its relation to the monotonic clock. RDTSC is a machine
// instruction that Swift has no name for, so its four instructions are laid into a page of code.

import CHost
import Host
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

package enum HostTSC {
  private typealias Reader = @convention(c) () -> UInt64

  /// rdtsc; shl rdx, 32; or rax, rdx; ret
  private static let code: [UInt8] = [
    0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3,
  ]

  private static let reader: Reader? = {
    guard
      let page = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
      page != MAP_FAILED
    else { return nil }
    code.withUnsafeBytes { page.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    guard mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0 else { return nil }
    return unsafeBitCast(page, to: Reader.self)
  }()

  /// The counter now; the monotonic clock's nanoseconds where code cannot be made.
  @inline(__always) package static func read() -> UInt64 {
    guard let reader else { return HostClock.monotonic() }
    return reader()
  }

  /// Counts per millisecond, measured once in about 4 ms.
  package static let kilohertz: UInt64 = {
    let (startTSC, startTime) = sample()
    while HostClock.monotonic() &- startTime < 4_000_000 {}
    let (endTSC, endTime) = sample()
    let elapsed = max(endTime &- startTime, 1)
    let product = (endTSC &- startTSC).multipliedFullWidth(by: 1_000_000)
    guard product.high < elapsed else { return 1_000_000 }
    return max(elapsed.dividingFullWidth(product).quotient, 1)
  }()

  /// Nanoseconds that `counts` take, saturating.
  package static func nanoseconds(_ counts: UInt64) -> UInt64 {
    scaled(counts, 1_000_000, kilohertz)
  }

  /// Counts in `nanoseconds`, saturating.
  package static func counts(_ nanoseconds: UInt64) -> UInt64 {
    scaled(nanoseconds, kilohertz, 1_000_000)
  }

  static func scaled(_ value: UInt64, _ multiplier: UInt64, _ divisor: UInt64) -> UInt64 {
    let product = value.multipliedFullWidth(by: multiplier)
    guard product.high < divisor else { return .max }
    return divisor.dividingFullWidth(product).quotient
  }

  /// Both clocks at one moment: the tightest of a few tries.
  private static func sample() -> (tsc: UInt64, time: UInt64) {
    var best = (tsc: UInt64(0), time: UInt64(0))
    var width = UInt64.max
    for _ in 0..<8 {
      let before = read()
      let time = HostClock.monotonic()
      let after = read()
      if after &- before < width {
        width = after &- before
        best = (before &+ (after &- before) / 2, time)
      }
    }
    return best
  }
}
