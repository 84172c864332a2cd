// SPDX-License-Identifier: Apache-2.0
//
// What --disk says: a file or a block device, and options behind commas.
//
//     debian.img,readonly=on

import Devices
import SystemPackage

/// A disk of a machine.
package struct DiskConfiguration: Sendable, Hashable {
  package var path: String
  package var isReadOnly = false

  /// As many as there are slots on the bus, beside those of the bridge and of devices of other
  /// kinds.
  package static let maximumCount = PCIRoot.slotCount - 4

  /// Reads the text of an option. Two commas are one in the file's name.
  package init(_ text: String) throws(RunError) {
    // No file's name has a NUL.
    let parts = text.replacing(",,", with: "\0").split(
      separator: ",", omittingEmptySubsequences: false
    )
    .map { $0.replacing("\0", with: ",") }
    path = String(parts[0])
    guard !path.isEmpty else { throw RunError("--disk \(text): no file; give one") }
    for option in parts.dropFirst() { try set(String(option), text) }
  }

  private mutating func set(_ option: String, _ text: String) throws(RunError) {
    switch option {
    case "readonly=on": isReadOnly = true
    case "readonly=off": isReadOnly = false
    default:
      throw RunError(
        "--disk \(text): unknown option \(option); give readonly=on or readonly=off, and two commas "
          + "for one in the file's name")
    }
  }

  /// Opens and locks the file.
  func open() throws(RunError) -> RawImage {
    do throws(ImageError) {
      return try RawImage(path: path, isReadOnly: isReadOnly)
    } catch {
      throw RunError("--disk \(path): \(problem(error))")
    }
  }

  private func problem(_ error: ImageError) -> String {
    switch error {
    case .cannotOpen(.noSuchFileOrDirectory): "no such file; check the path"
    case .cannotOpen(.permissionDenied), .cannotOpen(.readOnlyFileSystem):
      isReadOnly
        ? "not readable; change its permissions"
        : "not writable; change its permissions or give readonly=on"
    case .cannotOpen(.isDirectory), .notAFile: "not a file or block device; give a disk image"
    case .cannotOpen(let reason): "cannot be opened (\(reason)); check the file"
    case .isInUse: "in use by another program; stop it, or give readonly=on to both"
    case .isEmpty: "empty; give it the size of the disk (truncate -s 4G)"
    case .badSize(let size):
      "\(size) bytes, not a multiple of \(BlockSector.size); lengthen it (truncate -s)"
    }
  }
}
