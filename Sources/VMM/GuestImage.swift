// SPDX-License-Identifier: Apache-2.0
//
// What a machine boots: kernel and initial RAM disk, firmware, or the built-in guest. The files
// stay open, because a restart reads them again when no file can be opened any more.

import Glibc
import GuestMemory
import Host
import KVMClient
import LinuxBoot
import SystemPackage

/// The files of a guest, its firmware, or the built-in one.
final class GuestImage: Sendable {
  /// The limit of what fits below 4 GiB, where kernel and initrd must be.
  private static let limit = Int(GuestMap.fourGiB)

  /// A file named by the user.
  private struct Source: Sendable {
    let path: String
    let option: String
    /// Open for the life of the program.
    let descriptor: Int32
  }

  private let kernel: Source?
  private let initrd: Source?
  private let firmware: Firmware?
  private let configuration: Configuration

  init(_ configuration: Configuration) throws(RunError) {
    self.configuration = configuration
    firmware = try configuration.firmware.map { (choice) throws(RunError) in try Firmware(choice) }
    if let path = configuration.kernel {
      kernel = try Self.open(path, "--kernel")
    } else if firmware != nil {
      kernel = nil
    } else {
      guard configuration.initrd == nil else {
        throw RunError("--initrd needs a kernel; give one with --kernel")
      }
      guard BuiltInGuest.standard != nil else {
        throw RunError(
          "no kernel given, and this program has no built-in guest; give one with --kernel, "
            + "or use `make run`, which fetches a Linux")
      }
      kernel = nil
    }
    if let path = configuration.initrd {
      initrd = try Self.open(path, "--initrd")
    } else {
      initrd = nil
    }
  }

  private static func open(_ path: String, _ option: String) throws(RunError) -> Source {
    do throws(Errno) {
      let file = try OwnedFileDescriptor(opening: path, flags: O_RDONLY)
      return Source(path: path, option: option, descriptor: file.release())
    } catch {
      throw problem(error, path, option)
    }
  }

  private static func problem(_ error: Errno, _ path: String, _ option: String) -> RunError {
    switch error {
    case .noSuchFileOrDirectory: RunError("\(option) \(path): no such file; check the path")
    case .isDirectory: RunError("\(option) \(path): is a directory; give a file")
    case .fileTooLarge:
      RunError("\(option) \(path): larger than \(limit >> 20)M; check the path")
    case .permissionDenied:
      RunError("\(option) \(path): not readable; change its permissions")
    default: RunError("\(option) \(path): cannot be read (\(error)); check the file")
    }
  }

  private static func read(_ source: Source) throws(RunError) -> [UInt8] {
    do throws(Errno) {
      // A pipe is read only once and cannot seek.
      lseek(source.descriptor, 0, SEEK_SET)
      return try contentsOfFile(source.descriptor, limit: limit)
    } catch {
      throw problem(error, source.path, source.option)
    }
  }

  /// Maps firmware into the address space, if there is any.
  func map(into machine: MachineHandle, slot: UInt32) throws(Errno) {
    try firmware?.map(into: machine, slot: slot)
  }

  /// The firmware's flash chip, if it has one.
  func makeFlash(_ machine: MachineHandle, slot: UInt32) throws(Errno) -> PlacedFlash? {
    try firmware?.makeFlash(machine, slot: slot)
  }

  /// Loads the guest into zeroed memory.
  func load(into memory: GuestMemory) throws(RunError) -> EntryPoint {
    if let firmware {
      guard firmware.copy(into: memory) else {
        throw RunError("firmware does not fit into memory; give more with --memory")
      }
      return .reset
    }
    guard let kernel else { return try loadBuiltIn(into: memory) }
    let file = try Self.read(kernel)
    let disk = try initrd.map { (source) throws(RunError) in
      BootLoader.InitialRAMDisk(bytes: try Self.read(source), name: source.path)
    }
    do throws(LoadError) {
      let loader = BootLoader(
        memory: memory, processors: configuration.processors,
        decompresses: configuration.decompresses)
      return try loader.load(
        kernel: file, kernelName: kernel.path, initrd: disk,
        commandLine: configuration.commandLine)
    } catch {
      throw RunError(error.description)
    }
  }

  private func loadBuiltIn(into memory: GuestMemory) throws(RunError) -> EntryPoint {
    guard let guest = BuiltInGuest.standard, memory.write(guest.image, at: guest.loadAddress) else {
      throw RunError("the built-in guest does not fit into memory; give more with --memory")
    }
    return .realMode(segment: guest.entrySegment, offset: guest.entryOffset)
  }
}
