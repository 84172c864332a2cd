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

  package static func of(_ bytes: RawSpan, seed: UInt64 = 0) -> UInt64 {
    var h = seed ^ second
    let count = bytes.byteCount
    var n = 0
    while let a = bytes.load(UInt64.self, at: n), let b = bytes.load(UInt64.self, at: n &+ 8) {
      h = mix(h, a, b)
      n &+= 16
    }
    if n < count { h = mix(h, word(bytes, n), word(bytes, n &+ 8)) }
    return fold(h ^ UInt64(count), first) ^ h
  }

  /// Eight bytes; those behind the end are 0.
  private static func word(_ bytes: RawSpan, _ start: Int) -> UInt64 {
    (0..<8).reduce(0) { word, n in
      word | UInt64(bytes.load(UInt8.self, at: start &+ n) ?? 0) &<< UInt64(n &* 8)
    }
  }
}
