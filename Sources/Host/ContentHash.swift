// SPDX-License-Identifier: Apache-2.0
//
// A fast 64-bit hash: it names stored translations by their code, and detects damage. It is not
// keyed, so anyone can forge collisions: data found by the hash is compared.

package enum ContentHash {
  private static let first: UInt64 = 0x9E37_79B9_7F4A_7C15
  private static let second: UInt64 = 0xD1B5_4A32_D192_ED03

  @inline(__always) private static func fold(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let product = a.multipliedFullWidth(by: b)
    return product.high ^ product.low
  }

  /// Mixes 16 bytes into the hash. The rotated part survives a factor that happens to be 0.
  @inline(__always) private static func mix(_ h: UInt64, _ a: UInt64, _ b: UInt64) -> UInt64 {
    (h &<< 29 | h &>> 35) &+ fold(a ^ first ^ h, b ^ second)
  }

  package static func of(_ bytes: UnsafeRawBufferPointer, seed: UInt64 = 0) -> UInt64 {
    var h = seed ^ second
    let count = bytes.count
    if let base = bytes.baseAddress {
      var n = 0
      while n &+ 16 <= count {
        h = unsafe mix(
          h, base.loadUnaligned(fromByteOffset: n, as: UInt64.self),
          base.loadUnaligned(fromByteOffset: n &+ 8, as: UInt64.self))
        n &+= 16
      }
      if n < count {
        var rest: (UInt64, UInt64) = (0, 0)
        unsafe withUnsafeMutableBytes(of: &rest) {
          unsafe $0.baseAddress.unsafelyUnwrapped.copyMemory(from: base + n, byteCount: count &- n)
        }
        h = mix(h, rest.0, rest.1)
      }
    }
    return fold(h ^ UInt64(count), first) ^ h
  }
}
