// SPDX-License-Identifier: Apache-2.0
//
// What the oracle compares: an instruction runs from the same state on several executors, and
// registers, flags, memory and faults must agree afterwards.
//
// The address space is the same for all of them. Code is in slots; a slot has the instruction and,
// around it, landing pads where it may go next. A block is there instead of several slots, with one
// landing pad at its end. Data is in the sandbox, a few pages with nothing on
// either side; everything else is unmapped, and no generated state may reach it (see `Footprint`).

import X86
import X86CPU
import X86Decoder

/// Linear addresses: below 2 GiB, so that 32-bit displacements and 32-bit code reach them.
package enum Layout {
  /// Native executor's own page of inputs and outputs.
  package static let context: UInt64 = 0x1000_0000
  /// Native executor's stubs; the slots follow.
  package static let stubs: UInt64 = 0x2000_0000
  package static let slots: UInt64 = 0x2001_0000
  package static let slotSize = 128
  package static let slotCount = 1024
  package static let slotBytes = slotSize * slotCount
  /// Where in a slot the instruction is, and the pads that are always there.
  package static let instructionOffset = 48
  package static let padSize = 16
  package static let padOffsets = [0, 16, 96, 112]

  /// Two writable pages, one that is read-only.
  package static let sandbox: UInt64 = 0x3000_0000
  package static let writableSize = 0x2000
  package static let sandboxSize = 0x3000
  /// Unmapped bytes before and after.
  package static let guardSize: UInt64 = 0x10_0000

  /// Blocks have as much room as eight slots, and may begin anywhere in the second quarter of it;
  /// one in four begins anywhere, so that some lie across two pages.
  package static let blockRoom = 1024
  package static let blockCount = slotBytes / blockRoom
  /// Longest block with its pad.
  package static let blockSize = 512

  package static func slot(_ number: Int) -> UInt64 { slots + UInt64(number * slotSize) }
}

/// Integer state, the same before and after.
package struct Registers {
  package var gpr = InlineArray<16, UInt64>(repeating: 0)
  package var flags: UInt64 = 0x202
  package var rip: UInt64 = 0
  package var gsBase: UInt64 = 0
  package var fsBase: UInt64 = 0
  package init() {}
}

/// A fault, in the numbers of the architecture.
package struct Fault: Equatable {
  /// Vector, or `none`.
  package var vector: UInt64 = Fault.none
  package var errorCode: UInt64 = 0
  /// CR2 of a page fault.
  package var address: UInt64 = 0
  package static let none: UInt64 = .max
  /// Added to the reason of a VM exit that is no exception.
  package static let exit: UInt64 = 0x1_0000
  package init() {}
}

/// One executor's registers after the run.
package struct Outcome {
  package var registers = Registers()
  package var fault = Fault()
  /// Instructions that the software processor counted; 0 from the host.
  package var retired: UInt64 = 0
  package init() {}
}

/// Someone who can run the code of a slot, or of a block.
package protocol Executor: AnyObject {
  var name: String { get }
  /// This executor's own copy of the sandbox, `Layout.sandboxSize` bytes.
  var sandbox: UnsafeMutableRawPointer { get }
  /// Before slots are filled again from the first: code that ran may be forgotten now, all at once.
  func startRound()
  /// Puts code into a slot, with pads behind it and at `Layout.padOffsets`.
  func load(_ code: UnsafeRawBufferPointer, slot: Int)
  /// Puts code at an address of the slots' memory, with one pad behind it.
  func load(_ code: UnsafeRawBufferPointer, block: UInt64)
  /// Runs from `input.rip` to a landing pad or a fault. With `vector` the vector state is loaded
  /// from there before and stored there after.
  func run(
    _ input: UnsafePointer<Registers>, vector: UnsafeMutablePointer<VectorState>?,
    into outcome: UnsafeMutablePointer<Outcome>)
}

/// A generator with a printable seed (SplitMix64).
package struct OracleRandom: RandomNumberGenerator {
  package var state: UInt64
  package init(_ seed: UInt64) { state = seed }
  @inline(__always) package mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
  /// Below `bound`, which is small.
  @inline(__always) package mutating func below(_ bound: Int) -> Int {
    Int(truncatingIfNeeded: ((next() >> 32) &* UInt64(bound)) >> 32)
  }
  /// True once in `n`.
  @inline(__always) package mutating func oneIn(_ n: Int) -> Bool { below(n) == 0 }
  @inline(__always) package mutating func byte() -> UInt8 {
    UInt8(truncatingIfNeeded: next() >> 24)
  }
}
