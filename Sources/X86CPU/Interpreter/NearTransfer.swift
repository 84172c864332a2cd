// SPDX-License-Identifier: Apache-2.0

enum NearTransfer {
  static func register(_ t: inout LoweringTable) {}
}
