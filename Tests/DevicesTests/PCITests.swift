// SPDX-License-Identifier: Apache-2.0
//
// Configuration space, ranges, pins and MSI-X as the PCI specification has them. Whatever is
// written there, no more answers than a function's ranges inside the window.

import Devices
import Synchronization
import TestRandom
import Testing

/// A function with ranges that records what reaches them.
private final class TestFunction: PCIDevice {
  let space: Mutex<PCIConfiguration>
  let last = Mutex<(range: Int, offset: UInt64, value: UInt64)?>(nil)

  init(_ add: (inout PCIConfiguration) -> Void) {
    var space = PCIConfiguration(
      PCIIdentity(vendor: 0x1234, device: 0x5678, classCode: 0x010203, revision: 9, subsystem: 7))
    add(&space)
    self.space = Mutex(space)
  }

  func readConfiguration(_ offset: Int, width: Int) -> UInt32 {
    space.withLock { $0.read(offset, width: width) }
  }
  func writeConfiguration(_ offset: Int, width: Int, value: UInt32) {
    space.withLock { $0.write(offset, width: width, value: value) }
  }
  func resetWithMachine() {}
  var isBusy: Bool { false }
  var ranges: [PCIRange] { space.withLock { $0.ranges } }
  func read(range: Int, offset: UInt64, width: Int) -> UInt64 { UInt64(range) << 16 | offset }
  func write(range: Int, offset: UInt64, width: Int, value: UInt64) {
    last.withLock { $0 = (range, offset, value) }
  }
}

@Suite struct PCIConfigurationTests {
  static let bases = PCIRegister.baseAddresses

  @Test func theHeaderSaysWhoItIs() {
    let function = TestFunction { _ in }
    #expect(function.readConfiguration(0, width: 4) == 0x5678_1234)
    #expect(function.readConfiguration(8, width: 4) == 0x0102_0309)
    #expect(function.readConfiguration(0x2C, width: 4) == 0x0007_1234)
    function.writeConfiguration(0, width: 4, value: 0)
    #expect(function.readConfiguration(0, width: 2) == 0x1234)
    #expect(function.readConfiguration(254, width: 4) == .max)
    #expect(function.readConfiguration(-1, width: 1) == .max)
  }

  @Test func rangesTellTheirSize() {
    let function = TestFunction {
      $0.addRange(0, .memory32, size: 0x4000)
      $0.addRange(1, .ports, size: 0x20)
      $0.addRange(2, .memory64, size: 0x2_0000_0000)
    }
    for register in 0..<6 {
      function.writeConfiguration(Self.bases + 4 * register, width: 4, value: .max)
    }
    let sizes = (0..<6).map { function.readConfiguration(Self.bases + 4 * $0, width: 4) }
    #expect(sizes == [0xFFFF_C000, 0xFFFF_FFE1, 4, 0xFFFF_FFFE, 0, 0])
  }

  @Test func capabilitiesAreChained() {
    var second = 0
    let function = TestFunction {
      _ = $0.addCapability(0x11, [1, 2, 3])
      second = $0.addCapability(0x09, [0xAA, 0xBB], writable: [0x0F])
    }
    #expect(function.readConfiguration(PCIRegister.status, width: 2) & 0x10 != 0)
    let first = Int(function.readConfiguration(PCIRegister.capabilities, width: 1))
    #expect(function.readConfiguration(first, width: 1) == 0x11)
    #expect(Int(function.readConfiguration(first + 1, width: 1)) == second && second % 4 == 0)
    function.writeConfiguration(second + 2, width: 2, value: 0)
    #expect(function.readConfiguration(second, width: 4) == 0xBBA0_0009)
  }
}

@Suite struct PCIRootTests {
  let memory = Bus()
  let ports = Bus()
  let root: PCIRoot
  let address = PCIAddressPort()

  init() {
    root = PCIRoot(
      memory: memory, ports: ports,
      windows: PCIWindows(memory: 0xC000_0000..<0xD000_0000, ports: 0x1000..<0x1_0000),
      lines: [{ _ in }])
    ports.attach(address, at: PCIAddressPort.port, size: 1)
    ports.attach(PCIDataPort(root, address), at: PCIDataPort.port, size: PCIDataPort.size)
    memory.attach(PCIConfigurationMemory(root), at: 0xE000_0000, size: PCIConfigurationMemory.size)
  }

  private func write(_ slot: UInt64, _ register: UInt64, _ value: UInt64, width: Int = 4) {
    memory.write(0xE000_0000 + slot << 15 + register, width: width, value: value)
  }

  private func place(_ slot: UInt64, _ address: UInt64, command: UInt64 = 2) {
    write(slot, 0x10, address)
    write(slot, 4, command, width: 2)
  }

  private func insert(_ slot: Int, size: UInt64 = 0x1000) -> TestFunction {
    let function = TestFunction { $0.addRange(0, .memory32, size: size) }
    root.insert(function, slot: slot)
    return function
  }

  @Test func bothWaysReachConfigurationSpace() {
    let function = insert(3)
    ports.write(0xCF8, width: 4, value: 0x8000_1800)
    #expect(ports.read(0xCF8, width: 4) == 0x8000_1800)
    #expect(ports.read(0xCFC, width: 4) == 0x5678_1234)
    #expect(ports.read(0xCFE, width: 2) == 0x5678)
    #expect(ports.read(0xCFE, width: 4) == 0xFFFF_FFFF)
    #expect(memory.read(0xE001_8000, width: 8) == 0x5678_1234 | UInt64(0) << 32)
    #expect(memory.read(0xE001_8002, width: 2) == 0x5678)
    ports.write(0xCF8, width: 4, value: 0x8000_183C)
    ports.write(0xCFC, width: 1, value: 0x55)
    #expect(function.readConfiguration(PCIRegister.interruptLine, width: 1) == 0x55)
    // Not enabled, not 32 bits, no such function, bus or register.
    ports.write(0xCF8, width: 4, value: 0x1800)
    #expect(ports.read(0xCFC, width: 4) == 0xFFFF_FFFF)
    ports.write(0xCF8, width: 1, value: 0x80)
    #expect(ports.read(0xCF8, width: 4) == 0x1800)
    for offset in [0x1_9000, 0x2_0000, 0x10_0000 - 0x1000, 0x1_8100] as [UInt64] {
      #expect(memory.read(0xE000_0000 + offset, width: 4) == 0xFFFF_FFFF)
    }
  }

  /// A Q35's configuration space lies where firmware puts it.
  @Test func firmwarePlacesConfigurationSpace() {
    let moves = Mutex<[UInt64?]>([])
    let root = PCIRoot(
      memory: Bus(), ports: Bus(), windows: PCIWindows(memory: 0..<1, ports: 0..<1),
      lines: [{ _ in }], chipset: .q35,
      configurationMoved: { _, new in moves.withLock { $0.append(new) } })
    let bridge = PCIAddress(0)
    #expect(root.read(bridge, 0, width: 4) == 0x29C0_8086)
    root.write(bridge, 0x64, width: 4, value: 1)
    root.write(bridge, 0x60, width: 4, value: 0xB000_0001)
    root.write(bridge, 0x60, width: 1, value: 1)
    root.write(bridge, 0x64, width: 4, value: 0)
    root.resetWithMachine()
    #expect(moves.withLock { $0 } == [0x1_B000_0000, 0xB000_0000, nil])
    // ACPI's block is at a fixed place.
    let power = PCIAddress(31 << 3)
    #expect(root.read(power, 8, width: 4) == 0x0601_0002)
    root.write(power, 0x40, width: 4, value: 0xB001)
    #expect(root.read(power, 0x40, width: 4) == 0x601 && root.read(power, 0x44, width: 1) == 0x80)
  }

  @Test func aHostBridgeIsInSlot0() {
    #expect(memory.read(0xE000_000A, width: 2) == 0x0600)
  }

  @Test func rangesMoveAndHide() {
    let function = insert(1)
    place(1, 0xC000_0000)
    #expect(memory.read(0xC000_0124, width: 4) == 0x124)
    write(1, 0x10, 0xC800_0000)
    #expect(memory.read(0xC000_0124, width: 4) == 0xFFFF_FFFF)
    memory.write(0xC800_0FFC, width: 4, value: 7)
    #expect(function.last.withLock { $0?.value } == 7)
    write(1, 4, 0, width: 2)
    #expect(memory.read(0xC800_0124, width: 4) == 0xFFFF_FFFF)
    place(1, 0xC800_0000)
    root.remove(slot: 1)
    #expect(memory.read(0xC800_0124, width: 4) == 0xFFFF_FFFF)
    #expect(memory.read(0xE000_8000, width: 4) == 0xFFFF_FFFF)
  }

  @Test(arguments: [0, 0xBFFF_F000, 0xD000_0000, 0xE000_0000, 0xFFFF_F000] as [UInt64])
  func rangesOutsideOfTheWindowAreNotShown(address: UInt64) {
    let function = insert(1)
    place(1, address)
    memory.write(address, width: 4, value: 1)
    #expect(function.last.withLock { $0 } == nil)
  }

  @Test func aRangeOverAnotherWaitsForItsPlace() {
    let (first, second) = (insert(1), insert(2, size: 0x2000))
    place(1, 0xC000_1000)
    place(2, 0xC000_0000)
    memory.write(0xC000_1000, width: 4, value: 1)
    memory.write(0xC000_0000, width: 4, value: 2)
    #expect(first.last.withLock { $0?.value } == 1 && second.last.withLock { $0 } == nil)
    write(1, 0x10, 0xC100_0000)
    memory.write(0xC000_1000, width: 4, value: 3)
    #expect(second.last.withLock { $0?.value } == 3)
    #expect(memory.read(0xC100_0004, width: 4) == 4)
  }

  @Test func portsAreARangeToo() {
    root.insert(TestFunction { $0.addRange(2, .ports, size: 0x40) }, slot: 5)
    write(5, 0x18, 0x2000)
    write(5, 4, 1, width: 2)
    #expect(ports.read(0x203F, width: 4) == 0x2_003F)
  }

  @Test func pinsShareALine() {
    let levels = Mutex<[Bool]>([])
    let root = PCIRoot(
      memory: memory, ports: ports, windows: PCIWindows(memory: 0..<1, ports: 0..<1),
      lines: [{ level in levels.withLock { $0.append(level) } }])
    let (first, second) = (root.interruptLine(slot: 1), root.interruptLine(slot: 2))
    first(true)
    second(true)
    first(false)
    first(false)
    second(false)
    #expect(levels.withLock { $0 } == [true, false])
  }

  /// Whatever is written to configuration space, nothing but windows is ever answered.
  @Test func randomWrites() {
    var random = SplitMix(seed: 20_261_130)
    for slot in 1..<4 {
      root.insert(
        TestFunction {
          $0.addRange(0, .memory32, size: 16 << UInt64(random.below(16)))
          $0.addRange(1, .ports, size: 4 << UInt64(random.below(6)))
          $0.addRange(2, .memory64, size: 4096 << UInt64(random.below(24)))
        }, slot: slot)
    }
    for _ in 0..<40_000 {
      let offset = UInt64(random.below(5)) << 15 + UInt64(random.below(0x40))
      let value = random.oneIn(2) ? random.next() & 0x0FFF_FFFF | 0xC000_0000 : random.next()
      write(0, offset, value, width: 1 << random.below(4))
      let place = random.next() >> UInt64(random.below(64))
      let isOutside = place < 0xC000_0000 || (0xD000_0000..<0xE000_0000).contains(place)
      if isOutside { #expect(memory.read(place, width: 4) == 0xFFFF_FFFF) }
    }
  }
}

@Suite struct MSIXTests {
  @Test func messagesWaitWhileMasked() {
    var table = MSIXTable(count: 3)
    func raise(_ vector: Int) -> InterruptMessage? { table.raise(vector) }
    func released() -> [InterruptMessage] { table.takeReleased() }
    table.write(0x10, 0xFEE0_1003)
    table.write(0x14, 1)
    table.write(0x18, 0x41)
    #expect(raise(1) == nil && table.pendingBits(0) == 2)
    table.control = MSIXTable.enable
    #expect(released().isEmpty)
    table.write(0x1C, 0xFFFF_FFFE)
    let message = InterruptMessage(address: 0x1_FEE0_1000, data: 0x41)
    #expect(released() == [message] && table.pendingBits(0) == 0)
    #expect(raise(1) == message)
    table.control |= MSIXTable.functionMask
    #expect(raise(1) == nil && released().isEmpty)
    table.control = MSIXTable.enable
    #expect(released() == [message])
    #expect(raise(3) == nil && raise(0xFFFF) == nil)
  }

  @Test func onlyEntriesAreThere() {
    var table = MSIXTable(count: 3)
    table.write(0x30, 1)
    table.write(.max - 3, 1)
    #expect(table.read(0x30) == .max && table.read(.max - 3) == .max)
    #expect(table.read(0x2C) == 1 && table.pendingBits(.max) == 0)
  }
}
