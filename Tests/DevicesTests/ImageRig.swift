// SPDX-License-Identifier: Apache-2.0
//
// What tests of disk images share. QEMU's tools are the oracle: they make images, check them,
// and compare contents.

import Devices
import Glibc
import GuestMemory
import HostTestSupport
import SystemPackage
import TestRandom
import Testing

/// A folder for images, and memory to read them into.
final class ImageRig {
  static let hasTools =
    access("/usr/bin/qemu-img", X_OK) == 0 && access("/usr/bin/qemu-io", X_OK) == 0
  static let missing: Comment = "qemu-utils is not installed"

  let folder: String
  let memory: GuestMemory
  static let memorySize = 16 << 20

  init() throws {
    var template = Array("/tmp/martlet-image-XXXXXX".utf8CString)
    folder = try #require(mkdtemp(&template).map { String(cString: $0) })
    let size = UInt64(Self.memorySize)
    memory = try GuestMemory(size: Self.memorySize, lowEnd: size, highStart: 1 << 32)
  }

  deinit { _ = try? Command.run(["-c", "rm -rf \(folder)"], path: "/bin/sh") }

  func path(_ name: String) -> String { folder + "/" + name }

  /// Runs a line of the shell in the folder.
  @discardableResult func shell(_ line: String, status: Int32 = 0) throws -> String {
    let result = try Command.run(["-c", "cd \(folder); \(line)"], path: "/bin/sh")
    try #require(
      result.status == status, "\(line): \(result.status) \(result.output)\(result.errors)")
    return result.output
  }

  /// What `qemu-img check` says: the image is whole. Of a copy, as this process may hold its lock.
  func check(_ name: String) throws {
    try shell(
      """
      cp --sparse=always \(name) copy && qemu-img check -q copy
      status=$?; rm copy; exit $status
      """)
  }

  /// Whether QEMU finds the same in an image as in a raw file.
  func compare(_ name: String, _ model: String) throws {
    try shell(
      """
      cp --sparse=always \(name) copy && qemu-img compare -q -f qcow2 -F raw copy \(model)
      status=$?; rm copy; exit $status
      """)
  }

  func open(_ name: String, _ change: (inout ImageOptions) -> Void = { _ in }) throws
    -> any BlockImage
  {
    var options = ImageOptions()
    change(&options)
    return try DiskImage.open(path: path(name), options)
  }

  /// Why an image cannot be opened.
  func failure(_ name: String, _ change: (inout ImageOptions) -> Void = { _ in }) -> ImageError? {
    do {
      _ = try open(name, change)
      return nil
    } catch {
      return error as? ImageError
    }
  }

  private func buffers(_ count: Int) -> GuestBuffers {
    var buffers = GuestBuffers(memory)
    // In uneven pieces.
    var done = 0
    for piece in [1, 511, 4096, count] where done < count {
      let size = min(piece, count - done)
      _ = buffers.append(UInt64(done), count: UInt32(size))
      done += size
    }
    return buffers
  }

  func read(_ image: any BlockImage, _ offset: Int, _ count: Int) throws -> [UInt8] {
    try image.read(at: UInt64(offset), into: buffers(count))
    return try #require(memory.read(0, count: count))
  }

  func write(_ image: any BlockImage, _ offset: Int, _ bytes: [UInt8]) throws {
    try #require(memory.write(bytes, at: 0))
    try image.write(at: UInt64(offset), from: buffers(bytes.count))
  }

  func contents(_ image: any BlockImage) throws -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < Int(image.size) {
      bytes += try read(image, bytes.count, min(Self.memorySize, Int(image.size) - bytes.count))
    }
    return bytes
  }

  func file(_ name: String) throws -> [UInt8] {
    let file = Glibc.open(path(name), O_RDONLY)
    defer { close(file) }
    var status = stat()
    try #require(fstat(file, &status) == 0)
    var bytes = [UInt8](repeating: 0, count: Int(status.st_size))
    try #require(Glibc.read(file, &bytes, bytes.count) == bytes.count)
    return bytes
  }

  func makeFile(_ name: String, _ bytes: [UInt8]) throws {
    let file = Glibc.open(path(name), O_WRONLY | O_CREAT | O_TRUNC, 0o644)
    defer { close(file) }
    try #require(Glibc.write(file, bytes, bytes.count) == bytes.count)
  }

  static func bytes(_ random: inout SplitMix, _ count: Int) -> [UInt8] {
    // Compressible, but no two sectors alike.
    var bytes: [UInt8] = []
    while bytes.count < count {
      bytes += (0..<32).map { _ in random.byte() } + [UInt8](repeating: random.byte(), count: 480)
    }
    return Array(bytes.prefix(count))
  }
}
