// SPDX-License-Identifier: Apache-2.0

enum FarTransfer {
  static func register(_ t: inout LoweringTable) {}
}
