// SPDX-License-Identifier: Apache-2.0

enum CPUIDInstruction {
  static func register(_ t: inout LoweringTable) {}
}
