// SPDX-License-Identifier: Apache-2.0

enum MultiplyDivide {
  static func register(_ t: inout LoweringTable) {}
}
