// SPDX-License-Identifier: Apache-2.0
//
// Which host pages contain code that some CPU has decoded: one bit for each page of the address
// space, in a sparse mapping that costs memory only where touched. All CPUs of the process share
// it.
//
// Protocol. Before a CPU decodes from a page it sets the page's bit and, if it was clear, makes
// every CPU drop its write translations of the page (and waits until each has, or is outside guest
// code). Every write to a page whose bit is set takes the slow path, which clears the bit and asks
// every CPU to drop its code of that page. So no CPU runs modified code beyond the delay that x86
// allows for cross-modifying code. Another CPU that finds the bit set waits while `isSettled` is
// false.
//
// If others may write to the memory without notice there is a `CodeWatch`: the page is
// write-protected in this process exactly while its bit is set. Bit and protection change together,
// under the page's lock. No thread waits for another while it holds that lock.

import Glibc
import Synchronization
import X86

package final class CodePages: Sendable {
  package static let shared = CodePages()

  /// User addresses have 47 bits: 2^35 pages.
  private static let byteCount = 1 << 32
  private let bitmap: UInt

  /// Serializes the changes of a page's bit and protection; pages share stripes.
  private final class Stripe: Sendable {
    let lock = Mutex<Void>(())
    /// How many CPUs have set a bit and are still notifying others.
    let settling = Atomic<Int>(0)
  }

  private let stripes = (0..<64).map { _ in Stripe() }
  /// An unretained WatchBox, or 0.
  private let watchAddress = Atomic<UInt>(0)
  /// Page copies of all CPUs (PhysicalCPU+Comparison).
  let copies = Atomic<Int>(0)

  private final class WatchBox: Sendable {
    let watch: CodeWatch
    init(_ watch: CodeWatch) { self.watch = watch }
  }

  private init() {
    let map = mmap(
      nil, Self.byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
      0)
    bitmap = map == MAP_FAILED ? 0 : UInt(bitPattern: map)
  }

  /// False if the process's address space is too small (`ulimit -v`): then no CPU can be created,
  /// so the map is unused.
  var isThere: Bool { bitmap != 0 }

  /// The map's address, for `CPUState.codePages`.
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

  // MARK: Changes

  private func stripe(_ page: UInt64) -> Stripe { stripes[Int((page >> Page.shift) & 63)] }

  /// Whether a page is marked and every CPU has been notified.
  func isReady(_ page: UInt64) -> Bool { contains(page) && isSettled(page) }

  func isSettled(_ page: UInt64) -> Bool {
    stripe(page).settling.load(ordering: .sequentiallyConsistent) == 0
  }

  /// Sets the page's bit and protects the page; true if the bit was clear. Then the caller notifies
  /// all CPUs and calls `settle`.
  func mark(_ page: UInt64) -> Bool {
    let stripe = stripe(page)
    return stripe.lock.withLock { _ in
      if contains(page) { return false }
      stripe.settling.add(1, ordering: .sequentiallyConsistent)
      withWatch { $0.protect(page) }
      word(page).pointee.bitwiseOr(bit(page), ordering: .sequentiallyConsistent)
      return true
    }
  }

  func settle(_ page: UInt64) {
    stripe(page).settling.subtract(1, ordering: .sequentiallyConsistent)
  }

  /// Clears the page's bit, asks all CPUs but one to drop the page's code, and unprotects the page.
  /// True if the bit was set. Allocates nothing.
  func unmark(_ page: UInt64, except own: ShootdownQueue?, opensAlways: Bool = false) -> Bool {
    stripe(page).lock.withLock { _ in
      let old = word(page).pointee.bitwiseAnd(~bit(page), ordering: .sequentiallyConsistent)
      let wasMarked = old.oldValue & bit(page) != 0
      if wasMarked { CPURegistry.shared.post(.dropCode(page), except: own) }
      if wasMarked || opensAlways { withWatch { $0.open(page, opensAlways) } }
      return wasMarked
    }
  }

  // MARK: The watch

  /// The watch, if there is one.
  var watch: CodeWatch? {
    UnsafeRawPointer(bitPattern: watchAddress.load(ordering: .acquiring)).map {
      Unmanaged<WatchBox>.fromOpaque($0).takeUnretainedValue().watch
    }
  }

  private func withWatch(_ body: (CodeWatch) -> Void) {
    let address = watchAddress.load(ordering: .acquiring)
    guard let pointer = UnsafeRawPointer(bitPattern: address) else { return }
    Unmanaged<WatchBox>.fromOpaque(pointer)._withUnsafeGuaranteedRef { body($0.watch) }
  }

  /// Protects pages with code from now on. A watch is never freed.
  func install(_ watch: CodeWatch) {
    let address = UInt(bitPattern: Unmanaged.passRetained(WatchBox(watch)).toOpaque())
    watchAddress.store(address, ordering: .releasing)
  }

  /// In a child of fork: clears all bits; no page is protected.
  func forget() {
    watchAddress.store(0, ordering: .releasing)
    madvise(UnsafeMutableRawPointer(bitPattern: bitmap), Self.byteCount, MADV_DONTNEED)
  }
}
