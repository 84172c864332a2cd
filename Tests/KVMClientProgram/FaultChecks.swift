// SPDX-License-Identifier: Apache-2.0
//
// The guest accesses memory of a slot where the client has nothing, or has less rights.

import CHost
import Glibc

private let page = 4096
private let size = 1 << 16

/// How a page goes, and how it comes back.
private struct Damage: Sendable {
  var name: String
  /// A read faults as a write does.
  var isUnreadable = true
  var make: @Sendable (_ place: UnsafeMutableRawPointer, _ file: Int32) -> Int32
  var mend: @Sendable (_ place: UnsafeMutableRawPointer, _ file: Int32) -> Int32
}

private let damages: [Damage] = [
  Damage(
    name: "hole", make: { place, _ in munmap(place, page) },
    mend: { place, file in
      let offset = Int(bitPattern: place) & (size - 1)
      let flags = MAP_SHARED | MAP_FIXED
      return mmap(place, page, PROT_READ | PROT_WRITE, flags, file, offset) == place ? 0 : -1
    }),
  Damage(
    name: "PROT_NONE", make: { place, _ in mprotect(place, page, PROT_NONE) },
    mend: { place, _ in mprotect(place, page, PROT_READ | PROT_WRITE) }),
  Damage(
    name: "read-only", isUnreadable: false, make: { place, _ in mprotect(place, page, PROT_READ) },
    mend: { place, _ in mprotect(place, page, PROT_READ | PROT_WRITE) }),
  Damage(
    name: "file's end", make: { _, file in ftruncate(file, 2 * page) },
    mend: { _, file in ftruncate(file, size) }),
]

/// A guest that accesses its page at 0x2000 and then writes 1 to the port.
private let accesses: [(name: String, code: [UInt8])] = [
  // mov ah, [0x2000]
  ("read", [0x8A, 0x26, 0x00, 0x20] + Code.out(1)),
  // mov [0x2000], ah
  ("write", [0x88, 0x26, 0x00, 0x20] + Code.out(1)),
  // xchg [0x2000], ah
  ("exchange", [0x86, 0x26, 0x00, 0x20] + Code.out(1)),
  // mov di, 0x2000; mov cx, 1; rep stosb; the string instruction is where it faults
  ("string", [0xFC, 0xF3, 0xAA] + Code.out(1)),
  // jmp 0x2000
  ("fetch", [0xE9, 0xFD, 0x1F]),
]

/// Memory of a file whose address is a multiple of its size.
private func memory(_ file: Int32) -> UnsafeMutableRawPointer {
  let room = mmap(nil, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
  let place = UnsafeMutableRawPointer(bitPattern: (UInt(bitPattern: room) + 0xFFFF) & ~0xFFFF)!
  mmap(place, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0)
  return place
}

func faultChecks() throws {
  for damage in damages {
    for access in accesses {
      let isRead = access.name == "read" || access.name == "fetch"
      for accessesBefore in [false, true] {
        let file = memfd_create("memory", 0)
        ftruncate(file, size)
        let client = try Client(access.code, size: size, memory: memory(file))
        func start() throws {
          try client.reset()
          var registers = client.registers
          registers.rdi = 0x2000
          registers.rcx = 1
          _ = ioctl(client.cpu, UInt(CKVM_SET_REGS), &registers)
          let code = Code.out(1)
          if access.name == "fetch" {
            pwrite(file, code, code.count, 2 * page)
          }
        }
        let text = "\(damage.name), \(access.name), accessed before: \(accessesBefore)"
        try start()
        if accessesBefore {
          try expect(try client.output() == 1)
          try start()
        }
        let place = client.memory + 2 * page
        try expect(damage.make(place, file) == 0)
        if damage.isUnreadable || !isRead {
          client.run.pointee.exit_reason = 77
          for _ in 0..<2 { try expect(client.enter() == -EFAULT, text) }
          try expect(client.run.pointee.exit_reason == 77, "exit reason, \(text)")
          let rip = access.name == "fetch" ? 0x2000 : access.name == "string" ? 1 : 0
          try expect(client.registers.rip == UInt64(rip), "RIP \(client.registers.rip), \(text)")
        }
        try expect(damage.mend(place, file) == 0)
        if access.name == "fetch" {
          let code = Code.out(1)
          pwrite(file, code, code.count, 2 * page)
        }
        try expect(try client.output() == 1, text)
        munmap(client.memory, size)
        close(file)
      }
    }
  }
}
