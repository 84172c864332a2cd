// SPDX-License-Identifier: Apache-2.0
//
// A client that writes to its guest's memory, and changes what is mapped there, without a word.
// The guest must execute the new bytes, by write protection, and by comparison where the kernel
// refuses userfaultfd.

import CHost
import ClientMemory
import Glibc
import KVM
import SystemPackage
import Testing

@Suite(.serialized) struct ClientWriteTests {
  private static let code = 0x1000
  /// The client of this process, whatever hypervisors it makes.
  private static let memory = ClientMemory(.unannounced)
  /// mov al, 1; out 0xE9, al; jmp to the start
  private static let loop: [UInt8] = [0xB0, 1, 0xE6, 0xE9, 0xEB, 0xFA]

  private func runningClient(translates: Bool = false) throws -> Client {
    let client = try Client(translates: translates, clientMemory: Self.memory)
    client.memory.advanced(by: Self.code)
      .copyMemory(from: Self.loop, byteCount: Self.loop.count)
    for _ in 0..<3 { #expect(try output(client) == 1) }
    return client
  }

  private func output(_ client: Client) throws -> UInt8? {
    guard try client.run() == KVM_EXIT_IO else { return nil }
    let offset = Int(client.shared.pointee.io.data_offset)
    return client.pages.load(fromByteOffset: offset, as: UInt8.self)
  }

  @Test func storesAreSeen() throws {
    let client = try runningClient()
    for value in UInt8(2)..<50 {
      client.memory.storeBytes(of: value, toByteOffset: Self.code + 1, as: UInt8.self)
      #expect(try output(client) == value)
    }
  }

  @Test func systemCallsAreSeen() throws {
    let client = try runningClient()
    var ends: [Int32] = [0, 0]
    #expect(pipe(&ends) == 0)
    defer { for end in ends { close(end) } }
    for value in UInt8(2)..<50 {
      var byte = value
      #expect(write(ends[1], &byte, 1) == 1)
      #expect(read(ends[0], client.memory + Self.code + 1, 1) == 1)
      #expect(try output(client) == value)
    }
  }

  @Test func missingMemoryIsAnError() throws {
    let client = try runningClient()
    let place = client.memory + 0x6000
    let range = UInt(bitPattern: place)..<(UInt(bitPattern: place) + 4096)
    // mov al, [0x6000]; out 0xE9, al
    let access: [UInt8] = [0xA0, 0x00, 0x60, 0xE6, 0xE9]
    (client.memory + Self.code).copyMemory(from: access, byteCount: access.count)
    place.storeBytes(of: 7, as: UInt8.self)
    try client.setRealMode()
    #expect(try output(client) == 7)
    func protect(_ rights: Int32) {
      let result = client.hypervisor.changeMappings(range) { mprotect(place, 4096, rights) }
      #expect(result == 0)
    }
    protect(PROT_NONE)
    defer { protect(PROT_READ | PROT_WRITE) }
    try client.setRealMode()
    #expect(client.error { () throws(Errno) in _ = try client.run() } == .badAddress)
    protect(PROT_READ)
    #expect(try output(client) == 7)
  }

  /// Lengths that no address space has: the kernel refuses them, and nobody counts their pages.
  @Test(.timeLimit(.minutes(1)), arguments: [UInt(1) << 63, 1 << 62])
  func lengthsBeyondAllMemory(length: UInt) throws {
    let client = try runningClient()
    let start = UInt(bitPattern: client.memory)
    let range = start..<(start + length)
    let result = client.hypervisor.changeMappings(range) {
      munmap(client.memory, Int(bitPattern: length))
    }
    #expect(result == -1 && errno == EINVAL)
    client.hypervisor.changeContents(range) {}
    client.hypervisor.yieldProtection(of: range)
    #expect(try output(client) == 1)
  }
}
