// SPDX-License-Identifier: Apache-2.0
//
// Whether a program can load a preload library. One that cannot would run anyway, silently on the
// host's `/dev/kvm`.

import CHost
import Glibc
import Host

/// The file that execvp(3) would execute.
struct ProgramFile {
  let path: String

  /// - Parameter name: a path, or a name to find in PATH. nil if there is no such program.
  init?(_ name: String) {
    if name.utf8.contains(UInt8(ascii: "/")) {
      path = name
      return
    }
    let places = unsafe getenv("PATH").map { unsafe String(cString: $0) } ?? "/bin:/usr/bin"
    let found = places.split(separator: ":", omittingEmptySubsequences: false)
      .map { ($0.isEmpty ? "." : String($0)) + "/" + name }
      .first { unsafe access($0, X_OK) == 0 }
    guard let found else { return nil }
    path = found
  }

  /// Why the program does not load the library; nil if it does, or if starting it will tell more.
  var refusal: String? {
    var path = path
    // For a script its interpreter counts; the kernel follows five of them.
    for _ in 0..<5 {
      guard let file = open(path) else { return nil }
      defer { close(file) }
      if let reason = Self.privilege(file) { return reason }
      guard let header = Self.read(file, at: 0, count: 256), header.count >= 4 else { return nil }
      if header.starts(with: [0x7F, 0x45, 0x4C, 0x46]) {
        return Self.format(file, header, path)
      }
      guard let interpreter = Self.interpreter(header) else { return nil }
      path = interpreter
    }
    return nil
  }

  private func open(_ path: String) -> Int32? {
    let file = unsafe Glibc.open(path, O_RDONLY | O_CLOEXEC)
    return file >= 0 ? file : nil
  }

  /// The loader ignores users' libraries for programs with more privileges than theirs.
  private static func privilege(_ file: Int32) -> String? {
    var status = stat()
    guard unsafe fstat(file, &status) == 0 else { return nil }
    let changesUser = status.st_mode & S_ISUID != 0 && status.st_uid != getuid()
    let changesGroup = status.st_mode & S_ISGID != 0 && status.st_gid != getgid()
    let hasCapabilities = getuid() != 0 && Self.has("security.capability", file)
    guard changesUser || changesGroup || hasCapabilities else { return nil }
    return "is set-user-ID or has capabilities, so the loader ignores the preload library"
  }

  private static func has(_ attribute: String, _ file: Int32) -> Bool {
    unsafe attribute.withCString {
      chost_syscall(Int(SYS_fgetxattr), Int(file), Int(bitPattern: $0), 0, 0, 0, 0) > 0
    }
  }

  // MARK: ELF (System V ABI, "Object Files")

  private static let wideClass: UInt8 = 2
  private static let x86Machine: UInt16 = 62
  private static let interpreterSegment: UInt32 = 3
  private static let headerSize: UInt64 = 56

  private static func format(_ file: Int32, _ header: [UInt8], _ path: String) -> String? {
    guard header.count >= 64, header[4] == wideClass,
      header.load(UInt16.self, at: 18) == x86Machine,
      let start = header.load(UInt64.self, at: 32), let count = header.load(UInt16.self, at: 56)
    else { return "is not a 64-bit x86 program, so it cannot load the preload library" }
    // The loader itself may be the program.
    let name = path.split(separator: "/").last ?? ""
    if name.hasPrefix("ld-linux") || name.hasPrefix("ld-2.") || name == "ld.so" { return nil }
    for index in 0..<UInt64(count) {
      let (place, overflow) = start.addingReportingOverflow(index &* headerSize)
      guard !overflow, place < UInt64(Int64.max),
        let kind = read(file, at: Int(place), count: 4)?.load(UInt32.self, at: 0)
      else { break }
      if kind == interpreterSegment { return nil }
    }
    return "is statically linked, so the preload library cannot intercept its calls"
  }

  private static func read(_ file: Int32, at offset: Int, count: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    let done = unsafe pread(file, &bytes, count, off_t(offset))
    return done >= 0 ? Array(bytes.prefix(done)) : nil
  }

  /// The path behind "#!".
  private static func interpreter(_ header: [UInt8]) -> String? {
    guard header.starts(with: [UInt8(ascii: "#"), UInt8(ascii: "!")]) else { return nil }
    let spaces = [UInt8(ascii: " "), UInt8(ascii: "\t")]
    let line = header.dropFirst(2).prefix { $0 != UInt8(ascii: "\n") }
    let path = line.drop { spaces.contains($0) }.prefix { !spaces.contains($0) }
    return path.isEmpty ? nil : String(decoding: path, as: UTF8.self)
  }
}
