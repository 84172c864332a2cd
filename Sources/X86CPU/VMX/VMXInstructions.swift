// SPDX-License-Identifier: Apache-2.0

enum VMXInstructions {
  static func register(_ t: inout LoweringTable) {}
}
