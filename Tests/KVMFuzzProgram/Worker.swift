// SPDX-License-Identifier: Apache-2.0
//
// A thread that calls. All that it chooses comes from its own random numbers, so a seed repeats a
// thread's calls as far as the answers are the same.

import CHost
import Glibc
import Synchronization
import TestRandom

final class Worker: @unchecked Sendable {
  /// Bytes for structures, before an unmapped page.
  static let structureSize = 64 << 10

  let world: World
  let number: Int
  let seed: UInt64
  private var random: SplitMix
  private let structures: UnsafeMutableRawPointer
  private let scratch: UnsafeMutableRawPointer
  private let events: [Int32]
  /// The descriptor whose call is being prepared.
  private var target: Int32 = -1

  /// Seen by the thread that watches.
  let calls = Atomic<Int>(0)
  /// When KVM_RUN began, in nanoseconds; 0 outside.
  let runningSince = Atomic<UInt64>(0)
  private(set) var current = ""
  private var recent: [String] = []
  /// Answers by call.
  private(set) var answers: [String: [Int32: Int]] = [:]
  var thread = pthread_t()

  init(_ world: World, number: Int, seed: UInt64) throws {
    self.world = world
    self.number = number
    self.seed = seed
    random = SplitMix(seed: seed &+ UInt64(number) &* 0x1_0000_0001)
    structures = try World.map(Self.structureSize + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE)
    mprotect(structures + Self.structureSize, 4096, PROT_NONE)
    scratch = try World.map(Self.structureSize + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE)
    mprotect(scratch + Self.structureSize, 4096, PROT_NONE)
    events = (0..<4).map { _ in eventfd(0, Int32(EFD_NONBLOCK)) }
  }

  // MARK: Choices

  func word() -> UInt64 {
    let value = random.next()
    switch random.next() % 8 {
    case 0: return value & 0xFF
    case 1: return 1 &<< (value & 63)
    case 2: return .max &- (value & 15)
    case 3: return value & 0xFFFF_F000
    case 4: return value & 0xFFFF_FFFF
    default: return value
    }
  }

  func below(_ limit: Int) -> Int { Int(random.next() >> 32) % limit }
  func chance(_ oneIn: Int) -> Bool { below(oneIn) == 0 }
  func of<T>(_ all: [T]) -> T { all[below(all.count)] }
  var rarely: UInt32 { chance(8) ? UInt32(truncatingIfNeeded: word()) : 0 }
  /// In either address space.
  var slot: UInt32 { UInt32(below(8)) | (chance(4) ? 1 << 16 : 0) }
  var gsi: UInt32 { UInt32(below(chance(8) ? 200 : 24)) }

  func fill(_ place: UnsafeMutableRawPointer, _ count: Int) {
    for index in 0..<count {
      place.storeBytes(
        of: UInt8(truncatingIfNeeded: random.next()), toByteOffset: index,
        as: UInt8.self)
    }
    if chance(2) { memset(place, 0, count) }
    if chance(2) { change(place, count) }
  }

  func change<T>(_ value: inout T) {
    withUnsafeMutableBytes(of: &value) { change($0.baseAddress!, $0.count) }
  }

  /// Changes some fields.
  private func change(_ place: UnsafeMutableRawPointer, _ count: Int) {
    for _ in 0..<below(4) {
      let size = min(count, of([1, 2, 4, 8]))
      let offset = below(max(count / size, 1)) * size
      var value = word()
      memcpy(place + offset, &value, size)
    }
  }

  /// What the object says, changed.
  func fillChanged(_ place: UnsafeMutableRawPointer, _ count: Int, _ getter: UInt32) -> Int {
    if chance(16) || ioctl(target, UInt(getter), place) < 0 {
      fill(place, count)
    } else {
      change(place, count)
    }
    return count
  }

  /// An address in a structure, for KVM to read or write 64 KiB.
  func innerPointer() -> UInt {
    chance(8) ? of(badPointers) : UInt(bitPattern: scratch)
  }

  private var badPointers: [UInt] {
    [
      0, 8, UInt(bitPattern: world.hole), UInt(bitPattern: world.hole) - 1,
      UInt(bitPattern: world.readOnly), UInt(bitPattern: structures) + UInt(Self.structureSize) - 1,
      UInt(bitPattern: structures) + UInt(Self.structureSize), 1 << 63, .max, 1 << 47,
    ]
  }

  /// Host memory for a slot; now and then some that goes and comes, or addresses at which there is
  /// none.
  func guestMemory(_ pages: Int) -> UInt64 {
    var (base, size) = (world.memory, World.memorySize)
    if Options.current.usesHoles {
      switch below(8) {
      case 0 where pages < World.changingSize / 4096:
        (base, size) = (world.changing, World.changingSize)
      case 1: (base, size) = (world.hole, World.holeSize)
      default: break
      }
    }
    return UInt64(UInt(bitPattern: base)) + UInt64(below(size / 4096 - pages + 1)) << 12
  }

  /// A descriptor beyond all limits.
  static let neverOpen: Int32 = 1 << 24

  func eventDescriptor() -> Int32 {
    chance(8) ? of([-1, Self.neverOpen, 0, world.system]) : of(events)
  }

  // MARK: Calls

  func call(_ kind: Kind, _ request: UInt32, _ argument: UnsafeMutableRawPointer) -> Int32 {
    ioctl(kind == .system ? world.system : target, UInt(request), argument)
  }

  private struct Place {
    var argument: UInt
    /// The structure is not all there.
    var isBad = false
    /// It can be read.
    var isReadable = false
  }

  private func prepare(_ call: Call, _ descriptor: Int32) -> Place {
    target = descriptor
    switch call.argument {
    case .ignored: return Place(argument: 0)
    case .value(let make): return Place(argument: make(self))
    case .structure(let make):
      let size = make(self, structures)
      if chance(16) { return badPlace() }
      // Often the structure's last byte is the last before an unmapped page.
      if size == Self.structureSize || chance(2) {
        return Place(argument: UInt(bitPattern: structures))
      }
      let end = structures + Self.structureSize - size
      memmove(end, structures, size)
      return Place(argument: UInt(bitPattern: end))
    }
  }

  private func badPlace() -> Place {
    let pointer = of(badPointers)
    return Place(
      argument: pointer, isBad: true, isReadable: pointer == UInt(bitPattern: world.readOnly))
  }

  /// Makes a call and looks at the answer.
  @discardableResult
  func perform(_ call: Call, _ descriptor: Int32) -> Int32 {
    let place = prepare(call, descriptor)
    let result = raw(call.name, descriptor, UInt(call.request), place.argument)
    if result >= 0 {
      // A mask of signals may be none.
      let ignores = place.isReadable || call.request == CKVM_SET_SIGNAL_MASK && place.argument == 0
      if place.isBad, !ignores { fail("\(call.name) did not look at \(hex(place.argument))") }
      if !call.results.contains(result) { fail("\(call.name) returned \(result)") }
    } else if !call.errors.contains(-result), !(place.isBad && -result == EFAULT) {
      fail("\(call.name)(\(hex(place.argument))): errno \(-result) is not documented")
    }
    return result
  }

  /// A call of ioctl: its result, or the negative errno.
  func raw(_ name: String, _ descriptor: Int32, _ request: UInt, _ argument: UInt) -> Int32 {
    note(name)
    let pointer = UnsafeMutableRawPointer(bitPattern: argument)
    let result =
      pointer.map { ioctl(descriptor, request, $0) } ?? ioctl(descriptor, request, CInt(0))
    let answer = result < 0 ? -errno : result
    count(name, min(answer, 0))
    return answer
  }

  func count(_ name: String, _ answer: Int32) {
    answers[name, default: [:]][answer, default: 0] += 1
  }

  private func note(_ name: String) {
    current = name
    recent.append(name)
    if recent.count > 64 { recent.removeFirst(32) }
    calls.add(1, ordering: .relaxed)
  }

  func fail(_ text: String) -> Never {
    let last = recent.suffix(16).joined(separator: " ")
    Report.end(
      "thread \(number), call \(calls.load(ordering: .relaxed)): \(text)\nbefore: \(last)", 1)
  }

  func hex(_ value: UInt) -> String { "0x" + String(value, radix: 16) }
}
