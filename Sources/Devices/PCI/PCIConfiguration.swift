// SPDX-License-Identifier: Apache-2.0
//
// The configuration space of a function as a plain value (PCI Local Bus Specification,
// "Configuration Space Organization"): 256 bytes, each with a mask of its writable bits. Base
// address registers need nothing else: the bits below a range's size are read-only, from which
// software derives the size.
//
//     let identity = PCIIdentity(vendor: 0x1AF4, device: 0x1042, classCode: 0x018000)
//     var space = PCIConfiguration(identity)
//     space.addRange(0, .memory32, size: 0x4000)
//     space.write(PCIRegister.baseAddresses, width: 4, value: 0xFFFF_FFFF)
//     space.read(PCIRegister.baseAddresses, width: 4)     // 0xFFFF_C000

/// Offsets in the header of type 0.
package enum PCIRegister {
  package static let vendor = 0x00
  package static let device = 0x02
  package static let command = 0x04
  package static let status = 0x06
  package static let revision = 0x08
  package static let classCode = 0x09
  package static let headerType = 0x0E
  package static let baseAddresses = 0x10
  package static let subsystemVendor = 0x2C
  package static let subsystem = 0x2E
  package static let capabilities = 0x34
  package static let interruptLine = 0x3C
  package static let interruptPin = 0x3D
  /// The first byte after the header.
  package static let firstCapability = 0x40
}

/// Bits of the command and status registers.
package enum PCICommand {
  package static let ports: UInt16 = 1 << 0
  package static let memory: UInt16 = 1 << 1
  package static let busMaster: UInt16 = 1 << 2
  package static let interruptDisable: UInt16 = 1 << 10
  /// Status.
  package static let interruptPending: UInt16 = 1 << 3
  package static let hasCapabilities: UInt16 = 1 << 4
}

/// The identification of a function.
package struct PCIIdentity: Sendable, Hashable {
  package var vendor: UInt16
  package var device: UInt16
  /// Class, subclass and programming interface, from the high byte down.
  package var classCode: UInt32
  package var revision: UInt8 = 0
  package var subsystem: UInt16 = 0
  /// nil: the vendor.
  package var subsystemVendor: UInt16?

  package init(
    vendor: UInt16, device: UInt16, classCode: UInt32, revision: UInt8 = 0, subsystem: UInt16 = 0,
    subsystemVendor: UInt16? = nil
  ) {
    self.subsystemVendor = subsystemVendor
    self.vendor = vendor
    self.device = device
    self.classCode = classCode
    self.revision = revision
    self.subsystem = subsystem
  }
}

/// The kind of a base address register.
package enum PCIRangeKind: Sendable, Hashable {
  case ports
  case memory32
  /// Uses two registers.
  case memory64

  /// The read-only type bits.
  fileprivate var type: UInt32 {
    switch self {
    case .ports: 1
    case .memory32: 0
    case .memory64: 4
    }
  }
}

/// An address range of a function.
package struct PCIRange: Sendable, Hashable {
  /// The base address register.
  package let register: Int
  package let kind: PCIRangeKind
  package let start: UInt64
  package let size: UInt64
  package var isPorts: Bool { kind == .ports }
}

package struct PCIConfiguration: Sendable, Hashable {
  package static let size = 256

  private struct Base: Sendable, Hashable {
    let register: Int
    let kind: PCIRangeKind
    let size: UInt64
  }

  private var bytes = [UInt8](repeating: 0, count: size)
  private var writable = [UInt8](repeating: 0, count: size)
  private var bases: [Base] = []
  /// Offset of the next capability, and of the byte that will link to it.
  private var free = PCIRegister.firstCapability
  private var lastLink = PCIRegister.capabilities

  package init(_ identity: PCIIdentity) {
    set(PCIRegister.vendor, 2, UInt32(identity.vendor))
    set(PCIRegister.device, 2, UInt32(identity.device))
    set(PCIRegister.revision, 4, identity.classCode << 8 | UInt32(identity.revision))
    set(PCIRegister.subsystemVendor, 2, UInt32(identity.subsystemVendor ?? identity.vendor))
    set(PCIRegister.subsystem, 2, UInt32(identity.subsystem))
    let command =
      PCICommand.ports | PCICommand.memory | PCICommand.busMaster | PCICommand.interruptDisable
    allow(PCIRegister.command, 2, UInt32(command))
    allow(PCIRegister.interruptLine, 1, 0xFF)
  }

  // MARK: Set up by the device

  /// Adds a base address register. The size is a power of two, at least 16 bytes for memory.
  package mutating func addRange(_ register: Int, _ kind: PCIRangeKind, size: UInt64) {
    let offset = PCIRegister.baseAddresses + register * 4
    let mask = ~(size &- 1)
    set(offset, 4, kind.type)
    allow(offset, 4, UInt32(truncatingIfNeeded: mask))
    if kind == .memory64 { allow(offset + 4, 4, UInt32(truncatingIfNeeded: mask >> 32)) }
    bases.append(Base(register: register, kind: kind, size: size))
  }

  /// Adds device-specific registers that store what is written.
  package mutating func addRegisters(at offset: Int, count: Int) {
    for index in offset..<offset &+ count { writable[index] = 0xFF }
  }

  /// Appends a capability to the list.
  ///
  /// - Parameters:
  ///   - body: the bytes after the identifier and the link.
  ///   - writable: the writable bits of the body; bytes beyond its end are read-only.
  /// - Returns: its offset.
  package mutating func addCapability(
    _ identifier: UInt8, _ body: [UInt8], writable allowed: [UInt8] = []
  ) -> Int {
    let offset = free
    bytes[lastLink] = UInt8(truncatingIfNeeded: offset)
    bytes[offset] = identifier
    for (index, byte) in body.enumerated() { bytes[offset + 2 + index] = byte }
    for (index, mask) in allowed.enumerated() { writable[offset + 2 + index] = mask }
    lastLink = offset + 1
    free = (offset + 2 + body.count + 3) & ~3
    status |= PCICommand.hasCapabilities
    return offset
  }

  /// Sets the function's interrupt pin, 1 for INTA#.
  package mutating func setInterruptPin(_ pin: UInt8) { bytes[PCIRegister.interruptPin] = pin }

  package var command: UInt16 { UInt16(truncatingIfNeeded: get(PCIRegister.command, 2)) }

  package var status: UInt16 {
    get { UInt16(truncatingIfNeeded: get(PCIRegister.status, 2)) }
    set { set(PCIRegister.status, 2, UInt32(newValue)) }
  }

  // MARK: Software's accesses

  /// Reads 1, 2 or 4 bytes; all ones if they are not all in the space.
  package func read(_ offset: Int, width: Int) -> UInt32 {
    Self.isInside(offset, width) ? get(offset, width) : .max
  }

  /// Writes 1, 2 or 4 bytes: only the writable bits.
  package mutating func write(_ offset: Int, width: Int, value: UInt32) {
    guard Self.isInside(offset, width) else { return }
    for index in 0..<width {
      let mask = writable[offset &+ index]
      let new = UInt8(truncatingIfNeeded: value >> UInt32(truncatingIfNeeded: index &* 8))
      bytes[offset &+ index] = bytes[offset &+ index] & ~mask | new & mask
    }
  }

  /// The ranges that the command register currently enables.
  package var ranges: [PCIRange] {
    bases.compactMap { base in
      let enable = base.kind == .ports ? PCICommand.ports : PCICommand.memory
      guard command & enable != 0 else { return nil }
      let offset = PCIRegister.baseAddresses &+ base.register &* 4
      var start = UInt64(get(offset, 4))
      if base.kind == .memory64 { start |= UInt64(get(offset &+ 4, 4)) << 32 }
      return PCIRange(
        register: base.register, kind: base.kind, start: start & ~(base.size &- 1), size: base.size)
    }
  }

  private static func isInside(_ offset: Int, _ width: Int) -> Bool {
    (1...4).contains(width) && offset >= 0 && offset <= size &- width
  }

  /// Bytes at a valid offset.
  package func get(_ offset: Int, _ width: Int) -> UInt32 {
    (0..<width).reversed().reduce(UInt32(0)) { $0 << 8 | UInt32(bytes[offset &+ $1]) }
  }

  /// Sets bytes, read-only or not, at a valid offset.
  package mutating func set(_ offset: Int, _ width: Int, _ value: UInt32) {
    for index in 0..<width {
      bytes[offset &+ index] = UInt8(
        truncatingIfNeeded: value >> UInt32(truncatingIfNeeded: index &* 8))
    }
  }

  private mutating func allow(_ offset: Int, _ width: Int, _ mask: UInt32) {
    for index in 0..<width {
      writable[offset &+ index] = UInt8(
        truncatingIfNeeded: mask >> UInt32(truncatingIfNeeded: index &* 8))
    }
  }
}
