// SPDX-License-Identifier: Apache-2.0

enum FlagInstructions {
  static func register(_ t: inout LoweringTable) {}
}
