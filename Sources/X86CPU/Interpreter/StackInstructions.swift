// SPDX-License-Identifier: Apache-2.0

enum StackInstructions {
  static func register(_ t: inout LoweringTable) {}
}
