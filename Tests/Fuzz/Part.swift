// SPDX-License-Identifier: Apache-2.0

/// What is fuzzed: everything that reads bytes that a guest or a file chooses, and needs no guest
/// for it.
enum Part: String, CaseIterable {
  /// Code to instructions and to their texts.
  case decoder
  /// Files of kernels, to guest memory.
  case kernels
  /// What is in a compressed kernel, and its relocations.
  case payloads
  /// Compressed data.
  case decompressors
  /// Accesses of the VMM's devices.
  case devices
  /// Accesses of interrupt chips and timers, and states that a client loads.
  case chips
  /// Disk images.
  case images
  /// The flash chip of UEFI's variables, and its file.
  case flash
  /// Virtio devices that work in the event loop, by their queues and registers.
  case console
  case sockets
  case balloon

  func run(_ input: UnsafeRawBufferPointer) {
    switch self {
    case .decoder: DecoderPart.run(input)
    case .kernels: KernelPart.run(file: input)
    case .payloads: KernelPart.run(payload: input)
    case .decompressors: DecompressorPart.run(input)
    case .devices: DevicePart.run(input)
    case .chips: ChipPart.run(input)
    case .images: ImagePart.run(input)
    case .flash: FlashPart.run(input)
    case .console: VirtioPart.run(.console, input)
    case .sockets: VirtioPart.run(.sockets, input)
    case .balloon: VirtioPart.run(.balloon, input)
    }
  }

  /// Inputs to begin with.
  var seeds: [[UInt8]] {
    switch self {
    case .decoder: DecoderPart.seeds
    case .kernels: KernelPart.files
    case .payloads: KernelPart.payloads
    case .decompressors: DecompressorPart.seeds
    case .devices, .chips: [[UInt8](0...255)]
    case .images: ImagePart.seeds
    case .flash: FlashPart.seeds
    case .console, .sockets, .balloon: VirtioPart.seeds
    }
  }
}

/// Takes an input apart; after its end everything is 0.
struct Reader {
  private var rest: UnsafeRawBufferPointer.SubSequence

  init(_ input: UnsafeRawBufferPointer) { rest = input[...] }

  var isAtEnd: Bool { rest.isEmpty }

  mutating func byte() -> UInt8 { rest.popFirst() ?? 0 }

  mutating func word<Value: FixedWidthInteger & UnsignedInteger>(_ type: Value.Type) -> Value {
    var value: Value = 0
    for _ in 0..<MemoryLayout<Value>.size { value = value << 8 | Value(byte()) }
    return value
  }

  /// A short or a long number: small ones, and those near the ends, are found sooner.
  mutating func number() -> UInt64 {
    let kind = byte()
    let value =
      switch kind & 3 {
      case 0: UInt64(byte())
      case 1: UInt64(word(UInt16.self))
      case 2: UInt64(word(UInt32.self))
      default: word(UInt64.self)
      }
    return kind & 4 == 0 ? value : ~value
  }
}
