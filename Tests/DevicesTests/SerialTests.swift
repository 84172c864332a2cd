// SPDX-License-Identifier: Apache-2.0
//
// The UART against the 16550's data sheet (FIFO, interrupts by priority, loop mode), and the
// port with its backlog in front of it.

import Devices
import Synchronization
import Testing

@Suite struct UART16550Tests {
  typealias Register = UART16550.Register
  typealias Enable = UART16550.InterruptEnable

  @Test func bytesGoOutAndComeIn() {
    var chip = UART16550()
    #expect(chip.write(Register.data, 0x41) == 0x41)
    #expect(chip.read(Register.lineStatus) == 0x60)
    chip.receive(0x42)
    #expect(chip.read(Register.lineStatus) == 0x61)
    #expect(chip.read(Register.data) == 0x42)
    #expect(chip.read(Register.lineStatus) == 0x60)
  }

  @Test func theDivisorHidesBehindTheLatchBit() {
    var chip = UART16550()
    #expect(chip.write(Register.lineControl, 0x83) == nil)
    #expect(chip.write(Register.data, 0x0C) == nil)
    #expect(chip.write(Register.interruptEnable, 0x01) == nil)
    #expect(chip.read(Register.data) == 0x0C && chip.read(Register.interruptEnable) == 1)
    _ = chip.write(Register.lineControl, 3)
    #expect(chip.read(Register.interruptEnable) == 0 && chip.read(Register.lineControl) == 3)
  }

  @Test func theFIFOHolds16AndThenOverruns() {
    var chip = UART16550()
    _ = chip.write(Register.fifoControl, 1)
    #expect(chip.read(Register.interruptIdentification) == 0xC1)
    for byte in 0..<16 as Range<UInt8> {
      #expect(chip.canReceive)
      chip.receive(byte)
    }
    #expect(!chip.canReceive)
    chip.receive(99)
    #expect(chip.read(Register.lineStatus) == 0x63)
    #expect(chip.read(Register.lineStatus) == 0x61)
    for byte in 0..<16 as Range<UInt8> { #expect(chip.read(Register.data) == byte) }
    #expect(chip.read(Register.data) == 0)
  }

  @Test func interruptsHaveTheirPriorities() {
    var chip = UART16550()
    _ = chip.write(Register.modemControl, 8)
    #expect(chip.read(Register.interruptIdentification) == 1 && !chip.interruptLevel)
    // An empty transmitter interrupts when its interrupt is enabled, until IIR is read.
    _ = chip.write(Register.interruptEnable, Enable.transmitterEmpty | Enable.received)
    #expect(chip.interruptLevel)
    chip.receive(1)
    #expect(chip.read(Register.interruptIdentification) == 4)
    _ = chip.read(Register.data)
    #expect(chip.read(Register.interruptIdentification) == 2)
    #expect(chip.read(Register.interruptIdentification) == 1 && !chip.interruptLevel)
    _ = chip.write(Register.data, 1)
    #expect(chip.interruptLevel)
  }

  @Test func belowTheTriggerItIsATimeout() {
    var chip = UART16550()
    _ = chip.write(Register.fifoControl, 0x41)
    _ = chip.write(Register.interruptEnable, Enable.received)
    for count in 1...4 {
      chip.receive(0)
      #expect(chip.read(Register.interruptIdentification) == (count < 4 ? 0xCC : 0xC4))
    }
  }

  @Test func outTwoConnectsTheInterrupt() {
    var chip = UART16550()
    _ = chip.write(Register.interruptEnable, Enable.received)
    chip.receive(1)
    #expect(!chip.interruptLevel)
    _ = chip.write(Register.modemControl, 8)
    #expect(chip.interruptLevel)
  }

  @Test func loopModeIsWhatDriversProbeFor() {
    var chip = UART16550()
    _ = chip.write(Register.modemControl, 0x1A)
    #expect(chip.read(Register.modemStatus) & 0xF0 == 0x90)
    #expect(chip.write(Register.data, 0x55) == nil)
    #expect(chip.read(Register.data) == 0x55)
    _ = chip.write(Register.scratch, 0xAE)
    #expect(chip.read(Register.scratch) == 0xAE)
    _ = chip.write(Register.modemControl, 0)
    #expect(chip.read(Register.modemStatus) & 0xF0 == 0xB0)
  }
}

@Suite struct SerialPortTests {
  @Test func aBacklogFeedsTheFIFO() {
    let levels = Mutex<[Bool]>([])
    let sent = Mutex<[UInt8]>([])
    let port = SerialPort(
      interrupt: { level in levels.withLock { $0.append(level) } },
      output: { byte in sent.withLock { $0.append(byte) } })
    port.write(offset: 2, width: 1, value: 1)
    port.write(offset: 4, width: 1, value: 8)
    port.write(offset: 1, width: 1, value: 1)
    let text = (0..<100).map { UInt8($0) }
    port.receive(text)
    #expect(port.pendingInput == 84)
    var got: [UInt8] = []
    while port.read(offset: 5, width: 1) & 1 != 0 {
      got.append(UInt8(port.read(offset: 0, width: 1)))
    }
    #expect(got == text && port.pendingInput == 0)
    #expect(levels.withLock { $0 } == [true, false])
    port.write(offset: 0, width: 1, value: 0x1_41)
    #expect(sent.withLock { $0 } == [0x41])
  }
}
