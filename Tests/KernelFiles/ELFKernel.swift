// SPDX-License-Identifier: Apache-2.0

/// ELF kernels with one segment and one note.
package enum ELFKernel {
  package static let bytes: [UInt8] = {
    var file = [UInt8](repeating: 0, count: 256)
    func store(_ value: UInt64, _ size: Int, _ offset: Int) {
      for index in 0..<size {
        file[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
      }
    }
    store(0x464C_457F, 4, 0)
    file[4] = 2
    store(62, 2, 18)
    store(64, 8, 32)
    store(2, 2, 56)
    // The segment: 4 bytes at 240, 16 in memory.
    store(1, 4, 64)
    store(240, 8, 72)
    store(0x20_0000, 8, 88)
    store(4, 8, 96)
    store(16, 8, 104)
    // The note at 200.
    store(4, 4, 120)
    store(200, 8, 128)
    store(24, 8, 152)
    store(24, 8, 160)
    store(4, 4, 200)
    store(8, 4, 204)
    store(18, 4, 208)
    file.replaceSubrange(212..<216, with: Array("Xen\0".utf8))
    store(0x20_0010, 8, 216)
    file.replaceSubrange(240..<244, with: [1, 2, 3, 4])
    return file
  }()
}
