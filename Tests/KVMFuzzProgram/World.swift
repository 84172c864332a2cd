// SPDX-License-Identifier: Apache-2.0
//
// What the workers share: machines, their vCPUs, and the memory of all guests.

import CHost
import Glibc
import Synchronization

/// A vCPU's descriptor and its shared pages.
final class FuzzedCPU: Sendable {
  let descriptor: Int32
  nonisolated(unsafe) let pages: UnsafeMutableRawPointer?
  static let size = 3 * 4096

  init(_ descriptor: Int32) {
    self.descriptor = descriptor
    let pages = mmap(nil, Self.size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
    self.pages = pages == MAP_FAILED ? nil : pages
  }

  deinit {
    if let pages { munmap(pages, Self.size) }
    close(descriptor)
  }
}

final class FuzzedMachine: Sendable {
  let descriptor: Int32
  /// The memory that it begins with.
  nonisolated(unsafe) let memory: UnsafeMutableRawPointer
  private let list = Mutex<[FuzzedCPU]>([])

  init(_ descriptor: Int32, _ memory: UnsafeMutableRawPointer) {
    self.descriptor = descriptor
    self.memory = memory
  }

  deinit { close(descriptor) }

  var cpus: [FuzzedCPU] { list.withLock { $0 } }
  func add(_ cpu: FuzzedCPU) { list.withLock { $0.append(cpu) } }
  func remove(_ number: Int) {
    let old = list.withLock { $0.isEmpty ? nil : $0.remove(at: number % $0.count) }
    _ = old
  }
}

final class World: Sendable {
  /// Memory of guests: windows of 2 MiB that machines begin with.
  static let windowSize = 2 << 20
  static let windows = 8
  static let memorySize = windowSize * windows
  static let maxMachines = 6

  nonisolated(unsafe) let memory: UnsafeMutableRawPointer
  /// Reserved addresses at which there is nothing.
  nonisolated(unsafe) let hole: UnsafeMutableRawPointer
  static let holeSize = 16 << 20
  /// Memory of guests that changes under them, and that this program does not touch.
  nonisolated(unsafe) let changing: UnsafeMutableRawPointer
  static let changingSize = 1 << 20
  nonisolated(unsafe) let readOnly: UnsafeMutableRawPointer
  let system: Int32
  private let list = Mutex<[FuzzedMachine]>([])
  private let nextDuplicate = Atomic<Int32>(1000)

  init() throws {
    memory = try Self.map(Self.memorySize, PROT_READ | PROT_WRITE, MAP_SHARED)
    hole = try Self.map(Self.holeSize, PROT_NONE, MAP_PRIVATE)
    changing = try Self.map(Self.changingSize, PROT_READ | PROT_WRITE, MAP_SHARED)
    readOnly = try Self.map(4096, PROT_READ, MAP_PRIVATE)
    system = open("/dev/kvm", O_RDWR | O_CLOEXEC)
    guard system >= 0 else { throw Failure(text: "open: errno \(errno)") }
  }

  static func map(
    _ size: Int, _ protection: Int32, _ flags: Int32
  ) throws -> UnsafeMutableRawPointer {
    let memory = mmap(nil, size, protection, flags | MAP_ANONYMOUS, -1, 0)
    guard let memory, memory != MAP_FAILED else { throw Failure(text: "mmap: errno \(errno)") }
    return memory
  }

  var machines: [FuzzedMachine] { list.withLock { $0 } }

  /// Adds a machine; where there are too many, another goes.
  func add(_ machine: FuzzedMachine, replacing number: Int) {
    let old = list.withLock { list -> FuzzedMachine? in
      let old = list.count < Self.maxMachines ? nil : list.remove(at: number % list.count)
      list.append(machine)
      return old
    }
    _ = old
  }

  func remove(_ number: Int) {
    let old = list.withLock { $0.count < 2 ? nil : $0.remove(at: number % $0.count) }
    _ = old
  }

  /// A descriptor number that nobody else gets.
  func duplicate(_ descriptor: Int32) -> Int32 {
    let wanted = nextDuplicate.add(1, ordering: .relaxed).newValue
    return fcntl(descriptor, F_DUPFD_CLOEXEC, 1000 + wanted % 2000)
  }
}

struct Failure: Error { var text: String }
