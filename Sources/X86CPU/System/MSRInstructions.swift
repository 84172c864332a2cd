// SPDX-License-Identifier: Apache-2.0

enum MSRInstructions {
  static func register(_ t: inout LoweringTable) {}
}
