// SPDX-License-Identifier: Apache-2.0

enum InterruptInstructions {
  static func register(_ t: inout LoweringTable) {}
}
