// SPDX-License-Identifier: Apache-2.0

enum BitInstructions {
  static func register(_ t: inout LoweringTable) {}
}
