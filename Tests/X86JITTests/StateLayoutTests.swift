// SPDX-License-Identifier: Apache-2.0
//
// Where fields of the CPU's state lie. Processors that forward stores to loads by the low 11 bits
// of addresses take two fields 2 KiB apart for one, so those that loops write must stay clear of
// those that every access reads.

import Support
import Testing
import X86CPU
import X86JIT

@Suite struct StateLayoutTests {
  @Test func fieldsThatLoopsWriteStayClearOfTheTLBs() throws {
    let native = try #require(MemoryLayout<CPUState>.offset(of: \.native))
    let groups = native + (try #require(MemoryLayout<NativeState>.offset(of: \.groupAddresses)))
    let pages = native + (try #require(MemoryLayout<NativeState>.offset(of: \.accessPages)))
    let written =
      stride(from: groups, to: groups + NativeState.groupCount * 8, by: 8).map { $0 & 0x7F8 }
      + stride(
        from: pages, to: pages + NativeState.accessPageCount * NativeState.accessPageStride, by: 8
      ).map { $0 & 0x7F8 }
    let read = [
      MemoryLayout<CPUState>.offset(of: \.tlb), MemoryLayout<CPUState>.offset(of: \.tlbContext),
      MemoryLayout<CPUState>.offset(of: \.request), MemoryLayout<CPUState>.offset(of: \.retired),
      MemoryLayout<CPUState>.offset(of: \.blockContext),
    ].compactMap { $0 }
    #expect(read.count == 5)
    for field in read + Array(stride(from: 0, to: 128, by: 8)) {
      #expect(!written.contains(field & 0x7F8), "field at \(field)")
    }
    let segments = CPU.segmentsOffset..<CPU.segmentsOffset + 6 * MemoryLayout<SegmentState>.stride
    #expect(!written.contains { segments.contains($0) })
  }

  /// A compare whose words come from two cache lines gives a guest that evicts one of them time to
  /// have the host go on with what the compare would have refused.
  @Test func wordsOfACompareAreInOneCacheLine() throws {
    let native = try #require(MemoryLayout<CPUState>.offset(of: \.native))
    let stack = try #require(MemoryLayout<CPUState>.offset(of: \.stackPage))
    #expect(stack / 64 == (stack + 23) / 64)
    let pages = native + (try #require(MemoryLayout<NativeState>.offset(of: \.accessPages)))
    for number in 0..<NativeState.accessPageCount {
      let page = pages + number * NativeState.accessPageStride
      #expect(page / 64 == (page + 23) / 64)
    }
    #expect(64 % MemoryLayout<TLBEntry>.stride == 0)
    let m = TestMachine(megabytes: 2)
    #expect(UInt(bitPattern: m.cpu.s.pointee.tlbBanks) % 64 == 0)
    #expect(UInt(bitPattern: m.cpu.raw) % 64 == 0)
  }

  /// A stack access right behind the count of a block's instructions once took five times as long.
  @Test func fieldsOfStackAccessesStayClearOfWhatEveryBlockWrites() throws {
    let fields = [
      MemoryLayout<CPUState>.offset(of: \.jumps),
      MemoryLayout<CPUState>.offset(of: \.stackPage),
      MemoryLayout<CPUState>.offset(of: \.stackAddend),
      MemoryLayout<CPUState>.offset(of: \.stackLimit),
    ].compactMap { $0 }
    #expect(fields.count == 4)
    let read = Set(fields.map { $0 & 0x7F8 })
    let written = [
      MemoryLayout<CPUState>.offset(of: \.retired),
      MemoryLayout<CPUState>.offset(of: \.rflags), MemoryLayout<CPUState>.offset(of: \.tlb),
      MemoryLayout<CPUState>.offset(of: \.tlbContext),
      MemoryLayout<CPUState>.offset(of: \.blockContext),
      MemoryLayout<CPUState>.offset(of: \.running),
    ].compactMap { $0 }
    #expect(written.count == 6)
    for field in written { #expect(!read.contains(field & 0x7F8), "field at \(field)") }
  }

  /// Flags and temporaries that translated code writes, registers that are in the state.
  @Test func fieldsThatTranslationsWriteStayClearOfRegisters() throws {
    let native = try #require(MemoryLayout<CPUState>.offset(of: \.native))
    let fields = [
      MemoryLayout<NativeState>.offset(of: \.flagSource),
      MemoryLayout<NativeState>.offset(of: \.temporary0),
      MemoryLayout<NativeState>.offset(of: \.temporary1),
    ].compactMap { $0 }
    #expect(fields.count == 3)
    let near = [
      MemoryLayout<CPUState>.offset(of: \.codePage), MemoryLayout<CPUState>.offset(of: \.hostFlags),
    ].compactMap { $0 }
    #expect(near.count == 2)
    let registers = 12 * 8..<16 * 8
    for field in near + fields.map({ native + $0 }) { #expect(!registers.contains(field & 0x7F8)) }
  }

  /// A displacement of one byte does for what most instructions of translated code use.
  @Test func fieldsThatTranslationsUseMostAreInReach() throws {
    let fields = [
      MemoryLayout<CPUState>.offset(of: \.tlb), MemoryLayout<CPUState>.offset(of: \.tlbContext),
      MemoryLayout<CPUState>.offset(of: \.zero), MemoryLayout<CPUState>.offset(of: \.request),
      MemoryLayout<CPUState>.offset(of: \.retired), MemoryLayout<CPUState>.offset(of: \.codePage),
      MemoryLayout<CPUState>.offset(of: \.hostFlags), MemoryLayout<CPUState>.offset(of: \.jumps),
      MemoryLayout<CPUState>.offset(of: \.blockContext),
      MemoryLayout<CPUState>.offset(of: \.stackPage),
      MemoryLayout<CPUState>.offset(of: \.stackAddend),
      MemoryLayout<CPUState>.offset(of: \.stackLimit),
    ].compactMap { $0 }
    #expect(fields.count == 12)
    for field in fields + [12 * 8, 15 * 8] {
      #expect(-128...127 ~= field - Place.stateBias, "field at \(field)")
    }
  }
}
