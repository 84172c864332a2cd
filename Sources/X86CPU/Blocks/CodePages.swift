// SPDX-License-Identifier: Apache-2.0
//
// Which host pages hold code that some CPU has decoded: one bit for each page of the address space,
// in a sparse mapping of which only the touched parts cost memory. It is shared by all CPUs of the
// process.
//
// Protocol. Before a CPU decodes from a page it sets the page's bit and, if it was clear, makes every
// CPU drop its write translation (and waits until each has, or is outside guest code). Every write to a
// page whose bit is set goes the slow way, which clears the bit and asks every CPU to drop its code of
// that page. So no CPU runs code that changed, beyond the delay that x86 allows to cross-modifying code.

import Glibc
import Synchronization
import X86

package final class CodePages: Sendable {
  package static let shared = CodePages()

  /// User addresses have 47 bits: 2^35 pages.
  private static let byteCount = 1 << 32
  private let bitmap: UInt

  private init() {
    let map = mmap(
      nil, Self.byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
      0)
    guard let map, map != MAP_FAILED else {
      // Without it no guest can be run correctly.
      fatalError("cannot reserve 4 GiB of address space for the code page map (ulimit -v?)")
    }
    bitmap = UInt(bitPattern: map)
  }

  /// The map's address, for `CPU.isCodePage`.
  var address: UInt { bitmap }

  @inline(__always) private func word(_ page: UInt64) -> UnsafeMutablePointer<Atomic<UInt64>> {
    let index = (page >> Page.shift) & (1 << 35 - 1)
    return UnsafeMutablePointer(bitPattern: bitmap + UInt(index >> 6) * 8).unsafelyUnwrapped
  }

  @inline(__always) private func bit(_ page: UInt64) -> UInt64 {
    1 << ((page >> Page.shift) & 63)
  }

  @inline(__always) package func contains(_ hostPage: UInt64) -> Bool {
    Self.contains(hostPage, bitmap)
  }

  /// The same by the map's address.
  @inline(__always) static func contains(_ hostPage: UInt64, _ bitmap: UInt) -> Bool {
    let index = UInt((hostPage >> Page.shift) & (1 << 35 - 1))
    let word = UnsafeMutablePointer<Atomic<UInt64>>(bitPattern: bitmap &+ (index >> 6) &* 8)
    let bits = word.unsafelyUnwrapped.pointee.load(ordering: .acquiring)
    return bits & 1 << UInt64(index & 63) != 0
  }

  /// Sets the page's bit; true if it was clear.
  func insert(_ hostPage: UInt64) -> Bool {
    let old = word(hostPage).pointee.bitwiseOr(bit(hostPage), ordering: .sequentiallyConsistent)
    return old.oldValue & bit(hostPage) == 0
  }

  /// Clears the page's bit; true if it was set.
  func remove(_ hostPage: UInt64) -> Bool {
    let old = word(hostPage).pointee.bitwiseAnd(~bit(hostPage), ordering: .sequentiallyConsistent)
    return old.oldValue & bit(hostPage) != 0
  }
}
