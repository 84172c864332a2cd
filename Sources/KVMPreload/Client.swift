// SPDX-License-Identifier: Apache-2.0
//
// Where exported functions find the client's memory: they are C functions, which have only their
// arguments. This is the only global reference in the process.

import ClientMemory
import Synchronization

enum Client {
  /// The address of the object, which is never freed: any client function may read it.
  private static let address = Atomic<UInt>(0)
  private static let making = Mutex(())

  /// The client's memory, once it was needed. Takes no lock and allocates nothing.
  static var memory: ClientMemory? {
    unsafe UnsafeRawPointer(bitPattern: address.load(ordering: .acquiring)).map {
      unsafe Unmanaged<ClientMemory>.fromOpaque($0).takeUnretainedValue()
    }
  }

  /// The same, created if necessary.
  static func makeMemory() -> ClientMemory {
    if let memory { return memory }
    return making.withLock { _ in memory ?? install(ClientMemory(Settings.clientWrites)) }
  }

  /// In a child of fork, before it creates its own hypervisor. The client's userfaultfds were
  /// reported to the parent's object.
  static func renewMemory() {
    making.withLock { _ in
      guard let old = memory else { return }
      _ = install(ClientMemory(Settings.clientWrites, userFaults: old.userFaults))
    }
  }

  private static func install(_ memory: ClientMemory) -> ClientMemory {
    let pointer = unsafe Unmanaged.passRetained(memory).toOpaque()
    address.store(UInt(bitPattern: pointer), ordering: .releasing)
    return memory
  }
}
