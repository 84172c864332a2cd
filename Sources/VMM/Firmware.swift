// SPDX-License-Identifier: Apache-2.0
//
// Firmware: a BIOS in read-only memory below 4 GiB, which finds out from `FirmwareConfiguration`
// what machine it runs on and boots a disk. SeaBIOS is the one that is known to work.

import Devices
import Glibc
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import SystemPackage

/// What boots the disks.
package enum FirmwareChoice: Sendable, Hashable {
  /// SeaBIOS as Debian has it.
  case bios
  case file(String)

  private static let biosPath = "/usr/share/seabios/bios-256k.bin"
  private static let package = "seabios"

  init(_ text: String) throws(RunError) {
    switch text {
    case "bios": self = .bios
    case "uefi":
      throw RunError(
        "--firmware uefi: not there yet; give bios, or boot the kernel with --kernel")
    case "": throw RunError("--firmware: no file; give bios or a file")
    default: self = .file(text)
    }
  }

  /// Its bytes.
  func load() throws(RunError) -> [UInt8] {
    let (path, name) =
      switch self {
      case .bios: (Self.biosPath, "bios")
      case .file(let path): (path, path)
      }
    let bytes: [UInt8]
    do throws(Errno) {
      bytes = try contentsOfFile(path, limit: GuestMap.firmwareLimit)
    } catch {
      switch (error, self) {
      case (.noSuchFileOrDirectory, .bios):
        throw RunError("--firmware bios: \(path) is missing; apt-get install \(Self.package)")
      case (.noSuchFileOrDirectory, _):
        throw RunError("--firmware \(name): no such file; check the path")
      default: throw RunError("--firmware \(name): cannot be read (\(error)); check the file")
      }
    }
    let unit = 64 << 10
    guard bytes.count >= 2 * unit, bytes.count % unit == 0 else {
      throw RunError(
        "--firmware \(name): \(bytes.count) bytes; a BIOS has a multiple of 64K, at least 128K")
    }
    return bytes
  }
}

/// Firmware in memory of its own, as the processor finds it.
final class Firmware: Sendable {
  private let memory: Mapping
  private let size: Int

  /// - Parameter bytes: a multiple of 64 KiB.
  init(_ bytes: [UInt8]) throws(Errno) {
    memory = try Mapping(anonymous: bytes.count, guards: true)
    size = bytes.count
    unsafe UnsafeMutableRawBufferPointer(start: memory.address, count: size).copyBytes(from: bytes)
  }

  /// Puts it below 4 GiB, where the guest cannot write to it.
  func map(into machine: MachineHandle, slot: UInt32) throws(Errno) {
    try unsafe machine.setMemory(
      slot: slot, guestAddress: GuestMap.fourGiB - UInt64(size), size: UInt64(size),
      hostAddress: memory.address, flags: MachineHandle.readOnlyMemory)
  }

  /// The start of its code in real mode reads it below 1 MiB.
  func copy(into guest: GuestMemory) -> Bool {
    let count = GuestMap.firmwareCopySize
    let end = unsafe UnsafeRawBufferPointer(start: memory.address + (size - count), count: count)
    return unsafe guest.write(Array(end), at: GuestMap.firmwareCopy)
  }

  /// What it is told of the machine.
  static func configuration(_ memory: GuestMemory, processors: Int) -> FirmwareConfiguration {
    typealias Item = FirmwareConfiguration.Item
    let count = UInt16(truncatingIfNeeded: processors)
    var files = FirmwareTables.files(memory, processors: processors)
    // Texts of the BIOS and of boot loaders go to the serial port, and keys come from there.
    var port: [UInt8] = []
    port.append(little: UInt16(GuestMap.Port.serial))
    files.append(("etc/sercon-port", port))
    // It does not wait for somebody to ask for a menu.
    files.append(("etc/show-boot-menu", [0, 0]))
    return FirmwareConfiguration(
      memory, numbers: [Item.processorCount: count, Item.maximumProcessorCount: count],
      files: files.sorted { $0.name < $1.name })
  }
}
