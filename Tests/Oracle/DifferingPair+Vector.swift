// SPDX-License-Identifier: Apache-2.0
//
// The bounds of rules about x87, MMX and vector instructions.

import Foundation
import X86
import X86CPU
import X86Decoder

extension DifferingPair {
  // MARK: x87 and MMX

  /// An x87 exception is unmasked and flagged before the instruction.
  var hasPendingException: Bool { vectors.map { X87Image($0.before).hasUnmasked } ?? false }

  /// The same physical registers; of TOP and tags each as before or as the transition has it.
  var isTransition: Bool {
    guard instruction.attributes.contains(.mmx), let vectors else { return false }
    let (a, b) = (X87Image(vectors.host), X87Image(vectors.before))
    return X87Image(vectors.other).isSame(as: b) && a.control == b.control
      && a.statusWithoutTop == b.statusWithoutTop && (a.top == b.top || a.top == 0)
      && (a.tags == b.tags || a.tags == 0xFF) && a.hasRegisters(of: b)
  }

  static func isStore(_ i: Instruction) -> Bool {
    guard i.operandCount > 0, i.operands[0].kind == .memory else { return false }
    switch i.mnemonic {
    case .fst, .fstp, .fist, .fistp, .fisttp, .fbstp: return true
    default: return false
    }
  }

  /// The host flags the exception and stores nothing; the other finds the fault.
  var isUnmaskedStore: Bool {
    guard !isBlock, Self.isStore(instruction), let vectors, host.fault.vector == Fault.none,
      host.registers.rip == end, permits(other.fault)
    else { return false }
    let (a, b) = (X87Image(vectors.host), X87Image(vectors.before))
    return a.hasUnmasked && a.isSummarized && hasSameButStatus(a, b)
      && X87Image(vectors.other).isSame(as: b)
  }

  private func hasSameButStatus(_ a: X87Image, _ b: X87Image) -> Bool {
    a.control == b.control && a.top == b.top && a.tags == b.tags && a.hasRegisters(of: b)
  }

  /// Flags that an exception sets.
  var allowedStatus: Parts {
    guard let vectors else { return [] }
    let (a, b, before) = (
      X87Image(vectors.host), X87Image(vectors.other), X87Image(vectors.before)
    )
    if isConversionToMemory {
      return b.mxcsr == before.mxcsr && (a.mxcsr ^ b.mxcsr) & ~Self.sticky == 0
        && a.mxcsr & b.mxcsr == b.mxcsr ? .mxcsr : []
    }
    guard Self.isStore(instruction), hasSameButStatus(a, before), b.isSame(as: before) else {
      return []
    }
    return a.flagsAreSuperset(of: before) ? .x87 : []
  }

  // MARK: SSE and AVX

  /// MXCSR's status flags.
  private static let sticky: UInt32 = 0x3F

  /// The one kind of store that can have floating-point exceptions.
  var isConversionToMemory: Bool {
    instruction.mnemonic == .vcvtps2ph && instruction.operands[0].kind == .memory
  }

  var hasUnmaskedSIMD: Bool {
    vectors.map { ~X87Image($0.before).mxcsr & MXCSR.masks != 0 } ?? false
  }

  // MARK: Gathers and scatters

  /// On both sides elements are done up to one that faults, and perhaps others above it.
  var areGathersInOrder: Bool {
    guard instruction.attributes.contains(.vsib), !isBlock, let vectors else { return false }
    let elements = ElementAccesses(instruction, before, vectors.before)
    let written = Set(elements.registers)
    for n in 0..<32 where !written.contains(n) {
      let offset = n * 64
      let same = memcmp(
        UnsafeRawPointer(vectors.host) + offset, UnsafeRawPointer(vectors.other) + offset, 64)
      if same != 0 { return false }
    }
    let a = elements.done(vectors.host, host.fault, onHost: true)
    let b = elements.done(vectors.other, other.fault, onHost: false)
    guard let a, let b else { return false }
    if !elements.isScatter {
      return elements.hasLoaded(vectors.host, a, load) && elements.hasLoaded(vectors.other, b, load)
        && memoryDiffers { _, _ in false }
    }
    // Only what the host has done and the other has not, or the other way round.
    let either = elements.all.filter { a.contains($0.number) != b.contains($0.number) }
    return memoryDiffers { address, _ in either.contains { $0.access.contains(address) } }
  }
}

/// The FXSAVE image's fields.
struct X87Image {
  private let image: UnsafeRawPointer

  init(_ state: UnsafePointer<VectorState>) { image = UnsafeRawPointer(state) + Comparison.fx }

  private static let exceptions: UInt16 = 0x3F
  /// Stack fault, summary and busy, and the condition codes, which stores leave undefined.
  private static let companions: UInt16 = 0x40 | 0x80 | 0x8000 | 0x4700
  private static let topBits: UInt16 = 0x3800

  var control: UInt16 { image.load(as: UInt16.self) }
  private var status: UInt16 { image.load(fromByteOffset: 2, as: UInt16.self) }
  var statusWithoutTop: UInt16 { status & ~Self.topBits }
  var top: Int { Int((status & Self.topBits) >> 11) }
  /// One bit for each register that is not empty.
  var tags: UInt8 { image.load(fromByteOffset: 4, as: UInt8.self) }
  var mxcsr: UInt32 { image.load(fromByteOffset: Comparison.mxcsrOffset, as: UInt32.self) }
  var hasUnmasked: Bool { status & ~control & Self.exceptions != 0 }
  var masksAll: Bool { control & Self.exceptions == Self.exceptions }
  /// Summary and busy.
  var isSummarized: Bool { status & 0x8080 == 0x8080 }
  /// What a store of ST(0) stores: of an empty register the indefinite number.
  var valueOfTop: [UInt8] {
    if tags >> UInt8(top) & 1 == 0 { return [0, 0, 0, 0, 0, 0, 0, 0xC0, 0xFF, 0xFF] }
    return [UInt8](UnsafeRawBufferPointer(start: image + 32, count: 10))
  }

  /// The image has them by their place on the stack.
  private func physical(_ number: Int) -> UnsafeRawPointer {
    image + 32 + ((number - top) & 7) * 16
  }

  func hasRegisters(of other: X87Image) -> Bool {
    (0..<8).allSatisfy { memcmp(physical($0), other.physical($0), 10) == 0 }
  }

  func isSame(as other: X87Image) -> Bool {
    control == other.control && status == other.status && tags == other.tags
      && hasRegisters(of: other)
  }

  func flagsAreSuperset(of other: X87Image) -> Bool {
    status & other.status & Self.exceptions == other.status & Self.exceptions
      && (status ^ other.status) & ~(Self.exceptions | Self.companions) == 0
  }
}
