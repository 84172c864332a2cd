// SPDX-License-Identifier: Apache-2.0

enum AtomicInstructions {
  static func register(_ t: inout LoweringTable) {}
}
