// SPDX-License-Identifier: Apache-2.0
//
// The table of ioctls that the fuzzing client makes, and what each may answer: an errno that is
// not documented is a failure.

import CHost
import Glibc

/// What a descriptor is of.
enum Kind: String, Sendable {
  case system, machine, cpu

  /// What Linux answers to a number of KVM's that this kind does not have.
  var missing: Int32 { self == .machine ? ENOTTY : EINVAL }
}

/// One ioctl: what it is called with, and what it may answer (Linux, "The Definitive KVM API").
struct Call: Sendable {
  /// Fills the worker's structure and says how many bytes of it count.
  typealias Structure = @Sendable (Worker, UnsafeMutableRawPointer) -> Int
  typealias Value = @Sendable (Worker) -> UInt

  enum Argument: Sendable {
    case ignored
    case value(Value)
    /// A structure that KVM writes, reads, or both.
    case structure(Structure)
  }

  var name: String
  var kind: Kind
  var request: UInt32
  var argument: Argument
  /// Documented errors. EFAULT is always one where the structure is not there.
  var errors: Set<Int32>
  /// What it may return.
  var results: ClosedRange<Int32>
  /// How often it is called, beside the others of its kind.
  var weight: Int
  /// The answer is a descriptor.
  var opens: Bool

  init(
    _ name: String, _ kind: Kind, _ request: UInt32, _ argument: Argument,
    _ errors: Set<Int32> = [], results: ClosedRange<Int32> = 0...0, weight: Int = 4,
    opens: Bool = false
  ) {
    self.name = name
    self.kind = kind
    self.request = request
    self.argument = argument
    self.errors = errors
    self.results = opens ? 0...Int32.max : results
    self.weight = weight
    self.opens = opens
  }

  /// Errors of calls that make a descriptor.
  static let opening: Set<Int32> = [ENOMEM, EMFILE, ENFILE]
}

/// All calls, by how often they are made, and by number.
struct CallTable: Sendable {
  static let shared = CallTable(systemCalls + machineCalls + cpuCalls)

  private let weighted: [Kind: [Call]]
  private let byNumber: [Kind: [UInt32: Call]]
  let all: [Call]

  private init(_ calls: [Call]) {
    all = calls
    var weighted: [Kind: [Call]] = [:]
    var byNumber: [Kind: [UInt32: Call]] = [:]
    for call in calls {
      weighted[call.kind, default: []] += Array(repeating: call, count: call.weight)
      byNumber[call.kind, default: [:]][call.request] = call
    }
    self.weighted = weighted
    self.byNumber = byNumber
  }

  func choose(_ kind: Kind, _ number: Int) -> Call {
    let calls = weighted[kind] ?? []
    return calls[number % calls.count]
  }

  func find(_ kind: Kind, _ request: UInt32) -> Call? { byNumber[kind]?[request] }
}
