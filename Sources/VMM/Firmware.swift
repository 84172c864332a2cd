// SPDX-License-Identifier: Apache-2.0
//
// Firmware: code in read-only memory below 4 GiB, which reads the machine's configuration from
// `FirmwareConfiguration` and boots a disk. SeaBIOS and OVMF are known to work. UEFI has a flash
// chip with its variables below the code.

import Devices
import Glibc
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import Logging
import Synchronization
import SystemPackage

/// Firmware in memory of its own.
final class Firmware: Sendable {
  private let code: Mapping
  private let size: Int
  private let variables: Variables?

  /// The initial contents of UEFI's variables, and the file that keeps them.
  private struct Variables: Sendable {
    let bytes: [UInt8]
    let file: FlashFile?
  }

  init(_ choice: FirmwareChoice) throws(RunError) {
    let bytes: [UInt8]
    if case .uefi(let path) = choice {
      let files = try FirmwareChoice.loadUEFI()
      bytes = files.code
      variables = try Self.variables(path, initial: files.variables)
    } else {
      bytes = try choice.loadBIOS()
      variables = nil
    }
    do throws(Errno) {
      code = try Mapping(copying: bytes)
    } catch {
      throw RunError("no memory for firmware: \(error)", status: ExitStatus.engineFailed)
    }
    size = bytes.count
  }

  private static func variables(
    _ path: String?, initial: [UInt8]
  ) throws(RunError) -> Variables {
    guard let path else { return Variables(bytes: initial, file: nil) }
    let file = try FirmwareChoice.openVariables(path, initial: initial)
    do throws(Errno) {
      return Variables(bytes: try file.contents(), file: file)
    } catch {
      throw RunError("--firmware uefi,vars=\(path): cannot be read (\(error)); check the file")
    }
  }

  /// Maps the code below 4 GiB, read-only for the guest.
  func map(into machine: MachineHandle, slot: UInt32) throws(Errno) {
    try unsafe machine.setMemory(
      slot: slot, guestAddress: GuestMap.fourGiB - UInt64(size), size: UInt64(size),
      hostAddress: code.address, flags: MachineHandle.readOnlyMemory)
  }

  /// The flash chip with the variables, below the code; nil for a BIOS.
  ///
  /// - Parameter slot: the memory slot while the chip is in memory mode.
  func makeFlash(_ machine: MachineHandle, slot: UInt32) throws(Errno) -> PlacedFlash? {
    guard let variables else { return nil }
    let place = FlashPlace(
      machine: machine, slot: slot,
      start: GuestMap.fourGiB - UInt64(size) - UInt64(variables.bytes.count))
    let file = variables.file
    let flash = try FlashMemory(
      variables.bytes, visibility: { place.show($0) },
      keep: { (start, bytes) throws(Errno) in try file?.write(at: start, bytes) })
    try place.set(flash)
    return PlacedFlash(device: flash, start: place.start)
  }

  /// Copies a BIOS below 1 MiB, where its start code in real mode reads it.
  func copy(into guest: GuestMemory) -> Bool {
    guard variables == nil else { return true }
    let count = GuestMap.firmwareCopySize
    let end = code.withBytes { $0.extracting(size - count..<size).array }
    return guest.write(end, at: GuestMap.firmwareCopy)
  }

  /// The configuration for firmware.
  ///
  /// - Parameter diskSlots: the disks' slots, in boot order.
  static func configuration(
    _ memory: GuestMemory, processors: Int, pci: PCIMap, diskSlots: Range<Int>
  ) -> FirmwareConfiguration {
    typealias Item = FirmwareConfiguration.Item
    let count = UInt16(truncatingIfNeeded: processors)
    var files = FirmwareTables.files(memory, processors: processors, pci: pci)
    // Output of the BIOS and of boot loaders goes to the serial port, and input comes from there.
    var port: [UInt8] = []
    port.append(little: UInt16(GuestMap.Port.serial))
    files.append(("etc/sercon-port", port))
    // Do not wait for a key for the boot menu.
    files.append(("etc/show-boot-menu", [0, 0]))
    // Open Firmware names of virtio disks.
    let names = diskSlots.map { Array("/pci@i0cf8/scsi@\(String($0, radix: 16))/disk@0,0".utf8) }
    let order = Array(names.joined(separator: [0x0A]))
    if !order.isEmpty { files.append(("bootorder", order + [0])) }
    return FirmwareConfiguration(
      memory, numbers: [Item.processorCount: count, Item.maximumProcessorCount: count],
      files: files.sorted { $0.name < $1.name })
  }
}

/// The flash chip, and its address.
struct PlacedFlash {
  let device: FlashMemory
  let start: UInt64
}

/// The flash chip's memory slot, while it is in memory mode.
private final class FlashPlace: Sendable {
  private let machine: MachineHandle
  private let slot: UInt32
  let start: UInt64
  /// The chip's contents. The board, which has it as a device, keeps it alive.
  private let contents = Mutex<(address: UInt, size: UInt64)>((0, 0))

  init(machine: MachineHandle, slot: UInt32, start: UInt64) {
    self.machine = machine
    self.slot = slot
    self.start = start
  }

  func set(_ flash: FlashMemory) throws(Errno) {
    contents.withLock { $0 = unsafe (UInt(bitPattern: flash.address), UInt64(flash.size)) }
    try map(true)
  }

  /// If the slot cannot be set, the device handles reads.
  func show(_ isMemory: Bool) {
    do throws(Errno) {
      try map(isMemory)
    } catch {
      log.warning("firmware's variables: \(error)")
    }
  }

  private func map(_ isMemory: Bool) throws(Errno) {
    let (address, size) = contents.withLock { $0 }
    guard let host = unsafe UnsafeMutableRawPointer(bitPattern: address) else { return }
    try unsafe machine.setMemory(
      slot: slot, guestAddress: start, size: isMemory ? size : 0, hostAddress: host,
      flags: MachineHandle.readOnlyMemory)
  }
}
