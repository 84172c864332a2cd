// SPDX-License-Identifier: Apache-2.0
//
// The argument of --firmware, and the files that it names.
//
//     uefi,vars=machine.vars

import Devices
import Glibc
import Host
import LinuxBoot
import SystemPackage

/// The firmware that boots the disks.
package enum FirmwareChoice: Sendable, Hashable {
  /// BIOS or UEFI, by the first disk's boot loaders.
  case automatic
  /// SeaBIOS from Debian.
  case bios
  /// OVMF from Debian.
  ///
  /// - Parameter variables: the file that keeps its variables; nil: they are not kept.
  case uefi(variables: String?)
  /// A file with a BIOS.
  case file(String)

  private static let biosPath = "/usr/share/seabios/bios-256k.bin"
  private static let codePath = "/usr/share/OVMF/OVMF_CODE_4M.fd"
  private static let variablesPath = "/usr/share/OVMF/OVMF_VARS_4M.fd"

  init(_ text: String) throws(RunError) {
    let parts = text.replacing(",,", with: "\0").split(
      separator: ",", maxSplits: 1, omittingEmptySubsequences: false
    ).map { $0.replacing("\0", with: ",") }
    switch (String(parts.first ?? ""), parts.count > 1 ? String(parts[1]) : nil) {
    case ("bios", nil): self = .bios
    case ("uefi", nil): self = .uefi(variables: nil)
    case ("uefi", let option?):
      guard option.hasPrefix("vars="), option.count > 5 else {
        throw RunError("--firmware \(text): unknown option \(option); give vars=FILE")
      }
      self = .uefi(variables: String(option.dropFirst(5)))
    case ("", nil): throw RunError("--firmware: no file; give bios, uefi or a file")
    default: self = .file(text)
    }
  }

  var isUEFI: Bool { if case .uefi = self { true } else { false } }

  /// Resolves the automatic choice for a first disk.
  func resolved(for disk: (any BlockImage)?) -> FirmwareChoice {
    guard self == .automatic else { return self }
    guard let disk, let loaders = try? BootLoaders(disk) else { return .bios }
    return loaders.hasEFI && !loaders.hasBIOS ? .uefi(variables: nil) : .bios
  }

  // MARK: Files

  /// Reads a BIOS.
  func loadBIOS() throws(RunError) -> [UInt8] {
    let (path, name) =
      switch self {
      case .file(let path): (path, path)
      default: (Self.biosPath, "bios")
      }
    let bytes = try Self.read(path, "--firmware \(name)", package: "seabios", isOurs: self == .bios)
    let unit = 64 << 10
    guard bytes.count >= 2 * unit, bytes.count % unit == 0 else {
      throw RunError(
        "--firmware \(name): \(bytes.count) bytes; a BIOS has a multiple of 64K, at least 128K")
    }
    return bytes
  }

  /// Reads UEFI's code and the initial contents of its variables.
  static func loadUEFI() throws(RunError) -> (code: [UInt8], variables: [UInt8]) {
    let name = "--firmware uefi"
    let code = try read(codePath, name, package: "ovmf", isOurs: true)
    let variables = try read(variablesPath, name, package: "ovmf", isOurs: true)
    for (path, bytes) in [(codePath, code), (variablesPath, variables)] {
      guard !bytes.isEmpty, bytes.count % FlashMemory.blockSize == 0,
        code.count + variables.count <= GuestMap.firmwareLimit
      else {
        throw RunError(
          "\(name): \(path) has \(bytes.count) bytes, which no flash chip has; install ovmf again")
      }
    }
    return (code, variables)
  }

  private static func read(
    _ path: String, _ name: String, package: String, isOurs: Bool
  ) throws(RunError) -> [UInt8] {
    do throws(Errno) {
      return try contentsOfFile(path, limit: GuestMap.firmwareLimit)
    } catch {
      switch error {
      case .noSuchFileOrDirectory:
        throw RunError(
          isOurs
            ? "\(name): \(path) is missing; apt-get install \(package)"
            : "\(name): no such file; check the path")
      default: throw RunError("\(name): cannot be read (\(error)); check the file")
      }
    }
  }

  /// Opens the file of variables; creates a missing one from the initial contents.
  static func openVariables(_ path: String, initial: [UInt8]) throws(RunError) -> FlashFile {
    let name = "--firmware uefi,vars=\(path)"
    if unsafe access(path, F_OK) != 0 { try create(path, initial, name) }
    let file: FlashFile
    do throws(ImageError) {
      file = try FlashFile(path: path)
    } catch {
      switch error {
      case .isInUse: throw RunError("\(name): in use by another machine; give each its own")
      case .cannotOpen(let reason):
        throw RunError("\(name): cannot be opened (\(reason)); check the file")
      default: throw RunError("\(name): not a file; give one")
      }
    }
    guard file.size == UInt64(initial.count) else {
      throw RunError(
        "\(name): \(file.size) bytes, and not the \(initial.count) of this firmware's variables; "
          + "give another file, which is made if it is not there")
    }
    return file
  }

  /// Creates a complete file or none.
  private static func create(_ path: String, _ bytes: [UInt8], _ name: String) throws(RunError) {
    let draft = path + ".new"
    do throws(Errno) {
      let file = try OwnedFileDescriptor(opening: draft, flags: O_WRONLY | O_CREAT | O_TRUNC)
      try writeAll(file.rawValue, bytes.bytes)
      guard unsafe rename(draft, path) == 0 else { throw Errno(rawValue: errno) }
    } catch {
      unsafe unlink(draft)
      throw RunError("\(name): cannot be made (\(error)); check the folder")
    }
  }
}
