// SPDX-License-Identifier: Apache-2.0
//
// System call filters (seccomp(2)), built from the table by libseccomp, which is loaded on demand.
// A thread applies its role's filter with one system call, so only the start needs the library.
//
// A forbidden call raises SIGSYS: the crash report names it, and the process ends. Killing at once
// would be no safer (a thread that could exploit the handler's run is already running injected
// code) and would not report what happened.

import CHost
import Glibc
import Host
import SystemPackage

/// The BPF programs of all roles.
/// Sendable: the programs are never freed nor written after they are made.
@safe package struct SystemCallFilter: @unchecked Sendable {
  /// By role; never freed.
  private let programs: [sock_fprog]

  package static let library = "libseccomp.so.2"

  private static let allow: UInt32 = 0x7FFF_0000
  private static let trap: UInt32 = 0x0003_0000
  private static func error(_ number: Int32) -> UInt32 { 0x0005_0000 | UInt32(number) }

  /// The functions used of libseccomp.
  @safe private struct Functions {
    let initialize: @convention(c) (UInt32) -> UnsafeMutableRawPointer?
    let release: @convention(c) (UnsafeMutableRawPointer) -> Void
    let resolve: @convention(c) (UnsafePointer<CChar>) -> Int32
    let name: @convention(c) (UInt32, Int32) -> UnsafeMutablePointer<CChar>?
    let attribute: @convention(c) (UnsafeMutableRawPointer, Int32, UInt32) -> Int32
    let add:
      @convention(c) (
        UnsafeMutableRawPointer, UInt32, Int32, UInt32, UnsafePointer<chost_seccomp_check>?
      ) -> Int32
    let export: @convention(c) (UnsafeMutableRawPointer, Int32) -> Int32

    init?(_ library: borrowing SharedLibrary) {
      guard
        let initialize = unsafe library.function("seccomp_init", as: type(of: initialize)),
        let release = unsafe library.function("seccomp_release", as: type(of: release)),
        let resolve = unsafe library.function(
          "seccomp_syscall_resolve_name", as: type(of: resolve)),
        let name = unsafe library.function("seccomp_syscall_resolve_num_arch", as: type(of: name)),
        let attribute = unsafe library.function("seccomp_attr_set", as: type(of: attribute)),
        let add = unsafe library.function("seccomp_rule_add_array", as: type(of: add)),
        let export = unsafe library.function("seccomp_export_bpf", as: type(of: export))
      else { return nil }
      unsafe (self.initialize, self.release, self.resolve, self.name) = unsafe (
        initialize, release, resolve, name
      )
      unsafe (self.attribute, self.add, self.export) = unsafe (attribute, add, export)
    }
  }

  /// Builds the programs.
  ///
  /// - Returns: nil if the library is missing.
  package init?(_ settings: SandboxSettings) throws(Errno) {
    guard let library = SharedLibrary(Self.library), let functions = Functions(library) else {
      return nil
    }
    let rules = SystemCallTable.rules(settings)
    unsafe programs = try unsafe ThreadRole.allCases.map { (role) throws(Errno) in
      try unsafe Self.program(rules.filter { $0.roles.contains(role) }, functions)
    }
    Self.nameCalls(functions)
  }

  /// Whether the library is installed.
  package static var isAvailable: Bool { SharedLibrary(library) != nil }

  private static func program(
    _ rules: [SystemCallRule], _ functions: Functions
  ) throws(Errno) -> sock_fprog {
    guard let context = unsafe functions.initialize(trap) else { throw .noMemory }
    defer { unsafe functions.release(context) }
    // A binary tree instead of a list (SCMP_FLTATR_CTL_OPTIMIZE), if the library supports it.
    _ = unsafe functions.attribute(context, 8, 2)
    for rule in rules {
      let action = rule.refusal.map(error) ?? allow
      for name in rule.calls.split(separator: " ") {
        let number = unsafe functions.resolve(String(name))
        guard number >= 0 else { continue }
        for checks in rule.alternatives {
          let compiled = checks.map(\.compiled)
          let result = unsafe functions.add(
            context, action, number, UInt32(compiled.count), compiled)
          guard result == 0 else { throw Errno(rawValue: -result) }
        }
      }
    }
    let file = try systemCall { () -> Int32 in unsafe memfd_create("filter", UInt32(MFD_CLOEXEC)) }
    let owner = OwnedFileDescriptor(owning: file)
    let result = unsafe functions.export(context, file)
    guard result == 0 else { throw Errno(rawValue: -result) }
    let size = try owner.size()
    lseek(file, 0, SEEK_SET)
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: max(size, 8), alignment: 8)
    var room = unsafe bytes.mutableBytes
    guard try owner.read(into: &room) == size else { throw .ioError }
    let count = size / MemoryLayout<sock_filter>.size
    return unsafe sock_fprog(
      len: UInt16(clamping: count),
      filter: bytes.baseAddress?.bindMemory(to: sock_filter.self, capacity: count))
  }

  /// Permanently applies a role's filter to the calling thread and those that it starts. Call it
  /// after `no_new_privs` is set.
  package func confine(_ role: ThreadRole) throws(Errno) {
    var program = unsafe programs[role.rawValue]
    _ = try systemCall { () -> Int in
      unsafe chost_syscall(
        Int(SYS_seccomp), Int(SECCOMP_SET_MODE_FILTER), 0,
        withUnsafeMutablePointer(to: &program) { Int(bitPattern: $0) }, 0, 0, 0)
    }
  }

  // MARK: Names

  private static let nameCount = 512
  /// Names by number, for signal handlers.
  nonisolated(unsafe) private static let names: UnsafeMutablePointer<UnsafePointer<CChar>?> = {
    let names = UnsafeMutablePointer<UnsafePointer<CChar>?>.allocate(capacity: nameCount)
    unsafe names.initialize(repeating: nil, count: nameCount)
    return unsafe names
  }()

  private static func nameCalls(_ functions: Functions) {
    let native: UInt32 = 0xC000_003E  // AUDIT_ARCH_X86_64
    for number in 0..<nameCount {
      unsafe names[number] = unsafe functions.name(native, Int32(number)).map {
        unsafe UnsafePointer($0)
      }
    }
  }

  /// A system call's name; nil if it is unknown. Safe in signal handlers.
  static func name(_ number: Int32) -> UnsafePointer<CChar>? {
    unsafe number >= 0 && Int(number) < nameCount ? names[Int(number)] : nil
  }
}
