// SPDX-License-Identifier: Apache-2.0

enum DataMovement {
  static func register(_ t: inout LoweringTable) {}
}
