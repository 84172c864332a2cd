// SPDX-License-Identifier: Apache-2.0
//
// The 16550A serial chip as a plain value: registers, FIFOs, interrupt conditions. It transmits at
// once, so its transmitter is always empty. Facts are from the PC16550D data sheet.
//
//     var chip = UART16550()
//     let sent = chip.write(0, 0x41)   // Sent byte: 0x41
//     chip.receive(0x42)
//     chip.read(0)                     // 0x42

/// State and behaviour of a 16550A.
package struct UART16550: Sendable, Hashable {
  /// Registers by offset (some share one, selected by direction or by LCR's divisor latch bit).
  package enum Register {
    package static let data: UInt64 = 0
    package static let interruptEnable: UInt64 = 1
    package static let interruptIdentification: UInt64 = 2
    package static let fifoControl: UInt64 = 2
    package static let lineControl: UInt64 = 3
    package static let modemControl: UInt64 = 4
    package static let lineStatus: UInt64 = 5
    package static let modemStatus: UInt64 = 6
    package static let scratch: UInt64 = 7
  }

  /// IER's bits.
  package enum InterruptEnable {
    package static let received: UInt8 = 1
    package static let transmitterEmpty: UInt8 = 2
    package static let lineStatus: UInt8 = 4
    package static let modemStatus: UInt8 = 8
  }

  /// IIR's values.
  package enum Identification {
    package static let none: UInt8 = 1
    package static let modemStatus: UInt8 = 0
    package static let transmitterEmpty: UInt8 = 2
    package static let received: UInt8 = 4
    package static let lineStatus: UInt8 = 6
    package static let timeout: UInt8 = 12
    package static let fifosEnabled: UInt8 = 0xC0
  }

  /// LSR's bits.
  package enum LineStatus {
    package static let dataReady: UInt8 = 1
    package static let overrun: UInt8 = 2
    package static let transmitterEmpty: UInt8 = 0x60
  }

  private static let divisorLatch: UInt8 = 0x80
  private static let loop: UInt8 = 0x10
  private static let out2: UInt8 = 0x08
  /// The lines of an attached terminal: carrier, data set ready, clear to send.
  private static let connected: UInt8 = 0xB0
  private static let fifoSize = 16

  private var divisor: UInt16 = 12
  private var interruptEnable: UInt8 = 0
  private var fifoControl: UInt8 = 0
  private var lineControl: UInt8 = 3
  private var modemControl: UInt8 = 0
  private var scratch: UInt8 = 0
  private var overrun = false
  /// The transmitter has become empty since IIR was last read.
  private var transmitterInterrupt = false
  private var modemDelta: UInt8 = 0
  private var received: [UInt8] = []

  package init() {}

  private var fifosEnabled: Bool { fifoControl & 1 != 0 }
  private var capacity: Int { fifosEnabled ? Self.fifoSize : 1 }
  private var trigger: Int { fifosEnabled ? [1, 4, 8, 14][Int(fifoControl >> 6)] : 1 }

  /// Whether a byte can be received without an overrun.
  package var canReceive: Bool { received.count < capacity && modemControl & Self.loop == 0 }

  /// The current value of IIR, without its FIFO bits.
  private var identification: UInt8 {
    if interruptEnable & InterruptEnable.lineStatus != 0, overrun {
      return Identification.lineStatus
    }
    if interruptEnable & InterruptEnable.received != 0, !received.isEmpty {
      return received.count >= trigger ? Identification.received : Identification.timeout
    }
    if interruptEnable & InterruptEnable.transmitterEmpty != 0, transmitterInterrupt {
      return Identification.transmitterEmpty
    }
    if interruptEnable & InterruptEnable.modemStatus != 0, modemDelta != 0 {
      return Identification.modemStatus
    }
    return Identification.none
  }

  /// The level of the interrupt line: on a PC, OUT2 connects the chip's output to it.
  package var interruptLevel: Bool {
    identification != Identification.none && modemControl & (Self.out2 | Self.loop) == Self.out2
  }

  /// Receives a byte from the wire.
  package mutating func receive(_ byte: UInt8) {
    if received.count < capacity { received.append(byte) } else { overrun = true }
  }

  /// Reads a register.
  package mutating func read(_ offset: UInt64) -> UInt8 {
    let latch = lineControl & Self.divisorLatch != 0
    switch offset {
    case Register.data:
      if latch { return UInt8(truncatingIfNeeded: divisor) }
      return received.isEmpty ? 0 : received.removeFirst()
    case Register.interruptEnable:
      return latch ? UInt8(truncatingIfNeeded: divisor >> 8) : interruptEnable
    case Register.interruptIdentification:
      let value = identification
      if value == Identification.transmitterEmpty { transmitterInterrupt = false }
      return value | (fifosEnabled ? Identification.fifosEnabled : 0)
    case Register.lineControl: return lineControl
    case Register.modemControl: return modemControl
    case Register.lineStatus:
      let value =
        LineStatus.transmitterEmpty | (received.isEmpty ? 0 : LineStatus.dataReady)
        | (overrun ? LineStatus.overrun : 0)
      overrun = false
      return value
    case Register.modemStatus:
      let value = modemLines | modemDelta
      modemDelta = 0
      return value
    case Register.scratch: return scratch
    default: return 0xFF
    }
  }

  /// CTS, DSR, RI, DCD: the terminal's, or in loop mode RTS, DTR, OUT1, OUT2.
  private var modemLines: UInt8 {
    guard modemControl & Self.loop != 0 else { return Self.connected }
    return (modemControl & 2) << 3 | (modemControl & 1) << 5 | (modemControl & 4) << 4
      | (modemControl & 8) << 4
  }

  /// Writes a register.
  ///
  /// - Returns: the sent byte, if any.
  package mutating func write(_ offset: UInt64, _ value: UInt8) -> UInt8? {
    let latch = lineControl & Self.divisorLatch != 0
    switch offset {
    case Register.data where latch: divisor = divisor & 0xFF00 | UInt16(value)
    case Register.data: return transmit(value)
    case Register.interruptEnable where latch:
      divisor = divisor & 0xFF | UInt16(value) << 8
    case Register.interruptEnable:
      let enabled = value & ~interruptEnable
      interruptEnable = value & 0xF
      if enabled & InterruptEnable.transmitterEmpty != 0 { transmitterInterrupt = true }
    case Register.fifoControl:
      if (value ^ fifoControl) & 1 != 0 || value & 2 != 0 { received.removeAll() }
      fifoControl = value & 0xC9
    case Register.lineControl: lineControl = value
    case Register.modemControl: setModemControl(value & 0x1F)
    case Register.scratch: scratch = value
    default: break
    }
    return nil
  }

  private mutating func transmit(_ value: UInt8) -> UInt8? {
    transmitterInterrupt = true
    guard modemControl & Self.loop == 0 else {
      receive(value)
      return nil
    }
    return value
  }

  private mutating func setModemControl(_ value: UInt8) {
    let before = modemLines
    modemControl = value
    let changed = (before ^ modemLines) >> 4
    // The ring indicator's delta reports only its falling edge.
    let ring: UInt8 = before & ~modemLines & 0x40 != 0 ? 4 : 0
    modemDelta |= changed & 0xB | ring
  }
}
