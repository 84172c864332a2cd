// SPDX-License-Identifier: Apache-2.0
//
// Where guest registers are while translated code runs. Host RSP points into the CPUState
// (`Place.state`); R13 to R15 are scratch; guest RSP is in R12; guest R12 to R15 stay in the CPU
// state.

import X86
import X86CPU

enum RegisterMap {
  /// The host register of a guest register; nil for one that is in the state.
  static func host(_ guest: UInt8) -> HostRegister? {
    switch guest {
    case 4: .r12
    case 0...11: HostRegister(rawValue: guest)
    default: nil
    }
  }

  static let stackPointer = HostRegister.r12

  /// Guest registers that have a host register.
  static let mapped: [UInt8] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]

  static func place(_ guest: UInt8) -> Place { .state(Int(guest) * 8) }
}

/// Offsets of the fields that translated code uses.
enum StateOffset {
  static let rip = MemoryLayout<CPUState>.offset(of: \.rip)!
  static let zero = CPU.zeroOffset
  static let tlb = MemoryLayout<CPUState>.offset(of: \.tlb)!
  static let addressSpace = MemoryLayout<CPUState>.offset(of: \.addressSpace)!
  static let supervisorTLBContext = MemoryLayout<CPUState>.offset(of: \.supervisorTLBContext)!
  static let cr2 = MemoryLayout<CPUState>.offset(of: \.cr2)!
  static let tscAux = MemoryLayout<CPUState>.offset(of: \.tscAux)!
  static let tlbContext = MemoryLayout<CPUState>.offset(of: \.tlbContext)!
  static let request = MemoryLayout<CPUState>.offset(of: \.request)!
  static let retired = MemoryLayout<CPUState>.offset(of: \.retired)!
  static let slow = MemoryLayout<CPUState>.offset(of: \.slow)!
  static let blockContext = MemoryLayout<CPUState>.offset(of: \.blockContext)!
  static let rflags = MemoryLayout<CPUState>.offset(of: \.rflags)!
  static let cpl = MemoryLayout<CPUState>.offset(of: \.cpl)!
  static let kernelGSBase = MemoryLayout<CPUState>.offset(of: \.kernelGSBase)!
  static let efer = MemoryLayout<CPUState>.offset(of: \.efer)!
  static let cr4 = MemoryLayout<CPUState>.offset(of: \.cr4)!
  static let star = MemoryLayout<CPUState>.offset(of: \.star)!
  static let lstar = MemoryLayout<CPUState>.offset(of: \.lstar)!
  static let fmask = MemoryLayout<CPUState>.offset(of: \.fmask)!
  static let pkru = MemoryLayout<CPUState>.offset(of: \.pkru)!
  static let tlbBanks = MemoryLayout<CPUState>.offset(of: \.tlbBanks)!
  static let interruptibility = MemoryLayout<CPUState>.offset(of: \.interruptibility)!
  static let tscAdjust =
    MemoryLayout<CPUState>.offset(of: \.system)!
    + MemoryLayout<SystemState>.offset(of: \.tscAdjust)!
  private static let intercepts = MemoryLayout<CPUState>.offset(of: \.intercepts)!
  /// The lowest byte of the set.
  static let interceptSet = intercepts + MemoryLayout<Intercepts>.offset(of: \.set)!
  static let enabledInstructions = intercepts + MemoryLayout<Intercepts>.offset(of: \.enabled)!
  static let vendorRules = MemoryLayout<CPUState>.offset(of: \.rules)!
  static let tscOffset = intercepts + MemoryLayout<Intercepts>.offset(of: \.tscOffset)!
  static let segments = MemoryLayout<CPUState>.offset(of: \.segments)!
  private static let native = MemoryLayout<CPUState>.offset(of: \.native)!
  static let userContext = native + MemoryLayout<NativeState>.offset(of: \.userContext)!
  static let supervisorContext =
    native + MemoryLayout<NativeState>.offset(of: \.supervisorContext)!
  static let codePage = MemoryLayout<CPUState>.offset(of: \.codePage)!
  static let hostFlags = MemoryLayout<CPUState>.offset(of: \.hostFlags)!
  static let jumps = MemoryLayout<CPUState>.offset(of: \.jumps)!
  static let stackPage = MemoryLayout<CPUState>.offset(of: \.stackPage)!
  static let stackAddend = MemoryLayout<CPUState>.offset(of: \.stackAddend)!
  static let stackLimit = MemoryLayout<CPUState>.offset(of: \.stackLimit)!
  static let hostStack = native + MemoryLayout<NativeState>.offset(of: \.hostStack)!
  static let wholeSegments = native + MemoryLayout<NativeState>.offset(of: \.wholeSegments)!
  static let temporary0 = native + MemoryLayout<NativeState>.offset(of: \.temporary0)!
  static let temporary1 = native + MemoryLayout<NativeState>.offset(of: \.temporary1)!

  private static let groupAddresses =
    native + MemoryLayout<NativeState>.offset(of: \.groupAddresses)!
  static func groupAddress(_ group: Int) -> Int { groupAddresses + group * 8 }

  private static let counts = native + MemoryLayout<NativeState>.offset(of: \.counts)!
  static let translations = counts + MemoryLayout<TierCounts>.offset(of: \.translations)!
  static let lookups = counts + MemoryLayout<TierCounts>.offset(of: \.lookups)!
  static let accessPages = native + MemoryLayout<NativeState>.offset(of: \.accessPages)!
  static let roundsMask = native + MemoryLayout<NativeState>.offset(of: \.roundsMask)!
  static let harmless = native + MemoryLayout<NativeState>.offset(of: \.harmless)!
  private static let harmlessBases =
    native + MemoryLayout<NativeState>.offset(of: \.harmlessBases)!
  static func harmlessBase(_ number: Int) -> Int { harmlessBases + number * 8 }
  private static let lentRegisters =
    native + MemoryLayout<NativeState>.offset(of: \.lentRegisters)!
  static func lentRegister(_ guest: UInt8) -> Int { lentRegisters + Int(guest) * 8 }
  static let flagSource = native + MemoryLayout<NativeState>.offset(of: \.flagSource)!

  static let readTag = MemoryLayout<TLBEntry>.offset(of: \.readTag)!
  static let writeTag = MemoryLayout<TLBEntry>.offset(of: \.writeTag)!
  static let addend = MemoryLayout<TLBEntry>.offset(of: \.addend)!
  static let jumpLinear = MemoryLayout<NativeJump>.offset(of: \.linear)!
  static let jumpContext = MemoryLayout<NativeJump>.offset(of: \.context)!
  static let jumpCode = MemoryLayout<NativeJump>.offset(of: \.code)!
}

/// Offsets of a segment register's parts.
enum SegmentOffset {
  private static func start(_ register: SegmentRegister) -> Int {
    StateOffset.segments + Int(register.rawValue) * MemoryLayout<SegmentState>.stride
  }

  static func base(_ register: SegmentRegister) -> Int {
    start(register) + MemoryLayout<SegmentState>.offset(of: \.base)!
  }

  /// Limit in bits 31:0, access rights in bits 63:32.
  static func limitAndRights(_ register: SegmentRegister) -> Int {
    start(register) + MemoryLayout<SegmentState>.offset(of: \.limit)!
  }

  static func selector(_ register: SegmentRegister) -> Int {
    start(register) + MemoryLayout<SegmentState>.offset(of: \.selector)!
  }
}
