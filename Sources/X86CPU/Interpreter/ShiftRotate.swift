// SPDX-License-Identifier: Apache-2.0

enum ShiftRotate {
  static func register(_ t: inout LoweringTable) {}
}
