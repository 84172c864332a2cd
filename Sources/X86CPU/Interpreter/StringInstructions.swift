// SPDX-License-Identifier: Apache-2.0

enum StringInstructions {
  static func register(_ t: inout LoweringTable) {}
}
