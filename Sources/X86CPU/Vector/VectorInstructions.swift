// SPDX-License-Identifier: Apache-2.0

enum VectorInstructions {
  static func register(_ t: inout LoweringTable) {}
}
