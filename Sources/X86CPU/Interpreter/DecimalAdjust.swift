// SPDX-License-Identifier: Apache-2.0

enum DecimalAdjust {
  static func register(_ t: inout LoweringTable) {}
}
