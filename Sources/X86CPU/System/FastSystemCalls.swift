// SPDX-License-Identifier: Apache-2.0

enum FastSystemCalls {
  static func register(_ t: inout LoweringTable) {}
}
