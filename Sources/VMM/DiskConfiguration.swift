// SPDX-License-Identifier: Apache-2.0
//
// The argument of --disk: a file or a block device, and options after commas.
//
//     debian.qcow2,overlay=temporary

import Devices
import Glibc
import SystemPackage

/// A disk of a machine.
package struct DiskConfiguration: Sendable, Hashable {
  package var path: String
  package var options = ImageOptions()
  /// When the host has no room for what the guest writes, the guest is paused; otherwise it gets an
  /// error.
  package var pausesWhenFull = true

  package var isReadOnly: Bool { options.isReadOnly }

  /// As many as there are slots on the bus, except those of the bridge and of other kinds of
  /// devices.
  package static let maximumCount = PCIRoot.slotCount - 7

  /// Parses the option's text. A doubled comma is a comma in the file's name.
  package init(_ text: String) throws(RunError) {
    // File names never contain NUL.
    let parts = text.replacing(",,", with: "\0").split(
      separator: ",", omittingEmptySubsequences: false
    )
    .map { $0.replacing("\0", with: ",") }
    path = String(parts[0])
    guard !path.isEmpty else { throw RunError("--disk \(text): no file; give one") }
    for option in parts.dropFirst() { try set(String(option), text) }
    // A snapshot is never written.
    if options.snapshot != nil, options.overlayFolder == nil { options.isReadOnly = true }
  }

  private mutating func set(_ option: String, _ text: String) throws(RunError) {
    let parts = option.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    let value = parts.count > 1 ? String(parts[1]) : nil
    switch (String(parts[0]), value) {
    case ("readonly", nil), ("readonly", "on"): options.isReadOnly = true
    case ("readonly", "off"): options.isReadOnly = false
    case ("format", let name?):
      guard let format = ImageFormat(rawValue: name) else {
        throw RunError(
          "--disk \(text): unknown format \(name); give raw or qcow2, or convert the image with "
            + "qemu-img convert")
      }
      options.format = format
    case ("overlay", "temporary"): options.overlayFolder = Self.temporaryFolder
    case ("on-full", "pause"): pausesWhenFull = true
    case ("on-full", "error"): pausesWhenFull = false
    case ("snapshot", let name?) where !name.isEmpty: options.snapshot = name
    default:
      throw RunError(
        "--disk \(text): unknown option \(option); give format=raw|qcow2, readonly, "
          + "overlay=temporary, snapshot=NAME or on-full=pause|error, and two commas for one in the file's name"
      )
    }
  }

  /// A folder for large files that need not survive a restart of the host.
  private static var temporaryFolder: String {
    unsafe getenv("TMPDIR").map { unsafe String(cString: $0) } ?? "/var/tmp"
  }

  /// Names the file that the guest's writes go to.
  var written: String { options.overlayFolder.map { "the overlay of \(path) in \($0)" } ?? path }

  /// Opens and locks the image and its backing files.
  ///
  /// - Parameter report: called with a line if the image turns out to be damaged.
  func open(report: @escaping @Sendable (String) -> Void) throws(RunError) -> any BlockImage {
    do throws(ImageError) {
      return try DiskImage.open(path: path, options, report: report)
    } catch {
      throw RunError("--disk \(path): \(problem(error))")
    }
  }

  private func problem(_ error: ImageError, isBacking: Bool = false) -> String {
    switch error {
    case .cannotOpen(.noSuchFileOrDirectory): "no such file; check the path"
    case .cannotOpen(.permissionDenied), .cannotOpen(.readOnlyFileSystem):
      isReadOnly || isBacking
        ? "not readable; change its permissions"
        : "not writable; change its permissions or give readonly"
    case .cannotOpen(.isDirectory), .notAFile: "not a file or block device; give a disk image"
    case .cannotOpen(let reason): "cannot be opened (\(reason)); check the file"
    case .isInUse:
      isBacking
        ? "in use by a program that writes to it; stop it"
        : "in use by another program; stop it, or give readonly to both"
    case .isEmpty: "empty; give it the size of the disk (truncate -s 4G)"
    case .badSize(let size):
      "\(size) bytes, not a multiple of \(BlockSector.size); lengthen it (truncate -s)"
    case .unusable(let reason): reason
    case .backing(let path, let error):
      "backing file \(path): \(problem(error, isBacking: true))"
    }
  }
}
