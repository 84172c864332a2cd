// SPDX-License-Identifier: Apache-2.0
//
// Values in bytes of others: at each offset that there is, a value is that of the bytes put
// together by hand; at every other, nothing is read.

import Host
import Testing

@Suite struct SpanTests {
  private static let bytes: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0xFF]

  @Test func valuesLieInside() {
    let bytes = Self.bytes
    func load<Value: FixedWidthInteger & BitwiseCopyable>(
      _ type: Value.Type, _ offset: Int
    ) -> Value? { bytes.bytes.load(type, at: offset) }
    for offset in -3...12 {
      let isInside = offset >= 0 && offset + 4 <= bytes.count
      let value = isInside ? (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << ($1 * 8) } : nil
      #expect(load(UInt32.self, offset) == value)
      #expect(bytes.load(UInt32.self, at: offset) == value)
      #expect(bytes.load(big: UInt32.self, at: offset) == value?.byteSwapped)
    }
    for offset in [.min, .max, .max - 1, .max - 3] as [Int] {
      #expect(load(UInt16.self, offset) == nil)
    }
    #expect(load(Int8.self, 9) == -1)
    #expect([UInt8]().load(UInt8.self, at: 0) == nil)
  }

  @Test func partsLieInside() {
    let bytes = Self.bytes
    func part(_ range: Range<Int>) -> [UInt8]? { bytes.bytes.part(range)?.array }
    #expect(part(2..<5) == [3, 4, 5] && part(10..<10) == [])
    #expect(part(8..<11) == nil && part(-1..<2) == nil)
    func begins(_ prefix: [UInt8]) -> Bool { bytes.bytes.starts(with: prefix) }
    #expect(begins([1, 2]) && begins(bytes) && !begins([1, 3]) && !begins(bytes + [0]))
  }

  @Test func bytesAreOverwritten() {
    var bytes = Self.bytes
    bytes.withMutableBytes { all in
      all.copy(from: ([20, 21] as [UInt8]).bytes, at: 8)
      all.moveToStart(7..<10)
      var part = all.part(3..<5)
      part.fill(0)
    }
    #expect(bytes == [8, 20, 21, 0, 0, 6, 7, 8, 20, 21])
    bytes.append(([30] as [UInt8]).bytes)
    #expect(bytes.last == 30)
    var value: UInt32 = 0x0403_0201
    #expect(withBytes(of: value) { $0.array } == [1, 2, 3, 4])
    withMutableBytes(of: &value) { $0.storeBytes(of: 9, toByteOffset: 1, as: UInt8.self) }
    #expect(value == 0x0403_0901)
  }

  /// What was kept by earlier builds is found by later ones.
  @Test func hashesStay() {
    let bytes = (0..<40).map { UInt8($0) }
    let counts = [0, 1, 7, 8, 9, 15, 16, 17, 31, 40]
    let hashes = counts.map { ContentHash.of(bytes.bytes.extracting(first: $0), seed: 3) }
    #expect(Set(hashes).count == counts.count)
    for (count, hash) in zip(counts, hashes) {
      #expect(hash == Self.hash(Array(bytes[..<count]), seed: 3))
    }
  }

  /// The same from its definition: 16 bytes at a time, the last filled up with zeroes.
  private static func hash(_ bytes: [UInt8], seed: UInt64) -> UInt64 {
    let (first, second): (UInt64, UInt64) = (0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03)
    func fold(_ a: UInt64, _ b: UInt64) -> UInt64 {
      let product = a.multipliedFullWidth(by: b)
      return product.high ^ product.low
    }
    func word(_ start: Int) -> UInt64 {
      (0..<8).reduce(0) { value, n in
        start + n < bytes.count ? value | UInt64(bytes[start + n]) << UInt64(n * 8) : value
      }
    }
    var h = seed ^ second
    for n in stride(from: 0, to: bytes.count, by: 16) {
      h = (h << 29 | h >> 35) &+ fold(word(n) ^ first ^ h, word(n + 8) ^ second)
    }
    return fold(h ^ UInt64(bytes.count), first) ^ h
  }
}
