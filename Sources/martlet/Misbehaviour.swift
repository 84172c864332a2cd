// SPDX-License-Identifier: Apache-2.0
//
// Forbidden actions of the program, for tests of the sandbox and of crash reports.

import CHost
import Glibc
import Host
import VMM

enum Misbehaviour: String, CaseIterable {
  case fault, trap, abort, translated
  case open, create, exec, fork, socket, ptrace, kill, map, inject, unlink

  /// `NAME` in the event loop's thread, `vcpu:NAME` in a vCPU's at its first exit.
  static func plan(_ text: String, _ hooks: inout RunHooks) -> Bool {
    let parts = text.split(separator: ":")
    guard let name = parts.last, let behaviour = Self(rawValue: String(name)) else { return false }
    if parts.count > 1 {
      unsafe hooks.firstExit = { unsafe behaviour.run($0) }
    } else {
      hooks.confined = { unsafe behaviour.run(nil) }
    }
    return true
  }

  private func run(_ memory: UnsafeMutableRawBufferPointer?) {
    switch self {
    case .fault:
      unsafe UnsafeMutablePointer<UInt8>(bitPattern: 0x1234)?.pointee = 1
    case .trap: preconditionFailure("on purpose")
    case .abort: Glibc.abort()
    case .translated:
      // Guest memory from 8 MiB on, which translated code is about to read.
      if let start = unsafe memory?.baseAddress {
        unsafe mprotect(start + (8 << 20), 1 << 20, PROT_NONE)
      }
    default: tell(call())
    }
  }

  /// The system call's result; 0 or more on success.
  private func call() -> Int {
    let name = "/etc/passwd"
    return unsafe name.withCString { path in
      let path = Int(bitPattern: path)
      return switch self {
      case .open: system(SYS_openat, Int(AT_FDCWD), path, Int(O_RDONLY))
      case .create: system(SYS_openat, Int(AT_FDCWD), path, Int(O_WRONLY | O_CREAT))
      case .exec: system(SYS_execve, path, 0, 0)
      case .fork: system(SYS_clone, Int(SIGCHLD), 0, 0)
      case .socket: system(SYS_socket, 2, 1, 0)
      case .ptrace: system(SYS_ptrace, 16, -1, 0)
      case .kill: system(SYS_kill, Int(getpid()), 0, 0)
      case .map: system(SYS_mprotect, 0x1000, 4096, Int(PROT_WRITE | PROT_EXEC))
      case .inject: system(SYS_ioctl, 0, 0x5412, path)
      default: system(SYS_unlink, path, 0, 0)
      }
    }
  }

  private func system(_ number: Int32, _ a: Int, _ b: Int, _ c: Int) -> Int {
    let result = chost_syscall(Int(number), a, b, c, 0, 0, 0)
    return result < 0 ? -Int(errno) : result
  }

  private func tell(_ result: Int) {
    Martlet.say("\(rawValue): " + (result < 0 ? "error \(-result)" : "allowed"))
  }
}
