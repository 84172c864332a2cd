// SPDX-License-Identifier: Apache-2.0

enum ExtendedStateInstructions {
  static func register(_ t: inout LoweringTable) {}
}
